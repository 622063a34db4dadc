import dataclasses

import jax
import pytest

from jaxvlm.config import DecoderConfig, VisionConfig, build_config
from jaxvlm.errors import UserError
from jaxvlm.models import variants
from jaxvlm.models.vlm import build_model
from tests.parity import pairs

# Parameters in millions as published (model cards; CLIP's are of the image encoder alone).
MILLIONS = {
    "clip_b32": 87.5,
    "clip_b16": 85.8,
    "clip_l14": 303.2,
    "clip_l14_336": 303.5,
    "llama2_7b": 6738.4,
    "llama2_13b": 13015.9,
    "llama3_8b": 8030.3,
    "llama31_8b": 8030.3,
    "llama32_1b": 1235.8,
    "smollm2_135m": 134.5,
    "smollm2_360m": 361.8,
    "vicuna15_7b": 6738.4,
    "vicuna15_13b": 13015.9,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name):
    config = pairs.tiny_config()
    if name.startswith("clip"):
        part, values = "vision", build_config(VisionConfig, variants.vision(name))
    else:
        part, values = "language", build_config(DecoderConfig, variants.language(name))
    model = build_model(dataclasses.replace(config, **{part: values}))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.abstract[part]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match='no language model is called "lama2_7b" .did you mean "llama2_7b"'):
        variants.language("lama2_7b")
    with pytest.raises(UserError, match="known: clip_b32"):
        variants.vision("siglip")
