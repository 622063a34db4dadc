import jax
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.sharding import Rules, make_mesh, to_devices
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.checkpoint_files import is_finished
from jaxvlm.training.state import initial_state, merge, split, state_layout, table_of_parts
from jaxvlm.training.step import compile_train_step
from jaxvlm.trees import paths
from tests import tiny

ONE_DEVICE = MeshConfig(1, 1, 1)


def layout(stage, recipe=None):
    mesh = make_mesh(ONE_DEVICE, jax.devices()[:1])
    return state_layout(build_model(tiny.config(recipe or tiny.recipe()).model), stage, 3, mesh, Rules())


@pytest.fixture(scope="module")
def compiled():
    """The stage, the layout and the train step of a run that trains projector and language."""
    parts = {"vision": "frozen", "projector": "full", "language": "full"}
    stage = tiny.stage(parts=parts, frozen_dtype="bfloat16", on_nonfinite="skip")
    plan = layout(stage)
    return stage, plan, compile_train_step(plan, stage)


@pytest.fixture(scope="module")
def frozen_vision(compiled):
    """That run: its stage, its layout, the states of three steps, their info."""
    stage, plan, step = compiled
    states, infos = [initial_state(plan, seed=1)], []
    with jax.set_mesh(plan.mesh):
        for _ in range(3):
            copy = jax.tree.map(lambda x: x.copy(), states[-1])  # the step takes its argument's memory
            state, info = step(copy, to_devices(tiny.batch(), plan.mesh, plan.rules))
            states.append(state)
            infos.append(info)
    return stage, plan, states, infos


def test_frozen_leaves_have_no_moments_and_never_change(frozen_vision):
    _, plan, states, _ = frozen_vision
    assert set(plan.state.frozen) == {"vision"} and set(plan.state.trained) == {"projector", "language"}
    assert not any("vision" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(states[0].optimizer))
    first, last = paths(states[0].frozen), paths(states[-1].frozen)
    assert all(leaf.dtype == jax.numpy.bfloat16 for leaf in first.values())
    assert all(np.array_equal(first[path], last[path]) for path in first)


def test_every_trained_leaf_changes(frozen_vision):
    _, _, states, _ = frozen_vision
    first, last = paths(states[0].trained), paths(states[-1].trained)
    assert [path for path in first if np.array_equal(first[path], last[path])] == []


def test_an_update_that_is_not_finite_is_left_out(compiled, frozen_vision):
    _, plan, step = compiled
    _, _, states, _ = frozen_vision
    batch = tiny.batch()
    batch = batch._replace(loss_weights=np.full_like(batch.loss_weights, np.nan))
    with jax.set_mesh(plan.mesh):
        after, info = step(jax.tree.map(lambda x: x.copy(), states[0]), to_devices(batch, plan.mesh, plan.rules))
    assert not np.isfinite(info["loss"]) and int(after.step) == int(states[0].step) + 1
    for ours, before in ((after.trained, states[0].trained), (after.optimizer, states[0].optimizer)):
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), ours, before))


def test_loss_falls_and_counts_are_those_of_the_batch(frozen_vision):
    _, _, _, infos = frozen_vision
    batch = tiny.batch()
    assert infos[-1]["loss"] < infos[0]["loss"]
    assert infos[0]["supervised_tokens"] == batch.loss_weights.sum() and infos[0]["tokens"] == batch.tokens.size


def test_table_says_what_is_trained(frozen_vision):
    stage, plan, _, _ = frozen_vision
    lines = table_of_parts(plan, stage).splitlines()
    assert [line.split()[0] for line in lines] == ["part", "vision", "projector", "language"]
    assert "bfloat16" in lines[1] and " 0 " in lines[1] and "0.01" in lines[2] and "float32" in lines[3]


def test_split_and_merge_are_inverse():
    params = {"vision": {"a": 1}, "projector": {"b": 2}, "language": {"c": 3}}
    parts = tiny.stage(parts={"vision": "full", "projector": "frozen", "language": "full"}).parts
    trained, frozen = split(params, parts)
    assert frozen == {"projector": {"b": 2}} and merge(trained, frozen) == params


def test_wrong_policies_are_named():
    lora = {"language": {"rank": 0, "dropout": 1.0}}
    wrong = tiny.stage(parts={"vision": "loro", "projector": "lora", "language": "lora", "lora": lora})
    with pytest.raises(UserError) as error:
        split({}, wrong.parts)
    message = str(error.value)
    assert """parts.vision = 'loro' is no policy; known: "frozen", "full", "lora" (""" in message
    assert "parts.projector has no adapters" in message
    assert "parts.lora.language.rank = 0, expected 1 or more" in message
    assert "parts.lora.language.dropout = 1.0, expected 0 to below 1" in message


def test_checkpoint_gives_back_every_bit(frozen_vision, tmp_path):
    _, plan, states, _ = frozen_vision
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for state in states[1:]:
        checkpoints.save(state, {"next": int(state.step)}, steps=3)
    checkpoints.wait()
    assert checkpoints.newest() == 3 and is_finished(checkpoints.folder)
    restored, position = checkpoints.restore(plan.state, 3)
    assert position == {"next": 3}
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), states[-1], restored)
    assert all(jax.tree.leaves(same))
    checkpoints.close()


def test_checkpoint_of_another_model_is_refused(frozen_vision, tmp_path):
    stage, _, states, _ = frozen_vision
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(states[-1], {}, steps=3)
    checkpoints.wait()
    other = tiny.recipe()
    other.model.language.mlp_dim = 57
    with pytest.raises(UserError, match=r"of another model: .*blocks/mlp/down/w: \(3, 56, 48\) saved, \(3, 57, 48\)"):
        checkpoints.restore(layout(stage, other).state, 3)
    checkpoints.close()
