"""Recipes of the studio: what a form shows is what `load_config` reads; mistakes stand at their options."""

import json
import subprocess
import sys

import pytest

from jaxvlm.command import load_config
from jaxvlm.runs import all_keys
from jaxvlm.web import recipe_info as reading
from jaxvlm.web.recipe_info import describe, recipe_info
from jaxvlm.web.recipes import find_problems, merged
from tests.web.studio_client import make_client

BASE = "configs.quickstart"
VALUES = {
    "stage.finetune.epochs": 2,
    "stage.finetune.optimizer.learning_rate": 1e-4,
    "stage.finetune.parts.language": "lora",
    "stage.finetune.data.source": "data/a 'b' \"c\" \\ 大.json",
    "stage.finetune.optimizer.groups": [["vision/.*", {"learning_rate": 0.001}]],
    "stage.finetune.data.system": None,
    "steps": 20,
    "profile": [10, 12],
}


@pytest.fixture
def client(tmp_path):
    return make_client(tmp_path)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Recipes are read in this process: starting another takes a second."""
    monkeypatch.setattr(
        reading, "_read", lambda base: reading.RecipeInfo(base, **json.loads(json.dumps(describe(base))))
    )
    monkeypatch.setattr(reading, "_known", {})


def test_preview_save_and_open(client):
    shown = client.post("recipe/preview", {"base": BASE, "values": VALUES, "name": "mine"})
    assert shown["problems"] == []
    assert shown["differences"][0] == {"key": "stage.finetune.epochs", "default": 12.0, "value": 2.0}
    path = client.post("recipe/save", {"base": BASE, "values": VALUES, "name": "mine"})["path"]
    assert path in shown["command"] and str(client.studio.root / "mine") in shown["command"]
    opened = client.get("recipe", path=path)
    assert opened["text"] == shown["text"] and opened["editable"] and opened["base"] == BASE
    again = client.post("recipe/preview", {"base": BASE, "values": opened["values"], "name": "mine"})
    assert again["text"] == shown["text"]
    (entry,) = (entry for entry in client.get("recipes")["recipes"] if entry["own"])
    assert entry["path"] == path and entry["editable"] and entry["base"] == BASE


def test_what_is_read_back_equals_the_form(client):
    path = client.post("recipe/save", {"base": BASE, "values": VALUES, "name": "mine"})["path"]
    read, base = all_keys(load_config(path)), all_keys(load_config("configs/quickstart.py"))
    changed = {key.removeprefix("config."): read[key] for key in read if read[key] != base.get(key)}
    groups = [["vision/.*", {"learning_rate": 0.001, "weight_decay": None}]]
    expected = VALUES | {"stage.finetune.optimizer.groups": groups}
    assert changed == expected


def test_a_name_that_is_taken(client):
    body = {"base": BASE, "values": {}, "name": "mine"}
    client.post("recipe/save", body)
    problem = client.post("recipe/save", body, 409)
    assert problem["code"] == "recipe_exists" and problem["facts"]["free"] == "mine-2"
    client.post("recipe/save", body | {"values": {"seed": 1}, "replace": True})
    assert "c.seed = 1" in (client.studio.recipes / "mine.py").read_text()
    (client.studio.recipes / "mine.py").write_text("def get_config():\n    return 1 + 1\n")
    assert client.post("recipe/save", body | {"replace": True}, 409)["code"] == "recipe_exists"


def test_a_recipe_with_logic_is_only_shown(client):
    path = client.studio.recipes / "own.py"
    path.write_text('"""Does <b>more</b>."""\nimport os\n\nopen("ran", "w")\n\n\ndef get_config():\n    return None\n')
    opened = client.get("recipe", path=str(path))
    assert not opened["editable"] and opened["base"] is None and opened["title"] == "Does <b>more</b>."
    path.write_text("def get_config(:\n")
    assert client.refused("recipe", path=str(path)) == (409, "recipe_broken")
    assert client.get("recipes")["recipes"][0]["problem"]
    (client.studio.recipes / "shared.py").write_text("X = 1\n")
    assert "shared" not in {entry["name"] for entry in client.get("recipes")["recipes"]}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "-x", "a b", "a\n", "x" * 81])
def test_names_that_are_no_file_names(client, name):
    assert client.post("recipe/save", {"base": BASE, "values": {}, "name": name}, 422)["code"] == "bad_values"
    assert list(client.studio.recipes.iterdir()) == []


@pytest.mark.parametrize("base", ["configs.base", "configs.no", "os", "configs.quickstart;os", "configs..base", ""])
def test_bases_that_are_none(client, base):
    assert client.refused("options", base=base) == (404, "no_base")


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"stage.finetune.epoch": 1.0}, "stage.finetune.epoch", 'did you mean "stage.finetune.epochs"'),
        ({"stage.finetune.epochs": "2"}, "stage.finetune.epochs", "expected float"),
        ({"stage.finetune.epochs": -1.0}, "stage.finetune.epochs", "expected more than 0"),
        ({"stage.finetune.epochs": None}, "stage.finetune.epochs", "expected float"),
        ({"steps": True}, "steps", "expected int"),
        ({"stage.align.parts.language": "lorra"}, "stage.align.parts.language", "lorra"),
        (
            {"stage.align.parts.language": "lora", "stage.align.parts.lora.language.rank": 0},
            "stage.align.parts.lora.language.rank",
            "1 or more",
        ),
        ({"stage.align.data.heldout": 0.0}, "stage.align.data.heldout", "eval_every"),
        ({"stage.align.data.source": ""}, "stage.align.data.source", "empty"),
        ({"stage.align.data.media.aspect": "wide"}, "stage.align.data.media.aspect", "wide"),
        ({"profile": [3]}, "profile", "(first, last)"),
    ],
)
def test_mistakes_stand_at_their_options(values, key, words):
    ((where, message),) = find_problems(
        recipe_info(BASE), {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, "x"
    ).found
    assert where == key and words in message


def test_all_mistakes_at_once(client):
    values = {"stage.finetune.epochs": -1.0, "stage.align.epochs": 0.0, "steps": 0}
    found = client.post("recipe/preview", {"base": BASE, "values": values, "name": "no/name"})["problems"]
    assert [problem["key"] for problem in found] == [None]
    found = client.post("recipe/preview", {"base": BASE, "values": values, "name": "name"})["problems"]
    assert {problem["key"] for problem in found} == set(values)
    assert (
        client.post("recipe/save", {"base": BASE, "values": values, "name": "name"}, 422)["facts"]["problems"] == found
    )


@pytest.mark.parametrize("key", ["a;b", "__import__('os')", "stage.finetune.epochs = 1\n    x", "1a"])
def test_keys_are_never_code(client, key):
    assert client.post("recipe/preview", {"base": BASE, "values": {key: 1}, "name": "x"}, 422)["code"] == "bad_values"


def test_every_choice_validates():
    """Of each option with choices, each of them is a value."""
    info = recipe_info(BASE)
    for option in info.options:
        for choice in option["choices"]:
            problems = find_problems(info, {option["key"]: choice}, "x").found
            assert not [message for key, message in problems if key == option["key"] and "expected one of" in message]


def test_values_of_the_base_stay(client):
    info = recipe_info(BASE)
    assert merged(info, {"seed": 3})["seed"] == 3 and info.values["seed"] == 42


def test_a_base_whose_package_is_missing(client, monkeypatch):
    problem = {"error": "the recipe needs the package x: pip install x"}
    monkeypatch.undo()
    done = subprocess.CompletedProcess([], 0, stdout=json.dumps(problem), stderr="")
    monkeypatch.setattr(reading.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(reading, "_known", {})
    reply = client.reply("options", base="configs.smollm2_chat")
    assert reply.status_code == 409 and "pip install x" in reply.json()["error"]["message"]


def test_a_process_of_its_own_reads_a_base(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(reading, "_known", {})
    found = recipe_info(BASE)
    assert found.stages == ["align", "finetune"] and len(found.options) > 100
    known = {option["key"]: option for option in found.options}
    assert known["stage.align.epochs"]["value"] == 5.0 and known["stage.align.epochs"]["default"] == 1.0
    monkeypatch.setattr(reading, "_read", lambda base: pytest.fail("it is read once"))
    assert recipe_info(BASE) is found


def test_the_server_imports_no_jax():
    """Nor does a preview of any family."""
    code = (
        "import sys\nfrom jaxvlm.web import server\nfrom jaxvlm.web.recipe_info import recipe_info\n"
        "from jaxvlm.web.recipes import find_problems\n"
        "for base in ('quickstart', 'qwen2_vl_2b_lora', 'text_sft'):\n"
        "    assert find_problems(recipe_info(f'configs.{base}'), {'seed': 1}, 'x').found == []\n"
        "print([name for name in ('jax', 'flax', 'transformers', 'matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
