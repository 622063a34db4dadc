"""Pages in a real browser: Chromium as QtWebEngine of the package PyQt6-WebEngine, without a screen.

It runs in a process of its own, so that nothing of Qt lives among the threads of jax::

    visit(page, scripts={"title": "document.title"}).results["title"]
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SECONDS = 120  # for a visit; a page of 20 MB takes 10


@dataclasses.dataclass(frozen=True)
class Visit:
    """What a browser saw of a page."""

    loaded: bool
    requests: list[str]  # addresses asked for, the page's own first; data: URLs are none
    console: list[str]
    results: dict[str, Any]  # of the scripts


def visit(
    page: Path,
    *,
    scripts: dict[str, str] | None = None,
    hover: str | None = None,
    picture: Path | None = None,
    dark: bool = False,
    size: tuple[int, int] = (1280, 900),
) -> Visit:
    """Opens a page.

    Args:
      page: an HTML file.
      scripts: expressions whose values are asked for, in order, when the page is there and the mouse in its place.
      hover: CSS selector of an element onto whose middle the mouse is moved.
      picture: of what the window shows at the end, as PNG.
      dark: the colour scheme that the page is told.
      size: of the window, in pixels.
    """
    order = {
        "page": str(page.resolve()),
        "scripts": scripts or {},
        "hover": hover,
        "picture": picture and str(picture),
        "size": size,
    }
    # Root has no sandbox. The scheme: 0 is dark, 1 light; what Qt would take from the desktop.
    flags = f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={0 if dark else 1}"
    environment = os.environ | {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": flags,
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env=environment,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"the browser ended with code {done.returncode}:\n{done.stderr}"
    return Visit(**json.loads(done.stdout.splitlines()[-1]))


def _serve(order: dict[str, Any]) -> dict[str, Any]:
    from PyQt6.QtCore import QEventLoop, QPoint, QTimer, QUrl
    from PyQt6.QtTest import QTest
    from PyQt6.QtWebEngineCore import (
        QWebEnginePage,
        QWebEngineProfile,
        QWebEngineSettings,
        QWebEngineUrlRequestInterceptor,
    )
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    requests: list[str] = []
    console: list[str] = []

    class Interceptor(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):  # noqa: N802
            if info.requestUrl().scheme() != "data":
                requests.append(info.requestUrl().toString())

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            console.append(f"{line}: {message}")

    app = QApplication(["browser"])
    profile = QWebEngineProfile()
    interceptor = Interceptor()
    profile.setUrlRequestInterceptor(interceptor)
    page = Page(profile)
    # As in browsers; else Qt would keep a request for the network from being seen.
    page.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)
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

    def load(done):
        page.loadFinished.connect(done)
        page.load(QUrl.fromLocalFile(order["page"]))

    loaded = wait(load)
    pause(300)  # what the page might still ask for, and a frame to draw
    if order["hover"]:
        element = f"document.querySelector({json.dumps(order['hover'])})"
        ask(f"{element}.scrollIntoView({{block: 'center'}})")
        pause(200)
        box = ask(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getClientRects()[0])")
        QTest.mouseMove(view.focusProxy(), QPoint(1, 1))
        QTest.mouseMove(view.focusProxy(), QPoint(*map(int, box)))
        pause(200)
    results = {name: ask(script) for name, script in order["scripts"].items()}
    if order["picture"]:
        pause(300)
        view.grab().save(order["picture"])
    view.setPage(None)
    page.deleteLater()
    app.processEvents()
    return {"loaded": loaded, "requests": requests, "console": console, "results": results}


if __name__ == "__main__":
    answer = _serve(json.load(sys.stdin))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # Qt's own way out is slow and may crash behind the answer
