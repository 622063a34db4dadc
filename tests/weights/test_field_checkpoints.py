"""Checkpoints as trainers save them: read with the logits of transformers in float32, or refused with the reason."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.families.sources import open_source
from jaxvlm.weights.source import load_weights
from tests.parity import pairs

HEAD = "language_model.lm_head.weight"


def write(folder, config=None, decoder="llama"):
    """A folder as `save_pretrained` writes it."""
    pairs.make_pair(config or pairs.tiny_config(), decoder=decoder).hf.save_pretrained(folder)
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


PARTS = ("vision", "projector")


def assert_same_logits(folder):
    """Compares the logits of one image with text; returns our config."""
    config, params = read(folder)
    sample = pairs.make_sample(config, 1, images=1, text=8)
    batch = pairs.make_batch(config, [[sample]], tokens=len(sample.tokens), images=1)
    ours = jax.jit(lambda p, b: pairs.loss_of(build_model(config), p, b)[1])(params, batch)[0]
    hf = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = hf(**pairs.hf_batch(config, [sample])).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    return config


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_config_with_a_head_in_the_file(equal, tmp_path):
    folder = write(tmp_path / "in", pairs.tied_config())

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
