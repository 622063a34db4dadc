"""The beginner's way in a browser, by clicking only: New run, a real training, evaluation, chat."""

import contextlib
import json
import os
import signal

import pytest
from PIL import Image

from jaxvlm.process_identity import is_alive
from tests.browser import visit
from tests.web.folders import make_studio
from tests.web.served import serving

pytestmark = [pytest.mark.browser, pytest.mark.nightly, pytest.mark.timeout(1800)]
STEPS = 20
SECONDS = 900  # for the training of a few steps, on a busy machine
STATE = "document.querySelector('.run-state .badge')?.dataset.state"
TITLE = "document.querySelector('.step-title')?.textContent.startsWith('{}')"


def set_option(key, value):
    """Actions that find an option by search and set it."""
    field = f".field[data-key='{key}'] input"
    return [
        ("run", "document.querySelector('.step-body input[type=search]').value = ''"),
        ("type", ".step-body input[type=search]", key),
        ("click", field),
        ("press", "Ctrl+A"),
        ("press", "Delete"),
        ("keys", value),
        ("press", "Tab"),
    ]


def written(value):
    return ("wait_for", f"document.querySelector('.preview pre').textContent.includes({json.dumps(value)})")


def new_run(address):
    base = address.partition("#")[0]
    steps = [
        ("wait_for", ".empty"),
        ("click", "a[href='#/new?goal=quickstart']"),
        ("wait_for", ".preview pre"),
    ]
    for number in (2, 3, 4):
        steps += [("click", "#next"), ("wait_for", TITLE.format(number))]
    steps += [*set_option("steps", str(STEPS)), written(f"c.steps = {STEPS}")]
    steps += [*set_option("evaluation.source", ""), written('c.evaluation.source = ""')]
    for number in (5, 6):
        steps += [("click", "#next"), ("wait_for", TITLE.format(number))]
    return [*steps, ("click", "#start"), ("wait_for", "location.hash.startsWith('#/run/')")], base


def test_from_nothing_to_a_model_that_answers(tmp_path):
    studio = make_studio(tmp_path)
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    try:
        with serving(studio) as address:
            actions, base = new_run(address)
            actions += [
                ("wait_for", ".tab-panel .chart canvas", SECONDS),
                ("reload",),
                ("wait_for", f"{STATE} == 'done'", SECONDS),
                ("ask", "hash", "location.hash"),
                ("wait_for", "[data-action=evaluate]"),
                ("click", "[data-action=evaluate]"),
                ("wait_for", ".empty"),
                ("click", "main details summary"),
                ("wait_for", "#evaluation-source"),
                ("type", "#evaluation-source", "easy_vqa:test"),
                ("click", "#evaluation-limit"),
                ("press", "Ctrl+A"),
                ("keys", "20"),
                ("click", "#evaluate"),
                ("wait_for", ".gallery .answer", SECONDS),
                ("ask", "answers", "document.querySelectorAll('.gallery .answer').length"),
                ("click", ".page-head a"),
                ("wait_for", ".model .badge[data-state=ready]", SECONDS),
                ("upload", "#add-pictures", [picture]),
                ("wait_for", ".thumbs img"),
                ("type", "#message", "what shape is present?"),
                ("press", "Return"),
                ("wait_for", ".bubble.assistant .muted", SECONDS),
                ("wait_for", "document.querySelector('.bubble.assistant .muted').textContent != ''", SECONDS),
            ]
            seen = visit(url=address, actions=actions, seconds=1700)
        assert seen.results["hash"].startswith("#/run/quickstart") and seen.results["answers"] == 20
        assert seen.console == [] and all(request.startswith(base) for request in seen.requests)
        lines = [json.loads(line) for line in (studio.root / "quickstart" / "metrics.jsonl").open()]
        trained = [(line["stage"], line["step"]) for line in lines if "loss" in line]
        assert trained == [(stage, step) for stage in ("align", "finetune") for step in range(1, STEPS + 1)]
    finally:
        end(studio)


def end(studio):
    """Ends what the test has started."""
    for task in studio.tasks.list():
        if task["state"] == "running":
            studio.tasks.cancel(task["id"])
    for path in studio.root.glob("*/process.json"):
        process = json.loads(path.read_text())
        with contextlib.suppress(ProcessLookupError):
            if is_alive(process):
                os.kill(process["pid"], signal.SIGKILL)
