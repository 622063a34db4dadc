import subprocess
import sys

import pytest

from jaxvlm.command import load_config
from jaxvlm.errors import UserError
from jaxvlm.recipe_text import RecipeText, read_recipe_text, write_recipe_text
from jaxvlm.runs import all_keys

VALUES = {
    "seed": 7,
    "steps": 20,
    "stage.finetune.epochs": 2.5,
    "stage.finetune.optimizer.learning_rate": 1e-4,
    "stage.finetune.data.source": 'photos/ein "neuer" Ordner\\mit\n宠物.json',
    "stage.finetune.data.pack": False,
    "stage.finetune.data.system": None,
    "stage.finetune.data.control_tokens": tuple(f"<|a long control token {i}|>" for i in range(6)),
    "stage.finetune.optimizer.groups": (("vision/.*", {"learning_rate": 1e-5}),),
}


def write(folder, recipe):
    path = folder / "mine.py"
    path.write_text(write_recipe_text(recipe, file=str(path)), encoding="utf-8")
    return path


def test_what_is_read_back_is_what_was_written(tmp_path):
    recipe = RecipeText("configs.quickstart", VALUES, "Pets, a first try.")
    path = write(tmp_path, recipe)
    assert read_recipe_text(path) == recipe
    keys, base = all_keys(load_config(str(path))), all_keys(load_config("configs/quickstart.py"))
    expected = {f"config.{key}": value for key, value in VALUES.items() if key != "stage.finetune.optimizer.groups"}
    for key, value in expected.items():
        assert keys[key] == (list(value) if isinstance(value, tuple) else value)
    assert keys["config.stage.finetune.optimizer.groups"][0][1]["learning_rate"] == 1e-5
    changed = {key for key in keys if keys[key] != base.get(key)}
    assert changed == {*expected, "config.stage.finetune.optimizer.groups"}


def test_it_is_formatted_as_a_person_would(tmp_path):
    path = write(tmp_path, RecipeText("configs.quickstart", VALUES, 'It says """hi""" \\'))
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config=pyproject.toml", str(path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + path.read_text()


@pytest.mark.parametrize(
    "line",
    [
        "c.seed = 3 + 4",
        "c.seed = int('7')",
        "c.stage['finetune'].epochs = 1.0",
        "c.seed += 1",
        "d = c.seed = 4",
        "import os",
        "print(c)",
    ],
)
def test_a_recipe_with_logic_of_its_own_is_none(tmp_path, line):
    path = write(tmp_path, RecipeText("configs.quickstart", {"seed": 7}, "Mine."))
    path.write_text(path.read_text().replace("    c.seed = 7", f"    c.seed = 7\n    {line}"))
    assert read_recipe_text(path) is None


def test_other_recipes_are_none_and_broken_ones_are_told(tmp_path):
    for code in ("import configs", "from configs import quickstart as q\nfrom ml_collections import ConfigDict", ""):
        (tmp_path / "other.py").write_text(code)
        assert read_recipe_text(tmp_path / "other.py") is None
    (tmp_path / "other.py").write_text("def get_config(:")
    with pytest.raises(UserError, match="other.py cannot be read: SyntaxError"):
        read_recipe_text(tmp_path / "other.py")


def test_values_that_cannot_be_written_are_all_named():
    values = {"seed": object(), "a b": 1, "stage.x; import os": 1, "steps": float("nan"), "mesh": {1: 2}}
    with pytest.raises(UserError) as error:
        write_recipe_text(RecipeText("configs.quickstart", values, ""))
    for named in ("seed = <object", "a b is no path", "stage.x; import os is no path", "steps = nan", "mesh = {1: 2}"):
        assert named in str(error.value)
    for base in ("configs.nowhere", "os", "configs.quickstart; import os", "configs"):
        with pytest.raises(UserError, match="is no recipe to start from"):
            write_recipe_text(RecipeText(base, {}, ""))
