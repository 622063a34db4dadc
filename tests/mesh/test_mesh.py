"""The same batch on 1, 8 and 2 x 4 devices, and in micro-batches, gives the same loss and the same next state."""

import jax
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model
from jaxvlm.sharding import Rules, make_mesh, named_shardings, to_devices
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.state import initial_state, state_layout
from jaxvlm.training.step import compile_train_step
from jaxvlm.trees import paths
from tests import tiny

# name -> (mesh, devices, micro-batches)
SETUPS = {
    "1": (MeshConfig(1, 1, 1), 1, 1),
    "1, eight micro-batches": (MeshConfig(1, 1, 1), 1, 8),
    "8 fsdp": (MeshConfig(1, 8, 1), 8, 1),
    "2 fsdp x 4 tensor, two micro-batches": (MeshConfig(1, 2, 4), 8, 2),
    "2 data x 4 fsdp": (MeshConfig(2, 4, 1), 8, 1),
}


def layout_of(mesh_config, devices):
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    return state_layout(build_model(tiny.config(tiny.recipe()).model), tiny.stage(), 3, mesh, Rules())


def one_step(name, params):
    """Next state and info after one step from `params`."""
    config, devices, micro_batches = SETUPS[name]
    layout = layout_of(config, devices)
    with jax.set_mesh(layout.mesh):
        step = compile_train_step(layout, tiny.stage(micro_batches=micro_batches))
        state, info = step(initial_state(layout, 0, params), to_devices(tiny.batch(), layout.mesh, Rules()))
    return state, jax.device_get(info)


@pytest.fixture(scope="module")
def params():
    return tiny.params(build_model(tiny.config(tiny.recipe()).model))


@pytest.fixture(scope="module")
def reference(params):
    return one_step("1", params)


# Micro-batches, both mesh axes of weights, and one axis on all devices; the others are mixtures of these.
GATE = ("8 fsdp", "2 fsdp x 4 tensor, two micro-batches")
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in list(SETUPS)[1:] if name not in GATE]


@pytest.mark.parametrize("name", [*GATE, *NIGHTLY])
def test_same_step(reference, params, name):
    state, info = one_step(name, params)
    for key, value in reference[1].items():
        np.testing.assert_allclose(info[key], value, rtol=1e-5, err_msg=key)
    # After one step Adam's first moment is the gradient times 1 - b1: it shows the gradient of every weight.
    compare(state.optimizer, reference[0].optimizer, limit=1e-4)
    # 1e-3 on weights: Adam's first update is the gradient's sign, and a gradient near 0 may change its own.
    compare(state.trained, reference[0].trained, limit=1e-3)


def compare(ours, expected, *, limit):
    """Relative difference of each leaf, by norm."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        where = jax.tree_util.keystr(path)
        if "['attention']['k']['bias']" in where:
            continue  # adds the same to all logits of a query, so its gradient is 0 except rounding
        a, b = np.asarray(a), np.asarray(b)
        difference = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)
        assert difference < limit, (where, difference)


def test_weights_are_split():
    layout = layout_of(*SETUPS["8 fsdp"][:2])
    by_path = paths(layout.state.trained)
    q = by_path["language/blocks/attention/q/w"]
    assert q.sharding.shard_shape(q.shape)[1] == q.shape[1] // 8  # embed over fsdp


def test_checkpoint_moves_to_another_mesh(reference, tmp_path):
    state, _ = reference
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(state, {"next": 1}, steps=3)
    checkpoints.wait()
    layout = layout_of(MeshConfig(1, 2, 4), 8)
    restored, _ = checkpoints.restore(layout.state, 1)
    checkpoints.close()
    q = paths(restored.trained)["language/blocks/attention/q/w"]
    assert len(q.sharding.device_set) == 8
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), state, restored)
    assert all(jax.tree.leaves(same))


def test_unknown_or_colliding_axes_raise_with_the_path():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    leaf = {"moe": {"w": jax.ShapeDtypeStruct((8, 8), np.float32)}}
    with pytest.raises(ValueError, match=r'no rule for logical axis "expert" \(param moe/w\)'):
        named_shardings(mesh, Rules(), leaf, {"moe": {"w": ("embed", "expert")}})
    with pytest.raises(ValueError, match="two axes of moe/w .* share a mesh axis"):
        named_shardings(mesh, Rules(), leaf, {"moe": {"w": ("heads", "mlp")}})


def test_every_weight_has_a_rule():
    model = build_model(tiny.config(tiny.recipe()).model)
    mesh = make_mesh(MeshConfig(1, 2, 4))
    shardings = named_shardings(mesh, Rules(), model.abstract, model.axes)
    assert jax.tree.structure(shardings) == jax.tree.structure(model.abstract)
