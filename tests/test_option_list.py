import dataclasses
import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import base, quickstart, qwen2_vl_7b, text_sft
from jaxvlm.command import load_config
from jaxvlm.data.media.images import ASPECTS
from jaxvlm.data.text.boxes import SPACES
from jaxvlm.data.text.templates import ANSWERS, OWN_TEMPLATE, TEMPLATES
from jaxvlm.families.registry import FAMILIES
from jaxvlm.models.decoder import ARCHITECTURES
from jaxvlm.models.layers import ACTIVATIONS
from jaxvlm.objectives.registry import OBJECTIVES
from jaxvlm.options import ABSENT, find_options, list_options
from jaxvlm.training.optimizer import schedule
from jaxvlm.tuning import POLICIES


def options(recipe):
    return {option.key: option for option in list_options(recipe.get_config())}


@pytest.mark.parametrize("recipe", [quickstart, qwen2_vl_7b, text_sft])
def test_every_option_is_there_and_explained(recipe):
    found = options(recipe)

    def leaves(group, prefix):
        for name, value in group.items():
            is_group = isinstance(value, ConfigDict) and len(value)
            yield from leaves(value, f"{prefix}{name}.") if is_group else [prefix + name]

    assert sorted(found) == sorted(key for key in leaves(recipe.get_config(), "") if key != "stage")
    assert not [key for key, option in found.items() if not option.help]


def test_an_option_says_what_it_is():
    found = options(quickstart)
    rate = found["stage.finetune.optimizer.learning_rate"]
    assert (rate.type, rate.default, rate.value, rate.group) == ("float", 2e-5, 8e-4, "stage.finetune.optimizer")
    assert rate.help == "at the end of the warm-up"
    source = found["stage.align.data.source"].help
    assert source.startswith('A LLaVA .json or .jsonl file, "FOLDER') and source.endswith('or "easy_vqa:train".')
    steps = found["steps"]
    assert (steps.type, steps.can_be_none, steps.default) == ("int", True, None)
    vision = found["stage.align.parts.vision"]
    assert (vision.choices, vision.is_open, vision.can_be_none) == (("frozen", "full", "lora"), False, True)
    assert found["stage.align.optimizer.groups"].type == "literal"
    assert found["stage.align.objective"].is_open and not found["model.remat"].is_open
    tower = options(qwen2_vl_7b)
    assert tower["model.vision.window"].default == 0 and tower["stage.finetune.data.media.min_pixels"].default == ABSENT


def test_choices_are_those_that_the_components_take():
    found = {key.rpartition(".")[2]: option.choices for key, option in options(quickstart).items()}
    components = {
        "remat": tuple(POLICIES),
        "template": (*TEMPLATES, OWN_TEMPLATE),
        "answers": ANSWERS,
        "aspect": ASPECTS,
        "boxes": ("", *SPACES),
        "family": tuple(FAMILIES),
        "objective": tuple(OBJECTIVES),
        "architecture": tuple(ARCHITECTURES),
        "activation": tuple(ACTIVATIONS),
    }
    for name, known in components.items():
        assert set(found[name]) == set(known), name


def test_every_choice_of_a_schedule_is_taken():
    recipe = load_config("configs/quickstart.py").stage["align"].optimizer
    for name in options(quickstart)["stage.align.optimizer.schedule"].choices:
        schedule(dataclasses.replace(recipe, schedule=name), 10)


def test_words_are_found_in_names_and_explanations():
    recipe = base.get_config()
    recipe.stage.one = base.stage()
    found = [option.key for option in find_options(list_options(recipe), "MIRROR")]
    assert found == ["stage.one.data.augment.flip"]
    assert find_options(list_options(recipe), "warmup")[0].key == "stage.one.optimizer.warmup"


def test_help_prints_them():
    command = [sys.executable, "-m", "jaxvlm.train", "--config", "configs/quickstart.py"]
    command += ["--help-config", "schedule", "--config.stage.align.optimizer.schedule=linear"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0
    assert (
        "--config.stage.align.optimizer.schedule='linear'\n    str, one of: cosine, linear, constant, wsd, "
        in shown.stdout
    )
    listed = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
    assert [option["value"] for option in listed] == ["linear", "wsd"]


def test_listing_needs_no_jax():
    code = "import sys; from configs import qwen2_vl_7b as recipe; from jaxvlm.options import list_options"
    code = f"{code}; list_options(recipe.get_config()); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
