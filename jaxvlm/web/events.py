"""What happens in a run, as server-sent events: it only adds to what the other paths reply."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from jaxvlm.web.metrics_file import read_news
from jaxvlm.web.run_detail import detail
from jaxvlm.web.texts import without_nonfinite

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

POLL_SECONDS = 1.0
_STATE_POLLS = 2  # the heartbeat changes every two seconds
_QUIET_SECONDS = 15.0


def event_stream(studio: Studio, name: str, folder: Path, cursor: str) -> StreamingResponse:
    """The reply: `state` with what `api/run` replies, whenever that changes; `metrics` with lines since the cursor.

    Args:
      cursor: where the page has read the metrics up to.
    """
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(_events(studio, name, folder, cursor), media_type="text/event-stream", headers=headers)


async def _events(studio: Studio, name: str, folder: Path, cursor: str) -> AsyncIterator[str]:
    state, sent, polls = "", time.monotonic(), 0
    yield "retry: 3000\n\n"
    while not studio.closing and folder.is_dir():
        news = await run_in_threadpool(read_news, folder / "metrics.jsonl", cursor)
        if news.lines or news.reset:
            yield _event("metrics", {"lines": news.lines, "reset": news.reset}, news.cursor)
            sent = time.monotonic()
        is_behind, cursor = news.cursor != cursor and bool(news.lines), news.cursor
        if polls % _STATE_POLLS == 0:
            now = _to_json(await run_in_threadpool(detail, studio, name))
            if now != state:
                state, sent = now, time.monotonic()
                yield f"event: state\ndata: {now}\n\n"
        polls += 1
        if time.monotonic() - sent > _QUIET_SECONDS:
            sent = time.monotonic()
            yield ": nothing new\n\n"
        if not is_behind:
            await asyncio.sleep(POLL_SECONDS)


def _event(kind: str, value: Any, cursor: str) -> str:
    return f"id: {cursor}\nevent: {kind}\ndata: {_to_json(value)}\n\n"


def _to_json(value: Any) -> str:
    return json.dumps(without_nonfinite(value), ensure_ascii=True, separators=(",", ":"))
