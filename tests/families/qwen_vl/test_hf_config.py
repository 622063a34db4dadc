"""config.json of the three kinds in the three spellings in circulation."""

import copy
import dataclasses
import json
import types

import pytest
import transformers

from configs import qwen_vl
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import QwenVLConfig
from jaxvlm.families.qwen_vl.hf_config import hf_qwen_config, read_qwen
from jaxvlm.families.qwen_vl.rope_axes import rope_axes, section_of
from jaxvlm.families.registry import resolve

# The published files, as their repositories have them: flat for the first two.
FLAT2 = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
_OLD_VISION = {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_OLD_VISION |= {"in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
_OLD_VISION |= {"spatial_patch_size": 14, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
FLAT25 = FLAT2 | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "max_position_embeddings": 128000,
    "vision_config": _OLD_VISION | {"temporal_patch_size": 2},
}
NESTED3 = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": False,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
PUBLISHED = {"qwen2_vl_7b": FLAT2, "qwen25_vl_7b": FLAT25, "qwen3_vl_8b": NESTED3}


def nested(flat: dict) -> dict:
    """As transformers 4.52 to 4.57 save a flat file again: the decoder in text_config, copies at the root."""
    own = {"architectures", "model_type", "vision_config", "torch_dtype", "transformers_version", "image_token_id"}
    own |= {"video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings"}
    text = {name: value for name, value in flat.items() if name not in own | {"vision_token_id"}}
    text["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}
    return copy.deepcopy(flat) | {"text_config": text | {"model_type": f"{flat['model_type']}_text"}}


def read(values: dict):
    return read_qwen(copy.deepcopy(values), "config.json", None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_the_recipes_models(name):
    found = read(PUBLISHED[name])
    config = resolve(qwen_vl.finetune(name).to_dict()).model
    assert isinstance(config, QwenVLConfig)
    assert (found.kind, found.vision, found.projector) == (config.kind, config.vision, config.projector)
    assert found.language == config.language and found.tokens_per_second == 2
    assert found.image_token_id == 151655


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_spellings_are_the_same_model(name):
    values = PUBLISHED[name]
    want = read(values)
    if "text_config" not in values:
        assert read(nested(values)) == want
    cls = {"qwen2_vl": transformers.Qwen2VLConfig, "qwen2_5_vl": transformers.Qwen2_5_VLConfig}
    cls |= {"qwen3_vl": transformers.Qwen3VLConfig}
    given = {key: value for key, value in copy.deepcopy(values).items() if key != "model_type"}
    assert read(json.loads(cls[want.kind](**given).to_json_string(use_diff=False))) == want
    assert read(json.loads(cls[want.kind](**given).to_json_string())) == want


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_again_and_by_transformers(name, tmp_path):
    found = read(PUBLISHED[name])
    config = QwenVLConfig(
        "qwen_vl", found.language, "float32", "none", found.kind, found.vision, found.projector, found.tokens_per_second
    )
    vocab = {"<|vision_start|>": 151652, "<|vision_end|>": 151653}
    tokenizer = types.SimpleNamespace(
        bos_token_id=None, eos_token_id=151645, pad_token_id=151643, get_vocab=lambda: vocab
    )
    ids = {"image_token_id": 151655, "video_token_id": 151656}
    written = hf_qwen_config(config, tokenizer, **ids, dtype="bfloat16", max_positions=8192)
    assert read(written) == found
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read(json.loads(loaded.to_json_string())) == found
    assert loaded.text_config.rope_parameters["rope_theta"] == found.language.rope_theta
    assert loaded.vision_start_token_id == 151652


def test_axes_of_the_frequencies():
    """Chunks of time, row and column, or interleaved: rows at 1, 4, ..., columns at 2, 5, ..., time everywhere else."""
    assert rope_axes((1, 2, 1), interleaved=False) == (0, 1, 1, 2)
    axes = rope_axes((24, 20, 20), interleaved=True)
    assert [at for at, axis in enumerate(axes) if axis == 1] == list(range(1, 59, 3))
    assert [at for at, axis in enumerate(axes) if axis == 2] == list(range(2, 60, 3))
    assert section_of(axes) == (24, 20, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "mrope"}}, r"mrope_section = null, supported: three numbers"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 8, 8]}}, r"\[8, 8, 8\], supported: a sum of 64"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "yarn", "mrope_section": [16, 24, 24]}}, "yarn|factor"),
        ({"use_sliding_window": True, "max_window_layers": 3}, "layer_types"),
        ({"clever": 3}, "clever = 3, an unknown field"),
        ({"vision_config": FLAT2["vision_config"] | {"hidden_size": 4096}}, "hidden_size = 4096, supported: 3584"),
        ({"vision_config": FLAT2["vision_config"] | {"temporal_patch_size": 1}}, "temporal_patch_size = 1"),
        ({"vision_config": FLAT2["vision_config"] | {"clever": 3}}, "vision_config.clever = 3, an unknown field"),
        ({"vision_config": FLAT2["vision_config"] | {"hidden_act": "relu"}}, 'vision_config.hidden_act = "relu"'),
        ({"model_type": "qwen9_vl"}, '"qwen9_vl" is not supported'),
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        read(FLAT2 | changes)


def test_contradictions_between_root_and_text_config():
    values = nested(FLAT2)
    values["text_config"]["tie_word_embeddings"] = True
    values["hidden_size"] = 4096
    with pytest.raises(UserError) as caught:
        read(values)
    assert "tie_word_embeddings = false at the root and true in text_config" in str(caught.value)
    assert "hidden_size = 4096 at the root and 3584 in text_config" in str(caught.value)


def test_a_model_that_no_kind_has_is_not_written():
    found = read(FLAT2)
    config = QwenVLConfig("qwen_vl", found.language, "float32", "none", "qwen2_vl", found.vision, found.projector)
    vision = dataclasses.replace(config.vision, window=8, norm="rms")
    with pytest.raises(UserError, match=r"model\.vision\.norm = 'rms', expected 'layer'.*model\.vision\.window = 8"):
        hf_qwen_config(
            dataclasses.replace(config, vision=vision),
            None,
            image_token_id=1,
            video_token_id=2,
            dtype="float32",
            max_positions=9,
        )
