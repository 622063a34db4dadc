"""The studio's pages in Chromium: every view in both languages and schemes, and New run by the keyboard alone."""

import contextlib
import itertools
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image

from jaxvlm.command import load_config
from jaxvlm.recipe_text import read_recipe_text
from jaxvlm.runs import RunFolder
from jaxvlm.web import control
from jaxvlm.web import recipe_info as reading
from tests.browser import visit
from tests.web.folders import beat, make_checkpoint, make_run, make_studio, metrics, own
from tests.web.served import serving
from tests.web.test_evaluations import write_suite, write_test

pytestmark = pytest.mark.browser

# An expression has neither comments before it nor a semicolon after it.
AUDIT = "".join(Path(__file__).with_name("audit.js").read_text().rstrip(";\n").partition("(() =>")[1:])
FAKE_SERVE = Path(__file__).with_name("fake_serve.py")
NASTY = "猫 '\"<img src=x onerror=alert(1)>"
CRASHED = {"code": 1, "signal": None, "time": time.time()}
# A page with these is not found faultless.
FAULTS = """['h1', 'button', 'input', 'p'].map((name) => {
  const made = Object.assign(document.createElement(name), { id: 'x' });
  Object.assign(made.style, { width: '9999px', color: '#888', background: '#999' });
  if (name == 'p') made.textContent = 'grey on grey';
  document.querySelector('main').append(made);
}) && null"""
# Address of each view, its name in the document, and what shows that it is there.
VIEWS = {
    "home": ("", "home", ".runs"),
    "run": ("run/busy", "run", ".tab-panel .chart"),
    "curves": ("run/busy?tab=curves", "run", ".tab-panel .chart canvas"),
    "files": ("run/done?tab=files", "run", ".picture"),
    "checkpoints": ("run/done?tab=checkpoints", "run", ".runs"),
    "log": ("run/crashed?tab=log", "run", ".log"),
    "settings": ("run/done?tab=settings", "run", ".tab-panel .filters"),
    "compare": ("compare?run=done&run=busy", "compare", ".chart"),
    "evaluation": ("evaluation/done", "evaluation", ".gallery .answer"),
    "chat": ("chat", "chat", ".composer"),
    "data": ("data", "data", ".field"),
    "export": ("export/done", "export", ".cards"),
    "queue": ("queue", "queue", "main h2"),
    "doctor": ("doctor", "doctor", ".checks"),
    "missing": ("nothing", "nothing", "main h1"),
}


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A studio with runs in several states; recipes are read in this process."""
    monkeypatch.setattr(
        reading, "_read", lambda base: reading.RecipeInfo(base, **json.loads(json.dumps(reading.describe(base))))
    )
    made = make_studio(tmp_path, prefix="/a/b")
    lines = metrics(range(1, 31), gradient_norm=1.5, accuracy=0.5)
    make_run(made.root, "busy", lines=lines, process=own(), beat=beat())
    done = make_run(made.root, "done", lines=lines + metrics(range(1, 21), "finetune"), exit={**CRASHED, "code": 0})
    write_test(done)
    write_suite(done)
    RunFolder(done).save_config(load_config("configs/quickstart.py", []))
    make_checkpoint(done, "finetune", 20)
    Image.new("RGB", (40, 30), "teal").save(done / "samples.png")
    make_run(made.root, "crashed", lines=lines, exit=CRASHED)
    (made.root / "crashed" / "studio.log").write_text("one\n<b>bold</b>\nerror: no such thing; take another\n")
    make_run(made.root, f"group/{NASTY}", lines=lines)
    return made


def opened(address, view):
    """Actions that open a view."""
    path, name, sign = VIEWS[view]
    base = address.partition("#")[0]
    return [
        ("go", f"{base}#/{path}"),
        ("wait_for", f"document.body.dataset.view == '{name}' && document.querySelector('main .loading') == null"),
        ("wait_for", sign),
    ]


def chosen(language, scheme):
    """Actions that choose a language and a colour scheme, as the page keeps them."""
    keys = {"jaxvlm-language": language, "jaxvlm-scheme": scheme}
    kept = ", ".join(f"localStorage.setItem('{key}', '{value}')" for key, value in keys.items())
    return [("run", f"[{kept}]"), ("reload",), ("wait_for", "nav.side a")]


def audits(address, combinations, views=VIEWS):
    """Actions that look at views for faults, by (language, scheme, width)."""
    for language, scheme, width in combinations:
        yield from chosen(language, scheme)
        yield ("resize", width, 900)
        for view in views:
            yield from opened(address, view)
            yield ("ask", f"{view} {language} {scheme} {width}", AUDIT)


def steps_of_new_run(address):
    """Actions that look at each step of a goal that has fields in all of them, by the mouse."""
    yield ("go", f"{address.partition('#')[0]}#/new?goal=qwen_lora")
    for step in range(1, 7):
        yield ("click", f".steps li:nth-child({step}) button:enabled")
        yield ("wait_for", f".steps li:nth-child({step}) button[aria-current=step]")
        yield ("wait_for", ".step-body .stack > *")
        yield ("ask", f"step {step}", AUDIT)


def check(seen, address):
    """No fault, no message on the console, no request for another origin."""
    assert {name: faults for name, faults in seen.results.items() if isinstance(faults, list) and faults} == {}
    assert seen.console == []
    assert {urlsplit(request).netloc for request in seen.requests} == {urlsplit(address).netloc}
    assert all(urlsplit(request).path.startswith("/a/b/") for request in seen.requests)


def test_views_in_both_languages_and_schemes(studio):
    with serving(studio) as address:
        actions = [
            ("wait_for", ".runs"),
            ("ask", "token", "location.hash"),
            *audits(address, [("en", "light", 1280), ("zh", "dark", 320)]),
            *steps_of_new_run(address),
            *opened(address, "home"),
            ("ask", "language", "document.documentElement.lang"),
            ("ask", "names", "[...document.querySelectorAll('td.name a')].map(e => e.textContent).sort()"),
            ("ask", "inside", "document.querySelectorAll('td.name a img').length"),
            ("go", f"{address.partition('#')[0]}#/run/group/{quote(NASTY)}"),
            ("wait_for", "document.querySelector('main h1')?.textContent == " + json.dumps(NASTY)),
            ("reload",),
            ("wait_for", "document.querySelector('main h1')?.textContent == " + json.dumps(NASTY)),
            ("run", FAULTS),
            ("ask", "faults", AUDIT),
        ]
        seen = visit(url=address, actions=actions)
    names, faults = seen.results.pop("names"), " ".join(seen.results.pop("faults"))
    assert all(fault in faults for fault in ("no name", "no label", "contrast 1.", "too wide", "id twice: x", "2 h1"))
    assert names == sorted(["busy", "done", "crashed", f"group/{NASTY}"]) and seen.results["inside"] == 0
    assert seen.results["language"] == "zh-CN" and "token" not in seen.results["token"]
    check(seen, address)


@pytest.mark.nightly
def test_views_in_every_combination(studio):
    combinations = itertools.product(("en", "zh"), ("light", "dark"), (320, 768, 1280, 2200))
    with serving(studio) as address:
        check(
            visit(url=address, actions=[("wait_for", ".runs"), *audits(address, combinations)], seconds=1200), address
        )


def test_new_run_by_the_keyboard_alone(studio, monkeypatch):
    """The recipe that is saved has the form's values; the run that is started is that recipe."""
    started = []
    monkeypatch.setattr(
        control, "start_run", lambda _, recipe, name, stage, **more: started.append((recipe, name)) or "busy"
    )
    title = "document.querySelector('.step-title')?.textContent.startsWith('{}')"
    epochs = "[data-key='stage.finetune.epochs'] input"
    with serving(studio) as address:
        actions = [
            ("wait_for", ".runs"),
            ("tab_to", "nav.side a[href='#/new']"),
            ("press", "Enter"),
            ("wait_for", ".choice"),
            ("ask", "goal en", AUDIT),
            ("tab_to", "input[type=radio]"),
            ("press", "Space"),
            ("wait_for", ".preview pre"),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", title.format(2)),
            ("ask", "focus", "document.activeElement.className"),
            ("ask", "model en", AUDIT),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", title.format(3)),
            ("ask", "data en", AUDIT),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", title.format(4)),
            ("tab_to", epochs),
            ("press", "Ctrl+A"),
            ("keys", "many"),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", ".error-summary"),
            ("ask", "summary has focus", "document.activeElement.matches('.error-summary')"),
            ("ask", "invalid", f"document.querySelector(\"{epochs}\").getAttribute('aria-invalid')"),
            ("ask", "settings en", AUDIT),
            ("tab_to", ".error-summary button"),
            ("press", "Enter"),
            ("wait_for", f'document.activeElement == document.querySelector("{epochs}")'),
            ("press", "Ctrl+A"),
            ("keys", "3"),
            ("wait_for", "document.querySelector('.preview pre').textContent.includes('epochs = 3')"),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", title.format(5)),
            ("ask", "machine en", AUDIT),
            ("reload",),
            ("wait_for", title.format(5)),
            ("tab_to", "#next"),
            ("press", "Enter"),
            ("wait_for", "#start"),
            ("tab_to", "#run-name"),
            ("press", "Ctrl+A"),
            ("keys", "mine"),
            ("wait_for", "document.querySelector('.preview pre').textContent.includes('mine')"),
            ("ask", "review en", AUDIT),
            ("tab_to", "#start"),
            ("press", "Enter"),
            ("wait_for", "location.hash == '#/run/busy' && document.querySelector('.tab-panel .chart')"),
        ]
        seen = visit(url=address, actions=actions)
    assert seen.results["summary has focus"] and seen.results["invalid"] == "true"
    assert "step-title" in seen.results["focus"]
    check(seen, address)
    path = studio.recipes / "mine.py"
    assert started == [(str(path.resolve()), "mine")]
    assert dict(read_recipe_text(path).values) == {"stage.finetune.epochs": 3.0}
    assert load_config(str(path), []).stage["finetune"].epochs == 3.0


@contextlib.contextmanager
def growing(path):
    """Lets a run write a line of metrics again and again."""
    ended = threading.Event()

    def write():
        for step in itertools.count(31):
            with path.open("a") as file:
                file.write(metrics([step]))
            if ended.wait(0.2):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_run_grows_and_a_chat_answers(studio, monkeypatch, tmp_path):
    """New lines of metrics reach the page without a reload; a chat takes two pictures and streams."""
    start = studio.tasks.start

    def with_fake(kind, command, about, environment=None):
        def fake(folder):
            command(folder)
            (folder / "compiled").touch()
            return [sys.executable, "-S", str(FAKE_SERVE), str(folder)]

        return start(kind, fake, about, environment)

    monkeypatch.setattr(studio.tasks, "start", with_fake)
    pictures = [str(tmp_path / f"{name}.png") for name in "ab"]
    for path in pictures:
        Image.new("RGB", (30, 20), "red").save(path)
    caption = "document.querySelector('.chart figcaption').textContent"
    with serving(studio) as address, growing(studio.root / "busy" / "metrics.jsonl"):
        base = address.partition("#")[0]
        actions = [
            ("wait_for", ".runs"),
            *opened(address, "run"),
            ("run", f"window.before = {caption}"),
            ("wait_for", f"{caption} != window.before"),
            ("go", f"{base}#/chat/done"),
            ("wait_for", ".model .badge[data-state='ready']"),
            ("upload", "#add-pictures", pictures),
            ("wait_for", "document.querySelectorAll('.thumbs img').length == 2"),
            ("type", "#message", "what is it?"),
            ("press", "Return"),
            ("wait_for", "document.querySelector('.bubble.assistant .words')?.textContent == '2 pictures'"),
            ("wait_for", "document.querySelector('.bubble.assistant .muted')?.textContent.includes('336')"),
            ("click", ".bubble.assistant summary"),
            ("wait_for", ".bubble.assistant .tokens"),
            ("ask", "pictures", "document.querySelectorAll('.bubble.user img').length"),
            ("ask", "chat", AUDIT),
        ]
        try:
            seen = visit(url=address, actions=actions)
        finally:
            for task in studio.tasks.list():
                studio.tasks.cancel(task["id"]) if task["state"] == "running" else None
    assert seen.results["pictures"] == 2
    check(seen, address)
