"""The pages' files: texts are complete in both languages and used, and nothing asks for another address."""

import json
import re

import pytest

from jaxvlm.command import load_recipe
from jaxvlm.options import list_options
from jaxvlm.web.goals import list_goals
from jaxvlm.web.machines import MACHINES
from jaxvlm.web.server import PAGES

MODULES = sorted(path for path in PAGES.rglob("*.js") if "vendor" not in path.parts)
SOURCE = "\n".join(path.read_text() for path in MODULES)
EN, ZH = (json.loads((PAGES / "texts" / f"{name}.json").read_text()) for name in ("en", "zh"))
OPTIONS_EN, OPTIONS_ZH = (json.loads((PAGES / "texts" / f"options_{name}.json").read_text()) for name in ("en", "zh"))
RUN_STATES = "queued starting compiling training saving evaluating done paused stopped mistake crashed killed silent"
RUN_STATES += " lost elsewhere"
# What stands for ${...} in keys that modules put together, where it must not be left out.
VALUES = {
    "state.": f"{RUN_STATES} running failed cancelled ready",
    "run.says.": RUN_STATES,
    "advice.": "see_log fix_recipe killed_by_system lost_restart silent_wait resume watch_only out_of_memory disk_full",
    "file.what.": "recipe metrics ledger evaluation log picture",
    "task.": "done failed cancelled",
    "task.kind.": "data_check prepare plan evaluate export probe chat",
    "ledger.": "used packed truncated rejected heldout unreached",
    "home.column.": "name state progress loss curve device updated",
    "home.filter.": "all moving done trouble",
    "goal.group.": "try picture text preference",
    "family.": "llava qwen_vl text",
    "model.need.": "weights run",
    "browse.": "data images",
    "checkpoints.": "stage step size time",
    "checkpoints.to_": "evaluation chat export",
    "data.form.": "llava llama_factory hub tfds easy_vqa",
    "evaluation.verdict.": "all wrong right",
    "evaluation.sort.": "file worst longest shortest",
    "chat.state.": "starting compiling ready stopped failed",
    "chat.": "temperature top_p max_tokens seed temperature_help top_p_help max_tokens_help seed_help",
    "export.": "hf peft gguf hf_text peft_text gguf_text",
    "role.": "system user assistant",
    "scheme.": "auto light dark",
    "word.": "epoch batch rate lora token heldout epoch_text batch_text rate_text lora_text token_text heldout_text",
    "new.": " ".join(f"{s}.title {s}.help" for s in ["goal", "model", "data", "settings", "machine", "review"]),
    "machine.": " ".join(f"{name}.{part}" for name in MACHINES for part in ("title", "text")),
    "goal.": " ".join(f"{goal['id']}.{part}" for goal in list_goals() for part in ("title", "text")),
    "metric.": "loss heldout_loss accuracy learning_rate gradient_norm tokens_per_second step_seconds",
    "problem.": "not_logged_in wrong_token read_only run_exists recipe_exists devices_busy bad_field unreachable other",
    "plan.": "records price records_help price_help records_wrong price_wrong",
    "doctor.check.": "python host cores memory disk root recipes data",
}
BASES = ("quickstart", "smollm2_chat", "llava15_7b_lora", "qwen25_vl_7b_lora", "qwen3_vl_8b")


def places(text):
    forms = text.values() if isinstance(text, dict) else [text]
    return {place for form in forms for place in re.findall(r"\{(\w+)\}", form)}


def keys_used():
    """Keys that modules spell, and the beginnings of those that they put together."""
    whole = set(re.findall(r'\bt\(\s*"([\w.]+)"', SOURCE))
    groups = {key.partition(".")[0] for key in EN}
    calls = re.sub(r'\bh\(\s*"[^"]*"', "", SOURCE)  # names of elements and classes have dots too
    whole |= {key for key in re.findall(r'"([a-z0-9_]+(?:\.[a-z0-9_]+)+)"', calls) if key.partition(".")[0] in groups}
    return whole, set(re.findall(r"`([a-z0-9_]+\.(?:[a-z0-9_.]+[._])?)\$\{", SOURCE))


def test_both_languages_have_the_same_texts_with_the_same_places():
    assert EN.keys() == ZH.keys()
    assert {key: places(EN[key]) for key in EN} == {key: places(ZH[key]) for key in ZH}
    assert all(text if isinstance(text, str) else text.keys() == {"one", "other"} for text in EN.values())
    chinese = [key for key, text in ZH.items() if not re.search(r"[\u4e00-\u9fff]", str(text))]
    same = [key for key in chinese if ZH[key] != EN[key] and places(ZH[key]) == set()]
    assert same == [], "Chinese texts without Chinese words that differ from the English ones"


def test_each_key_of_a_module_is_there_and_each_text_is_used():
    whole, beginnings = keys_used()
    data_keys = {"data.source", "data.image_folder", "evaluation.source"}  # names of options, not of texts
    assert sorted(whole - EN.keys() - data_keys) == []
    made = {beginning + value for beginning, values in VALUES.items() for value in values.split()}
    assert sorted(made - EN.keys()) == []
    assert sorted(beginnings - VALUES.keys() - {"stage."}) == []
    unused = [key for key in EN if key not in whole and not any(key.startswith(one) for one in beginnings)]
    assert unused == []


@pytest.mark.parametrize("base", BASES)
def test_each_option_has_both_languages(base):
    options = list_options(load_recipe(f"configs/{base}.py"))
    keys = {re.sub(r"^stage\.[^.]+\.", "stage.*.", option.key) for option in options}
    assert sorted(keys - OPTIONS_EN.keys()) == [] and sorted(keys - OPTIONS_ZH.keys()) == []
    assert [option.key for option in options if not option.help] == []


def test_texts_of_options():
    assert OPTIONS_EN.keys() == OPTIONS_ZH.keys()
    assert all(text["label"] for text in OPTIONS_EN.values())
    assert all(text["label"] and text["help"] for text in OPTIONS_ZH.values())
    with_why = [{key for key, text in texts.items() if "why" in text} for texts in (OPTIONS_EN, OPTIONS_ZH)]
    assert with_why[0] == with_why[1]


def test_no_file_asks_for_another_address_or_makes_markup_of_text():
    files = [
        path for path in PAGES.rglob("*") if path.suffix in (".html", ".css", ".js") and "vendor" not in path.parts
    ]
    for path in files:
        text = path.read_text()
        assert set(re.findall(r"https?://[^\s\"'`/]+", text)) <= {"http://www.w3.org", "http://127.0.0.1:8000"}, path
        assert not re.search(r"""(?:href|src|url)\s*[=(]\s*["']?/(?!/)""", text), path  # a prefix would be lost
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=", text) and "<style" not in text and "<script>" not in text, (
            path
        )


def test_the_page_names_files_that_are_there():
    named = re.findall(r'(?:href|src)="([^"]+)"', (PAGES / "index.html").read_text())
    assert len(named) > 10 and all((PAGES / name).is_file() for name in named)


def test_vendored_files_have_version_and_licence():
    for name in ("uplot", "lucide"):
        folder = PAGES / "vendor" / name
        assert (folder / "LICENSE").read_text().strip()
    assert "1.6.32" in (PAGES / "vendor/uplot/VERSION").read_text()
    icons = set(re.findall(r'^  "([a-z0-9-]+)": \[\[', (PAGES / "vendor/lucide/icons.js").read_text(), re.MULTILINE))
    spelled = set(re.findall(r'"([a-z0-9-]+)"', SOURCE))
    assert sorted(icons - spelled) == [], "icons that no module names"
