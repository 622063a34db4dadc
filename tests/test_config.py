import dataclasses

import pytest

from jaxvlm.command import load_config, load_recipe
from jaxvlm.config import StageConfig
from jaxvlm.config_reading import to_dict
from jaxvlm.errors import UserError
from jaxvlm.families.registry import resolve
from jaxvlm.runs import differing_keys
from tests import tiny


def test_every_default_has_a_field_and_every_field_a_default():
    assert dataclasses.is_dataclass(tiny.config(tiny.recipe(one=tiny.stage_recipe())))


def test_a_run_may_go_on_with_other_dtypes_and_less_memory():
    saved, now = (tiny.recipe(only=tiny.stage_recipe()) for _ in range(2))
    now.model.update({"compute_dtype": "bfloat16", "remat": "none"})
    now.stage.only.update({"frozen_dtype": "bfloat16", "micro_batches": 4})
    assert differing_keys(tiny.config(saved), tiny.config(now)) == []
    now.seed = 1
    assert differing_keys(tiny.config(saved), tiny.config(now)) == ["config.seed: 42 -> 1"]


@pytest.mark.parametrize("name", ["mesh", "profile", "workers", "evaluation", "model"])
def test_the_guard_of_a_resume_looks_at_whole_paths(name):
    """A stage that is called as a free option is guarded like any other."""
    saved, now = (tiny.recipe(**{name: tiny.stage_recipe()}) for _ in range(2))
    now.stage[name].optimizer.learning_rate = 1.0
    now.stage[name].data.source = "other.json"
    differing = differing_keys(tiny.config(saved), tiny.config(now))
    assert [line.split(":")[0] for line in differing] == [
        f"config.stage.{name}.data.source",
        f"config.stage.{name}.optimizer.learning_rate",
    ]


def test_no_mesh_axis_does_nothing():
    values = tiny.recipe(one=tiny.stage_recipe()).to_dict()
    values["mesh"]["sequence"] = 4
    with pytest.raises(UserError, match=r"unknown key config.mesh.sequence \(known: data, fsdp, tensor\)"):
        resolve(values)


def test_saved_config_reads_back_equal():
    import json

    config = tiny.config(tiny.recipe(one=tiny.stage_recipe()))
    assert resolve(json.loads(json.dumps(to_dict(config)))) == config


def test_all_wrong_keys_are_named_at_once():
    values = tiny.recipe(one=tiny.stage_recipe()).to_dict()
    values["stage"]["one"]["epoch"] = 3
    del values["stage"]["one"]["epochs"]
    values["model"]["vision"]["patch_size"] = "seven"
    with pytest.raises(UserError) as error:
        resolve(values)
    message = str(error.value)
    assert "unknown key config.stage.one.epoch (did you mean config.stage.one.epochs?)" in message
    assert "missing key config.stage.one.epochs" in message
    assert "config.model.vision.patch_size = 'seven', expected int" in message


def test_values_of_groups_are_converted():
    changed = tiny.stage_recipe()
    changed.optimizer.groups = (("projector/.*", {"learning_rate": 1}),)
    stage = tiny.config(tiny.recipe(one=changed)).stage["one"]
    assert isinstance(stage, StageConfig) and stage.optimizer.groups[0][1].learning_rate == 1.0


def test_all_values_that_mean_nothing_are_named_at_once(recipe_file):
    wrong = ["steps=0", "profile=(5,3)", "evaluation.batch_size=0", "stage.one.global_batch_size=0"]
    wrong += ["stage.one.epochs=0", "stage.one.log_every=0", "stage.one.on_nonfinite=ignore"]
    with pytest.raises(UserError) as error:
        load_config(recipe_file, [f"--config.{value}" for value in wrong])
    named = [problem.split(", expected")[0] for problem in str(error.value).split("; ")]
    assert sorted(named) == sorted(
        [
            "config.steps = 0", "config.profile = (5, 3)", "config.evaluation.batch_size = 0",
            "config.stage.one.global_batch_size = 0", "config.stage.one.epochs = 0.0",
            "config.stage.one.log_every = 0", "config.stage.one.on_nonfinite = 'ignore'",
        ]
    )  # fmt: skip


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    c = base.get_config()\n"
        "    c.stages, c.stage.one = ('one',), base.stage()\n"
        "    return c\n"
    )
    return str(path)


def test_overrides(recipe_file):
    config = load_config(recipe_file, ["--config.seed=7", "--config.stage.one.optimizer.learning_rate=0.5"])
    assert config.seed == 7 and config.stage["one"].optimizer.learning_rate == 0.5
    assert load_config(recipe_file, ["--config.steps=3"]).steps == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sead=7", r"unknown key config.sead \(did you mean config.seed\?\)"),
        ("--config.seed=seven", "wrong type.*seven"),
        ("--config.stages=('two',)", "config.stages = .*two.*config.stage has one"),
    ],
)
def test_wrong_overrides(recipe_file, override, message):
    with pytest.raises(UserError, match=message):
        load_config(recipe_file, [override])


def test_missing_and_broken_recipes(tmp_path):
    with pytest.raises(UserError, match="no recipe at nowhere.py"):
        load_recipe("nowhere.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(str(tmp_path / "empty.py"))
