"""Paths of runs: the table, one run, its curves and its log; start, stop, queue; tasks; comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jaxvlm.web import control
from jaxvlm.web.compare import MOST_RUNS, compare
from jaxvlm.web.curves import csv_lines, read_curves
from jaxvlm.web.events import event_stream
from jaxvlm.web.logs import read_log, search_log
from jaxvlm.web.messages import Reply, body_of, field, get, post, query, query_number
from jaxvlm.web.metrics_file import end_cursor, read_news
from jaxvlm.web.paths import run_folder
from jaxvlm.web.pictures import list_pictures, picture_reply
from jaxvlm.web.problem import Problem
from jaxvlm.web.run_detail import detail, lost_now
from jaxvlm.web.run_list import list_runs
from jaxvlm.web.run_state import log_file
from jaxvlm.web.settings import list_settings

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_POINTS, _FEWEST_POINTS, _MOST_POINTS = 2000, 10, 20_000
_COMPARED_POINTS = 1000
_LOG_BYTES, _MOST_LOG_BYTES = 2**16, 2**21


def routes(studio: Studio) -> list[Route]:
    """The routes of this file."""
    return [*_reading(studio), *_curves(studio), *_changing(studio), *_queue(studio), *_tasks(studio)]


def _reading(studio: Studio) -> list[Route]:
    def run(request: Request) -> Reply:
        name = query(request, "run")
        run_folder(studio, name)
        return Reply(detail(studio, name))

    def log(request: Request) -> Reply:
        path = log_file(run_folder(studio, query(request, "run")))
        end = query_number(request, "end", 0, 0, 2**53) if "end" in request.query_params else None
        piece = read_log(path, end, query_number(request, "bytes", _LOG_BYTES, 1, _MOST_LOG_BYTES))
        return Reply(piece | {"matches": search_log(path, query(request, "search", "")[:1000])})

    def settings(request: Request) -> Reply:
        folder, other = run_folder(studio, query(request, "run")), query(request, "other", "")
        found = list_settings(folder, run_folder(studio, other) if other else None)
        return Reply({"settings": found, "other": other or None})

    def file(request: Request) -> Response:
        folder, name = run_folder(studio, query(request, "run")), query(request, "name")
        if name not in list_pictures(folder):
            raise Problem(404, "no_picture", f"the run has no picture {name!r}", name=name)
        return picture_reply(folder / name)

    def compared(request: Request) -> Reply:
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not 1 <= len(names) <= MOST_RUNS:
            raise Problem(422, "bad_field", f"compare takes 1 to {MOST_RUNS} runs; found {len(names)}", field="run")
        for name in names:
            run_folder(studio, name)
        points = query_number(request, "points", _COMPARED_POINTS, _FEWEST_POINTS, _MOST_POINTS)
        return Reply(compare(studio, names, points))

    return [
        get("/api/runs", lambda _: Reply(list_runs(studio))),
        get("/api/run", run),
        get("/api/run/log", log),
        get("/api/run/settings", settings),
        get("/api/run/file", file),
        get("/api/compare", compared),
    ]


def _curves(studio: Studio) -> list[Route]:
    def curves(request: Request) -> Reply:
        path = run_folder(studio, query(request, "run")) / "metrics.jsonl"
        return Reply(read_curves(path, query_number(request, "points", _POINTS, _FEWEST_POINTS, _MOST_POINTS)))

    def table(request: Request) -> Response:
        path = run_folder(studio, query(request, "run")) / "metrics.jsonl"
        headers = {"content-disposition": 'attachment; filename="metrics.csv"'}
        return StreamingResponse(csv_lines(path), media_type="text/csv; charset=utf-8", headers=headers)

    def metrics(request: Request) -> Reply:
        path = run_folder(studio, query(request, "run")) / "metrics.jsonl"
        news = read_news(path, query(request, "after"))
        return Reply({"cursor": news.cursor, "reset": news.reset, "lines": news.lines})

    def events(request: Request) -> Response:
        name = query(request, "run")
        folder = run_folder(studio, name)
        if request.method == "HEAD":  # its reply has no body that could end
            return Response(media_type="text/event-stream")
        # The header is the browser's, when it connects again; the parameter is the page's, of its curves.
        cursor = request.headers.get("last-event-id") or query(request, "after", "")
        return event_stream(studio, name, folder, cursor or end_cursor(folder / "metrics.jsonl"))

    return [
        get("/api/run/curves", curves),
        get("/api/run/curves.csv", table),
        get("/api/run/metrics", metrics),
        get("/api/run/events", events),
    ]


def _changing(studio: Studio) -> list[Route]:
    def start(request: Request) -> Reply:
        body = body_of(request)
        when = field(body, "when", str, "now")
        if when not in ("now", "queue"):
            raise Problem(422, "bad_field", f'when is "now" or "queue"; found {when!r:.50}', field="when")
        run = control.start_run(
            studio,
            field(body, "recipe", str),
            field(body, "name", str),
            field(body, "stage", str, None),
            queued=when == "queue",
            devices=field(body, "devices", list, None),
            share=field(body, "share", bool, False),
        )
        return Reply({"run": run})

    def stop(request: Request) -> Reply:
        return Reply(control.stop_run(studio, field(body_of(request), "run", str)))

    def kill(request: Request) -> Reply:
        body = body_of(request)
        name, confirmed = field(body, "run", str), field(body, "confirmed", bool, False)
        return Reply(control.kill_run(studio, name, lambda: lost_now(studio, name), confirmed=confirmed))

    def resume(request: Request) -> Reply:
        body = body_of(request)
        share = field(body, "share", bool, False)
        return Reply({"run": control.resume_run(studio, field(body, "run", str), share=share)})

    return [
        post("/api/runs/start", start),
        post("/api/run/stop", stop),
        post("/api/run/kill", kill),
        post("/api/run/resume", resume),
    ]


def _queue(studio: Studio) -> list[Route]:
    def move(request: Request) -> Reply:
        body = body_of(request)
        studio.queue.move(field(body, "id", int), field(body, "place", int))
        return Reply(studio.queue.to_dict())

    def remove(request: Request) -> Reply:
        studio.queue.remove(field(body_of(request), "id", int))
        return Reply(studio.queue.to_dict())

    return [
        get("/api/queue", lambda _: Reply(studio.queue.to_dict() | {"gpus": control.gpus()})),
        post("/api/queue/move", move),
        post("/api/queue/remove", remove),
    ]


def _tasks(studio: Studio) -> list[Route]:
    def cancel(request: Request) -> Reply:
        task = field(body_of(request), "id", str)
        studio.tasks.cancel(task)
        return Reply(studio.tasks.get(task))

    return [
        get("/api/task", lambda request: Reply(studio.tasks.get(query(request, "id")))),
        get("/api/tasks", lambda _: Reply({"tasks": studio.tasks.list()})),
        post("/api/task/cancel", cancel),
    ]
