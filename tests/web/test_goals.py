"""The table of goals holds against the recipes, the registries and the options."""

import pytest

from configs import smollm2
from jaxvlm.command import load_recipe
from jaxvlm.families.registry import FAMILIES
from jaxvlm.options import list_options
from jaxvlm.web import goals
from jaxvlm.web.goals import GOALS, list_goals
from jaxvlm.web.recipe_info import base_file

# Their recipes draw pictures, or need a package of weights.
DRAWS = {"configs.native_easyvqa"}


@pytest.fixture(autouse=True)
def weights(monkeypatch):
    monkeypatch.setattr(smollm2, "weights", lambda: "SmolLM2.gguf")


def recipe_of(base, monkeypatch, folder):
    monkeypatch.chdir(folder)  # some write their data below it
    return load_recipe(str(base_file(base)))


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.id)
def test_a_goal_fits_its_recipes(goal, monkeypatch, tmp_path):
    for size in goal.sizes:
        assert base_file(size.base).is_file()
        if size.base in DRAWS:
            continue
        recipe = recipe_of(size.base, monkeypatch, tmp_path)
        options = {option.key: option for option in list_options(recipe)}
        assert recipe.model.family == goal.family and goal.family in FAMILIES
        assert goal.stage in recipe.stages and goal.kind == (goals.TEXT if goal.family == "text" else goals.PICTURE)
        shown = [goal.option(name) for name in goals._EIGHT]
        assert set(shown) <= options.keys() and len(shown) == 8
        for what, key in goal.needs:
            if what != "package":
                assert key in options, key
            if what in ("run", "weights", "data"):
                assert options[key].value, f"{size.base} sets no {key}"


def test_what_a_page_gets():
    found = {goal["id"]: goal for goal in list_goals()}
    assert found["llava_lora"]["sizes"][1] == {
        "base": "configs.llava15_13b_lora",
        "name": "llava15_13b_lora",
        "parameters": "13B",
    }
    assert found["quickstart"]["title_key"] == "goal.quickstart" and found["quickstart"]["minutes_cpu"] == 10
    assert all(goal["available"] for goal in found.values() if goal["kind"] != "preference")
    assert list(found)[0] == "try_text", "text first"


def test_preferences_need_an_objective(monkeypatch):
    monkeypatch.setattr(goals, "OBJECTIVES", {"sft": "jaxvlm.objectives.sft"})
    found = list_goals()[-1]
    assert found["kind"] == "preference" and not found["available"] and "registry.py: sft" in found["why"]
    monkeypatch.setattr(goals, "OBJECTIVES", {"sft": "", "dpo": ""})
    found = list_goals()[-1]
    assert found["available"] and found["why"] is None and found["values"] == {"stage.sft.objective": "dpo"}


def test_ids_are_distinct():
    assert len({goal.id for goal in GOALS}) == len(GOALS)
