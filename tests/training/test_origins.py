"""What a stage starts from."""

import jax
import pytest

from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.initial_weights import find_origins
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.state import initial_state, state_layout
from tests import tiny


@pytest.fixture
def recipe():
    return tiny.config(tiny.recipe(align=tiny.stage_recipe(), finetune=tiny.stage_recipe()))


def save(folder, config, stage, *, step, steps):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = build_model(config.model)
    layout = state_layout(model, config.stage[stage], steps, mesh, Rules())
    checkpoints = Checkpoints(RunFolder(folder).checkpoints(stage))
    state = initial_state(layout, 0, tiny.params(model))
    checkpoints.save(state.__class__(state.step + step, *list(vars(state).values())[1:]), {}, steps, wait=True)
    checkpoints.close()


def test_a_stage_starts_only_from_a_finished_one(recipe, tmp_path):
    RunFolder(tmp_path).save_config(recipe)
    save(tmp_path, recipe, "align", step=1, steps=2)
    with pytest.raises(UserError) as caught:
        find_origins(RunFolder(tmp_path), recipe, "finetune")
    said = str(caught.value)
    assert "stage align, which is not finished" in said and "its newest checkpoint is of step 1" in said
    assert "--resume" in said and f"--config.init.model={tmp_path}" in said
    save(tmp_path, recipe, "align", step=2, steps=2)
    (origin,) = find_origins(RunFolder(tmp_path), recipe, "finetune")
    assert (origin.run.path, origin.stage) == (tmp_path, "align")


def test_a_stage_that_was_killed_before_its_first_save_is_not_finished(recipe, tmp_path):
    RunFolder(tmp_path).save_config(recipe)
    RunFolder(tmp_path).checkpoints("align").mkdir(parents=True)
    with pytest.raises(UserError, match="it has no checkpoint"):
        find_origins(RunFolder(tmp_path), recipe, "finetune")


def test_the_first_stage_starts_from_nothing(recipe, tmp_path):
    assert find_origins(RunFolder(tmp_path), recipe, "align") == []
