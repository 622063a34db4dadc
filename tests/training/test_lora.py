"""Adapters: what they compute, what is trained of a part that has some, and what is kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm.config import LoraConfig, MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.models.layers import keep_mask
from jaxvlm.sharding import Rules, make_mesh, to_devices
from jaxvlm.training.state import initial_state, merge, merge_adapters, state_layout, table_of_parts
from jaxvlm.training.step import compile_train_step
from jaxvlm.trees import paths
from tests import tiny

CONFIG = tiny.config(tiny.recipe()).model
LORA = {"vision": {"rank": 4, "alpha": 6.0, "targets": "blocks/mlp/.*"}, "language": {"rank": 5, "alpha": 8.0}}
PARTS = {"vision": "lora", "projector": "full", "language": "lora", "lora": LORA}
ADAPTERS = tiny.stage(parts=PARTS).parts.adapters()


def one_device_layout(parts, **values):
    stage = tiny.stage(parts=parts, frozen_dtype="bfloat16", **values)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return stage, state_layout(build_model(CONFIG, stage.parts.adapters()), stage, 4, mesh, Rules())


def random_params(adapters, seed=0):
    random = np.random.default_rng(seed)
    abstract = build_model(CONFIG, adapters).abstract
    return jax.tree.map(lambda x: (random.standard_normal(x.shape) / 6).astype(np.float32), abstract)


def logits(adapters, params, key=None):
    def run(params, batch):
        vlm = build_model(CONFIG, adapters).bind(params, key)
        return vlm.logits(vlm.hidden(batch))

    return np.asarray(jax.jit(run)(params, tiny.batch(rows=2)))


def test_the_settings_of_adapters():
    assert ADAPTERS["language"] == LoraConfig(rank=5, alpha=8)
    assert ADAPTERS["language"].scale == 8 / 5 and LoraConfig(9, 6.0, rslora=True).scale == 2.0


def test_shapes_and_axes_follow_the_weight():
    model = build_model(CONFIG, ADAPTERS)
    shapes = {path: leaf.shape for path, leaf in paths(model.abstract).items() if "/lora/" in path}
    assert shapes["language/blocks/attention/q/lora/a"] == (3, 48, 5)
    assert shapes["language/blocks/attention/q/lora/b"] == (3, 5, 6, 10)
    assert shapes["language/blocks/attention/out/lora/a"] == (3, 6, 10, 5)
    assert shapes["vision/blocks/mlp/down/lora/a"] == (4, 44, 4)
    assert len(shapes) == 2 * (7 + 2)
    adapter = model.axes["language"]["blocks"]["attention"]["out"]["lora"]
    assert adapter == {"a": ("layers", "heads", "head_dim", None), "b": ("layers", None, "embed")}


@pytest.fixture(scope="module")
def new():
    """Weights and adapters of a new model."""
    return jax.jit(build_model(CONFIG, ADAPTERS).init)(jax.random.key(1))


def test_new_adapters_change_no_logit(new):
    params = {name: leaf for name, leaf in paths(new).items() if "/lora/" in name}
    assert all(leaf.any() == name.endswith("/a") for name, leaf in params.items())
    bare = merge_adapters(new, ADAPTERS)
    for name, leaf in paths(bare).items():
        assert np.array_equal(leaf, paths(new)[name]), name
    np.testing.assert_allclose(logits(ADAPTERS, new), logits({}, bare), rtol=0, atol=1e-6)


@pytest.mark.nightly  # above with XLA's rounding: it may fuse the two programs differently
def test_new_adapters_change_no_bit_of_a_logit(new):
    with jax.disable_jit():
        np.testing.assert_array_equal(logits(ADAPTERS, new), logits({}, merge_adapters(new, ADAPTERS)))


def test_merged_adapters_give_the_same_logits():
    params = random_params(ADAPTERS)
    merged = merge_adapters(params, ADAPTERS)
    assert jax.tree.structure(merged) == jax.tree.structure(build_model(CONFIG).abstract)
    assert not np.allclose(
        merged["language"]["blocks"]["mlp"]["up"]["w"], params["language"]["blocks"]["mlp"]["up"]["w"]
    )
    np.testing.assert_allclose(logits({}, merged), logits(ADAPTERS, params), atol=1e-5)


def test_merging_unstacks_nothing_when_the_rank_is_the_number_of_layers():
    adapters = {"language": LoraConfig(CONFIG.language.num_layers, 2.0)}
    params = random_params(adapters)
    np.testing.assert_allclose(logits({}, merge_adapters(params, adapters)), logits(adapters, params), atol=1e-5)


def test_only_adapters_and_projector_train():
    stage, layout = one_device_layout(PARTS)
    state = initial_state(layout, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert all("/lora/" in path or path.startswith("projector/") for path in paths(state.trained))
    moments = jax.tree.leaves(state.optimizer)
    assert sum(x.size for x in moments) < 2.2 * sum(x.size for x in jax.tree.leaves(state.trained))
    frozen = jax.device_get(state.frozen)
    before = jax.device_get(state.trained)
    step, batch = (
        compile_train_step(layout, dataclasses.replace(stage, micro_batches=2)),
        to_devices(tiny.batch(), layout.mesh, layout.rules),
    )
    losses = []
    for _ in range(3):
        state, info = step(state, batch)
        losses.append(float(info["loss"]))
    assert losses[-1] < losses[0]
    for path, leaf in paths(state.frozen).items():
        assert np.array_equal(leaf, paths(frozen)[path]), path
    unchanged = [path for path, leaf in paths(state.trained).items() if np.array_equal(leaf, paths(before)[path])]
    last = [path for path in unchanged if not path.startswith("vision/")]
    assert not last  # vision's blocks behind the feature layer are in the same leaves, so those change as well
    table = table_of_parts(layout, stage).splitlines()
    assert "bfloat16, float32" in table[1] and "bfloat16, float32" in table[3]


def test_weights_that_are_given_are_kept_and_the_rest_is_new():
    _, layout = one_device_layout(PARTS)
    given = random_params({})
    del given["projector"]
    state = initial_state(layout, 3, given)
    merged = merge(state.trained, state.frozen)
    want = given["language"]["blocks"]["mlp"]["up"]["w"]
    have = merged["language"]["blocks"]["mlp"]["up"]
    assert np.array_equal(have["w"], want.astype(jnp.bfloat16))
    assert have["lora"]["a"].any() and not have["lora"]["b"].any() and merged["projector"]["fc1"]["w"].any()


def test_dropout_drops_only_while_training():
    adapters = {
        "language": LoraConfig(5, 8, 0.5, "blocks/attention/q"),
        "vision": LoraConfig(3, 4, 0.1, "blocks/mlp/up"),
    }
    params = random_params(adapters)
    plain = logits(adapters, params)
    one, again, other = (logits(adapters, params, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - other).max() > 1e-3
    without = {part: dataclasses.replace(lora, dropout=0.0) for part, lora in adapters.items()}
    np.testing.assert_array_equal(logits(without, params, jax.random.key(1)), plain)


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.nightly)])
def test_dropout_is_the_same_when_recomputed(remat):
    adapters = {"language": LoraConfig(5, 8, 0.5, "blocks/(attention/out|mlp/up)")}
    params = random_params(adapters)

    def gradient(name):
        model = build_model(dataclasses.replace(CONFIG, remat=name), adapters)

        def loss(params):
            return (model.bind(params, jax.random.key(1)).hidden(tiny.batch(rows=2)) ** 2).sum()

        return jax.jit(jax.grad(loss))(params)["language"]["blocks"]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(remat), gradient("none"))


def test_a_mask_keeps_its_share():
    key, shape = jax.random.key(3), (40, 30, 257)
    kept = np.asarray(keep_mask(key, 0.7, shape))
    assert kept.shape == shape
    np.testing.assert_allclose(kept.mean(), 0.7, atol=4 * 0.46 / kept.size**0.5)  # four standard deviations
    for axes in ((0, 1), (2,)):
        deviation = (kept.mean(axis=axes) - 0.7) / (0.46 / (kept.size / kept.mean(axis=axes).size) ** 0.5)
        assert 0.8 < deviation.std() < 1.2 and np.abs(deviation).max() < 5
    halves = kept[..., :128] - 0.7, kept[..., 129:] - 0.7  # of the same hashes
    assert abs((halves[0] * halves[1]).mean()) < 5 * 0.21 / halves[0].size ** 0.5
    assert keep_mask(key, 1.0, shape).all() and not np.array_equal(kept, keep_mask(jax.random.key(4), 0.7, shape))


@pytest.mark.parametrize("spec", [("fsdp", None, "tensor"), ("tensor", "fsdp", None)])
def test_a_mask_does_not_depend_on_who_makes_it(spec):
    shape = (8, 12, 16)
    placed = NamedSharding(make_mesh(MeshConfig(1, 4, 2), jax.devices()), PartitionSpec(*spec))
    make = functools.partial(keep_mask, share=0.5, shape=shape)
    np.testing.assert_array_equal(jax.jit(make, out_shardings=placed)(jax.random.key(1)), make(jax.random.key(1)))


def test_targets_that_match_nothing():
    with pytest.raises(
        UserError, match=r'parts.language: lora targets "q_proj" match no projection; nearest: .*; all: '
    ):
        build_model(CONFIG, {"language": LoraConfig(4, 8, targets="q_proj")})
