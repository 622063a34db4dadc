import dataclasses

import jax
import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.models.vlm import build_model
from jaxvlm.weights.llava import HUB, MEMORY, llava_rules, llava_sizes
from jaxvlm.weights.rules import Rule, export_tensors, flatten_tree, import_tensors
from tests.parity import pairs


def random_params(config, dtype=np.float32):
    random = np.random.default_rng(0)
    model = build_model(config)
    return model, jax.tree.map(lambda x: random.standard_normal(x.shape).astype(dtype), model.abstract)


@pytest.mark.parametrize("config", [pairs.tiny_config(), pairs.tied_config()], ids=["untied", "tied"])
@pytest.mark.parametrize("prefixes", [MEMORY, HUB], ids=["memory", "hub"])
def test_export_then_import_is_bit_equal(config, prefixes):
    model, params = random_params(config, np.float16)  # the dtype goes through as it is
    rules, sizes = llava_rules(config, prefixes), llava_sizes(config)
    back = import_tensors(rules, export_tensors(rules, params, sizes), model.abstract, sizes)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for path, want in flatten_tree(params).items():
        have = flatten_tree(back)[path]
        assert have.dtype == np.float16 and np.array_equal(have, want), path


def test_import_then_export_is_bit_equal():
    pair = pairs.make_pair(pairs.tiny_config())
    want = pairs.hf_tensors(pair.hf)
    have = export_tensors(llava_rules(pair.model.config), pair.params, llava_sizes(pair.model.config))
    assert set(have) == set(want)
    for name, tensor in want.items():
        assert np.array_equal(have[name], tensor), name


def test_a_row_by_hand():
    rules = (Rule("h.{i}.w", "blocks/w", "(N H) D -> D N H"), Rule("n", "norm"))
    abstract = {"blocks": {"w": np.zeros((2, 5, 3, 4))}, "norm": np.zeros(5)}
    hf = {"h.0.w": np.arange(60.0).reshape(12, 5), "h.1.w": np.ones((12, 5)), "n": np.ones(5)}
    got = import_tensors(rules, hf, abstract, {})
    assert got["blocks"]["w"][0, 1, 2, 3] == hf["h.0.w"][2 * 4 + 3, 1]


def test_all_problems_come_in_one_message():
    config = pairs.tiny_config()
    model, params = random_params(config)
    rules, sizes = llava_rules(config), llava_sizes(config)
    hf = export_tensors(rules, params, sizes)
    hf["model.extra.weight"] = np.zeros((3, 2))
    del hf["model.language_model.layers.1.mlp.up_proj.weight"]
    hf["model.multi_modal_projector.linear_1.weight"] = np.zeros((40, 48))
    with pytest.raises(UserError) as error:
        import_tensors(rules, hf, model.abstract, sizes)
    message = str(error.value)
    assert "3 problems" in message
    assert "layers.1.mlp.up_proj.weight is missing, for language/blocks/mlp/up/w (3, 48, 56)" in message
    assert "linear_1.weight is (40, 48), expected (48, 40) for projector/fc1/w (40, 48)" in message
    assert "model.extra.weight (3, 2) has no place" in message


def test_a_weight_without_a_row_is_an_error():
    config = pairs.tiny_config()
    tied = dataclasses.replace(config, language=dataclasses.replace(config.language, tie_embeddings=True))
    _, params = random_params(config)
    with pytest.raises(UserError, match=r"language/head/w \(101, 48\) has no row"):
        export_tensors(llava_rules(tied), params, llava_sizes(tied))
