"""Pages in a real browser: Chromium as QtWebEngine of the package PyQt6-WebEngine, without a screen.

It runs in a process of its own, so that nothing of Qt lives among the threads of jax::

    visit(page, scripts={"title": "document.title"}).results["title"]

A visit may do what a person does, with the mouse and the keyboard of the window, not with events made by a script::

    visit(url="http://127.0.0.1:7860/", actions=[
        ("wait_for", "h1"),
        ("click", "a[href='#/new']"),
        ("type", "#name", "quick-2"),
        ("press", "Enter"),
        ("wait_for", "location.hash == '#/run/quick-2'"),
        ("ask", "state", "document.querySelector('.badge').innerText"),
    ]).results["state"]
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SECONDS = 300  # for a visit; a page of 20 MB takes 10
_MOST_TABS = 300
_WAIT_SECONDS = 120  # for what an action waits for; what never comes costs them, on a busy machine nothing else
_TURN = "your turn\n"  # the other process goes on


@dataclasses.dataclass(frozen=True)
class Visit:
    """What a browser saw of a page."""

    loaded: bool
    requests: list[str]  # addresses asked for, the page's own first; data: URLs are none
    console: list[str]
    results: dict[str, Any]  # of the scripts


def visit(
    page: Path | None = None,
    *,
    url: str | None = None,
    actions: Sequence[tuple[Any, ...]] = (),
    scripts: dict[str, str] | None = None,
    hover: str | None = None,
    picture: Path | None = None,
    dark: bool = False,
    size: tuple[int, int] = (1280, 900),
    early: str = "",
    seconds: int = _SECONDS,
) -> Visit:
    """Opens a page.

    Args:
      page: an HTML file; or
      url: an address.
      actions: what is done in order, when the page is there:
        ("click", SELECTOR), ("type", SELECTOR, TEXT) after a click there, ("press", KEY) such as "Tab", "Shift+Tab",
        "Enter", ("tab_to", SELECTOR) by the Tab key alone, ("keys", TEXT) where the focus is,
        ("wait_for", SELECTOR_OR_EXPRESSION[, SECONDS]), ("upload", SELECTOR, [FILES]) where SELECTOR asks for files,
        ("reload",),
        ("go", ADDRESS), ("run", EXPRESSION), ("ask", NAME, EXPRESSION) into the results, ("resize", WIDTH, HEIGHT),
        ("picture", FILE), ("do", FUNCTION) of this process, without arguments, while the page stays as it is.
      scripts: expressions whose values are asked for, in order, after the actions and with the mouse in its place.
      hover: CSS selector of an element onto whose middle the mouse is moved.
      picture: of what the window shows at the end, as PNG.
      dark: the colour scheme that the page is told.
      size: of the window, in pixels.
      early: a script that runs in each document before its own.
      seconds: after which the browser is ended.
    """
    assert (page is None) != (url is None), "pass a page or an address"
    functions = [action[1] for action in actions if action[0] == "do"]
    order = {
        "url": url or page.resolve().as_uri(),
        "actions": [("do",) if action[0] == "do" else action for action in actions],
        "early": early,
        "scripts": scripts or {},
        "hover": hover,
        "picture": picture,
        "size": size,
    }
    # Root has no sandbox. The scheme: 0 is dark, 1 light; what Qt would take from the desktop.
    flags = f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={0 if dark else 1}"
    environment = os.environ | {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": flags,
        "LC_ALL": "C.UTF-8",
    }
    with tempfile.TemporaryFile("w+") as errors:
        browser = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        end = threading.Timer(seconds, browser.kill)
        end.start()
        try:
            answer = _converse(browser, order, functions)
        finally:
            end.cancel()
            browser.kill()
            browser.communicate()
        errors.seek(0)
        assert answer, f"the browser ended without an answer, or after {seconds} s:\n{errors.read()}"
    return Visit(**json.loads(answer))


def _converse(browser: subprocess.Popen[str], order: dict[str, Any], functions: Sequence[Any]) -> str:
    """Sends the order, and calls each function when the browser is there; returns the answer, "" if it has ended."""
    waiting = iter(functions)
    browser.stdin.write(json.dumps(order, default=str) + "\n")
    browser.stdin.flush()
    for line in browser.stdout:
        if line.startswith("{"):
            return line
        if line == _TURN:
            next(waiting)()
            browser.stdin.write(_TURN)
            browser.stdin.flush()
    return ""


def _serve(order: dict[str, Any]) -> dict[str, Any]:
    from PyQt6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
    from PyQt6.QtGui import QKeySequence
    from PyQt6.QtTest import QTest
    from PyQt6.QtWebEngineCore import (
        QWebEnginePage,
        QWebEngineProfile,
        QWebEngineScript,
        QWebEngineSettings,
        QWebEngineUrlRequestInterceptor,
    )
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    requests: list[str] = []
    console: list[str] = []
    files: list[str] = []  # that the next file window gives
    results: dict[str, Any] = {}

    class Interceptor(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):  # noqa: N802
            if info.requestUrl().scheme() not in ("data", "blob"):
                requests.append(info.requestUrl().toString())

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            console.append(f"{line}: {message}")

        def chooseFiles(self, mode, old, accepted):  # noqa: N802
            return files

    app = QApplication(["browser"])
    profile = QWebEngineProfile()
    interceptor = Interceptor()
    profile.setUrlRequestInterceptor(interceptor)
    page = Page(profile)
    if order["early"]:
        early = QWebEngineScript()
        early.setSourceCode(order["early"])
        early.setInjectionPoint(QWebEngineScript.InjectionPoint.DocumentCreation)
        early.setWorldId(QWebEngineScript.ScriptWorldId.MainWorld)
        page.scripts().insert(early)
    # As in browsers; else Qt would keep a request for the network from being seen.
    page.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)
    page.settings().setAttribute(QWebEngineSettings.WebAttribute.JavascriptCanAccessClipboard, True)
    view = QWebEngineView()
    view.setPage(page)
    view.resize(*order["size"])
    view.show()

    def wait(start):
        """What `start` gives to the function that it is handed."""
        loop, given = QEventLoop(), []
        start(lambda value=None: (given.append(value), loop.quit()))
        if not given:
            loop.exec()
        return given[0]

    def pause(milliseconds):
        wait(lambda done: QTimer.singleShot(milliseconds, done))

    def ask(script):
        guarded = (
            f"(() => {{ try {{ return JSON.stringify([{script}]) }} catch (error) {{ return String(error) }} }})()"
        )
        answer = wait(lambda done: page.runJavaScript(guarded, done))
        if not answer or not answer.startswith("["):
            raise ValueError(f"{script}: {answer or 'no answer, is it an expression?'}")
        return json.loads(answer)[0]

    def loads(begin):
        """Whether the load that `begin` begins succeeds."""

        def start(done):
            page.loadFinished.connect(done)
            begin()

        loaded = wait(start)
        page.loadFinished.disconnect()
        return loaded

    def go(address):
        here, there = page.url(), QUrl(address)
        without = QUrl.UrlFormattingOption.RemoveFragment
        if here.adjusted(without) == there.adjusted(without):  # of which Qt tells no end: nothing is loaded
            ask(f"(location.href = {json.dumps(address)}, null)")
        else:
            loads(lambda: page.load(there))

    def one(selector):
        return f"document.querySelector({json.dumps(selector)})"

    def middle(selector):
        ask(f"{one(selector)}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        pause(100)
        return QPoint(
            *map(int, ask(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({one(selector)}.getClientRects()[0])"))
        )

    def wait_for(what, seconds=_WAIT_SECONDS):
        # By trial, since a page may forbid eval: what no selector can be is an expression.
        parses = ask(f"(() => {{ try {{ {one(what)}; return true }} catch {{ return false }} }})()")
        script = f"Boolean({one(what) if parses else what})"
        end = time.monotonic() + seconds
        while not ask(script):
            if time.monotonic() > end:
                shown = ask("document.body.innerText.slice(0, 3000)")
                raise TimeoutError(f"{what} did not come; the page shows:\n{shown}\nconsole: {console}")
            pause(100)

    def click(selector):
        wait_for(selector)
        QTest.mouseClick(view.focusProxy(), Qt.MouseButton.LeftButton, pos=middle(selector))
        pause(50)

    def type_text(selector, text):
        click(selector)
        keys(text)

    def press(key):
        combination = QKeySequence(key)[0]
        QTest.keyClick(view.focusProxy(), combination.key(), combination.keyboardModifiers())
        pause(50)

    def tab_to(selector):
        for _ in range(_MOST_TABS):
            press("Tab")
            if ask(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise LookupError(f"{selector} was not reached by {_MOST_TABS} times Tab")

    def keys(text):
        QTest.keyClicks(view.focusProxy(), text)
        pause(50)

    def upload(selector, paths):
        files[:] = paths
        click(selector)

    def take_picture(path):
        # A frame of what is there now; the window's own may be older.
        ask("(requestAnimationFrame(() => requestAnimationFrame(() => { window.hasDrawn = true })), null)")
        wait_for("window.hasDrawn === true")
        ask("(delete window.hasDrawn, null)")
        pause(300)
        view.grab().save(path)

    def do():
        print(_TURN, end="", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            pause(20)
        sys.stdin.readline()

    def resize(width, height):
        view.resize(width, height)
        pause(200)

    verbs = {
        "click": click,
        "type": type_text,
        "press": press,
        "tab_to": tab_to,
        "keys": keys,
        "wait_for": wait_for,
        "upload": upload,
        "reload": lambda: loads(lambda: page.triggerAction(QWebEnginePage.WebAction.Reload)),
        "go": go,
        "run": lambda script: ask(f"(({script}), null)"),
        "ask": lambda name, script: results.update({name: ask(script)}),
        "resize": resize,
        "picture": take_picture,
        "do": do,
    }
    loaded = loads(lambda: page.load(QUrl(order["url"])))
    pause(300)  # what the page might still ask for, and a frame to draw
    for verb, *values in order["actions"]:
        verbs[verb](*values)
    if order["hover"]:
        point = middle(order["hover"])
        QTest.mouseMove(view.focusProxy(), QPoint(1, 1))
        QTest.mouseMove(view.focusProxy(), point)
        pause(200)
    results |= {name: ask(script) for name, script in order["scripts"].items()}
    if order["picture"]:
        take_picture(order["picture"])
    view.setPage(None)
    page.deleteLater()
    app.processEvents()
    return {"loaded": loaded, "requests": requests, "console": console, "results": results}


if __name__ == "__main__":
    answer = _serve(json.loads(sys.stdin.readline()))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # Qt's own way out is slow and may crash behind the answer
