"""Worker processes: one for each core; they end with their parent."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from typing import Any


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool(begin: Callable[..., None], *arguments: Any) -> concurrent.futures.ProcessPoolExecutor:
    """A process for each core; each calls `begin(*arguments)` first.

    They are spawned, not forked: the runtimes of jax and tokenizers have threads by now.
    """
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(available_cores(), spawn, _begin, (begin, *arguments))


def _begin(begin: Callable[..., None], *arguments: Any) -> None:
    end_with_parent()
    begin(*arguments)


def end_with_parent() -> None:
    """Ends this process when its parent is gone: a killed parent would leave its workers running."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
