"""transformers' processor of a folder, for comparisons."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.reference import ReferenceProcessor
from tests.families.qwen_vl import folders

LIMITS = [{"min_pixels": 128, "max_pixels": 2560}, {"size": {"shortest_edge": 128, "longest_edge": 2560}}]


@pytest.mark.parametrize("limits", LIMITS, ids=["old", "new"])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_limits_of_both_spellings_and_files(tmp_path, file, limits):
    folders.tokenizer("qwen2_vl").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no image processor"):
        ReferenceProcessor.from_pretrained(tmp_path)
    values = {"patch_size": 4, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"} | limits
    values = values if file.startswith("pre") else {"image_processor": values, "processor_class": "Qwen2VLProcessor"}
    (tmp_path / file).write_text(json.dumps(values))
    images = ReferenceProcessor.from_pretrained(tmp_path).images
    assert (images.size["shortest_edge"], images.size["longest_edge"], images.patch_size) == (128, 2560, 4)
