"""Checkpoints as trainers save them: read with the logits of transformers in float32, or refused with the reason."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxvlm.config import RopeScaling, check_values
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.families.sources import open_source
from jaxvlm.weights.hf.decoder import hf_language_config
from jaxvlm.weights.hf.vision import hf_vision_config
from jaxvlm.weights.source import load_weights
from tests import tiny
from tests.parity import pairs, tiny_llava

pytestmark = pytest.mark.torch

PARTS = ("vision", "projector")
HEAD = "language_model.lm_head.weight"


def write(folder, config=None, decoder="llama"):
    """A folder as `save_pretrained` writes it."""
    pairs.make_pair(config or tiny_llava.tiny_config(), decoder=decoder).hf.save_pretrained(folder)
    return folder


def change_config(folder, part="", remove=(), **changes):
    """Sets fields of config.json, or of one of its parts."""
    values = json.loads((folder / "config.json").read_text())
    place = values[part] if part else values
    place.update(changes)
    for name in remove:
        place.pop(name, None)
    (folder / "config.json").write_text(json.dumps(values))


def change_tensors(folder, change):
    """Replaces the tensors by `change` of the dict of them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path, {"format": "pt"})


def read(folder):
    """The config and the weights of a folder."""
    source = open_source(str(folder))
    config = LlavaConfig("llava", source.configs["language"], "float32", "none", *(source.configs[x] for x in PARTS))
    return config, load_weights(source, config, build_model(config).abstract, keep_dtypes=True)


def logits(config, params):
    """Our logits of one image with text."""
    sample = tiny_llava.make_sample(config, 1, images=1, text=8)
    batch = tiny_llava.make_batch(config, [[sample]], tokens=len(sample.tokens), images=1)
    return jax.jit(lambda p, b: tiny_llava.loss_of(build_model(config), p, b)[1])(params, batch)[0]


def assert_same_logits(folder):
    """Compares the logits of one image with text; returns our config."""
    config, params = read(folder)
    sample, ours = tiny_llava.make_sample(config, 1, images=1, text=8), logits(config, params)
    hf = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = hf(**pairs.hf_batch(config, [sample])).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    return config


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_config_with_a_head_in_the_file(equal, tmp_path):
    folder = write(tmp_path / "in", tiny_llava.tied_config())

    def add_head(tensors):
        embedding = next(x for name, x in tensors.items() if name.endswith("embed_tokens.weight"))
        return tensors | {HEAD: embedding.copy() if equal else embedding[::-1].copy()}

    change_tensors(folder, add_head)
    assert assert_same_logits(folder).language.tie_embeddings == equal


def test_an_untied_config_without_a_head(tmp_path):
    folder = write(tmp_path / "in")
    change_tensors(folder, lambda tensors: {name: x for name, x in tensors.items() if "lm_head" not in name})
    with pytest.raises(UserError, match=r"tie_word_embeddings = false .*lm_head.weight is missing"):
        open_source(str(folder))


def test_a_head_saved_twice(tmp_path):
    folder = write(tmp_path / "in")
    name = next(name for name in load_file(folder / "model.safetensors") if "lm_head" in name)
    second = HEAD if name != HEAD else "lm_head.weight"
    change_tensors(folder, lambda tensors: tensors | {second: tensors[name].copy()})
    read(folder)
    change_tensors(folder, lambda tensors: tensors | {second: tensors[name] + 1})
    with pytest.raises(UserError, match=r"must have one value; .*lm_head.weight and .*lm_head.weight differ"):
        read(folder)


def test_fields_of_trainers(tmp_path):
    folder = write(tmp_path / "in")
    change_config(folder, hidden_size=48, unsloth_version="2025.1.1")
    assert_same_logits(folder)
    change_config(folder, hidden_size=40)
    with pytest.raises(UserError, match="hidden_size = 40, supported: 48, as in text_config"):
        open_source(str(folder))


@pytest.mark.parametrize("layer", [-1, -2])
def test_siglip_without_its_pooling_head(layer, tmp_path):
    config = tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True)
    vision = dataclasses.replace(config.vision, pool=False, feature_layer=layer)
    folder = write(tmp_path / "in", dataclasses.replace(config, vision=vision), decoder="qwen2")
    found = assert_same_logits(folder).vision
    assert (found.pool, found.num_layers, found.feature_layer) == (False, 4, layer)
    values = hf_vision_config(found, dtype="float32")
    assert values["vision_use_head"] is False


def test_a_window_that_is_not_shorter_than_the_rows(tmp_path):
    config = tiny_llava.gelu_config()
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, architecture="mistral"))
    folder = write(tmp_path / "in", config, decoder="mistral")
    change_config(folder, "text_config", sliding_window=17)  # the rows that `assert_same_logits` compares
    assert assert_same_logits(folder).language.window == 17
    change_config(folder, "text_config", sliding_window=16)
    with pytest.raises(UserError, match="attention window of 16 tokens .* they have 17; make them shorter"):
        assert_same_logits(folder)
    change_config(folder, "text_config", remove=["sliding_window"])
    assert read(folder)[0].language.window == 4096  # transformers' default


def original(folder, tower, *, blocks=None, **changes):
    """A folder of LLaVA-NeXT in the original form; `blocks`: it has the first blocks of its encoder, and no head."""
    folder.mkdir()
    hf = tower.parent / "in"
    tensors = {}
    for name, x in load_file(hf / "model.safetensors").items():
        short = name.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head")
        short = short.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        short = short.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
        layer = re.search(r"encoder\.layers\.(\d+)", name)
        if name.startswith("vision_tower."):
            if blocks is None or ".head." in name or (layer and int(layer[1]) >= blocks):
                continue
            short = "model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_tower.")
        tensors[short] = x
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((hf / "config.json").read_text())["text_config"]
    fields = {
        "model_type": "llava_qwen",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_hidden_size": 40,
        "mm_patch_merge_type": "flat",
        "mm_tunable_parts": "mm_mlp_adapter,mm_language_model",
        "image_aspect_ratio": "pad",
        "image_crop_resolution": 224,
        "image_split_resolution": 224,
        "vision_tower_pretrained": None,
        "add_faster_video": False,
        "mm_newline_position": "one_token",
        "use_pos_skipping": False,
        "pos_skipping_range": 4096,
    }
    (folder / "config.json").write_text(json.dumps(text | fields | changes))
    return folder


@pytest.fixture
def tower(tmp_path):
    """A SigLIP, the encoder of the LLaVA in the folder `in` beside it."""
    hf = pairs.make_pair(tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True), decoder="qwen2").hf
    hf.save_pretrained(tmp_path / "in")
    hf.model.vision_tower.save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


@pytest.mark.parametrize("name", ["llava_qwen", "llava_qwen2"])
def test_a_llava_next_folder_with_an_encoder_beside_it(name, tmp_path, tower):
    expected = logits(*read(tmp_path / "in"))
    config, params = read(original(tmp_path / "original", tower, model_type=name))
    np.testing.assert_array_equal(logits(config, params), expected)


def test_a_tower_without_its_last_block_and_head(tmp_path, tower):
    expected = logits(*read(tmp_path / "in"))
    folder = original(tmp_path / "original", tower, blocks=3, mm_tunable_parts="mm_vision_tower,mm_mlp_adapter")
    config, params = read(folder)
    assert (config.vision.num_layers, config.vision.feature_layer, config.vision.pool) == (3, -1, False)
    np.testing.assert_array_equal(logits(config, params), expected)
    with pytest.raises(UserError, match="encoder.layers.2.*is missing"):
        read(original(tmp_path / "short", tower, blocks=2))  # the third block is needed


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter"}, "tower was trained .* it has none"),
        ({"unfreeze_mm_vision_tower": True}, "tower was trained .* it has none"),
        ({"mm_hidden_size": 48}, "mm_hidden_size = 48 must be the encoder's width, and .*tower has 40"),
    ],
)
def test_claims_about_the_tower(changes, message, tmp_path, tower):
    with pytest.raises(UserError, match=message):
        open_source(str(original(tmp_path / "original", tower, **changes)))


def test_linear_rope(tmp_path):
    folder = write(tmp_path / "in", tiny_llava.linear_rope_config())
    language = assert_same_logits(folder).language
    assert language.rope_scaling == RopeScaling(4.0, kind="linear")

    class Ids:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    values = hf_language_config(language, Ids, dtype="float32", max_positions=64)
    assert values["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def test_a_stage_with_rows_longer_than_the_window():
    recipe = tiny.recipe(only=tiny.stage_recipe())
    tokens = recipe.stage["only"].data.tokens
    recipe.model.language.window = tokens
    check_values(tiny.config(recipe))
    recipe.model.language.window = tokens - 1
    with pytest.raises(UserError, match="data.tokens = .* expected at most .*config.model.language.window"):
        check_values(tiny.config(recipe))
