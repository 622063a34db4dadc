"""Where the time of a step goes, by class of operation, from a trace of jax or torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

# The first that matches the name or the compiler's category of an operation. Libraries of products on GPUs: cutlass,
# nvjet and xmma (cuBLAS), gemm_fusion (XLA's Triton kernels).
CLASSES = {
    "attention": r"flash|fmha|splash|sdpa|attention|softmax_warp",
    "collectives": r"nccl|all-?gather|all-?reduce|reduce-?scatter|all-?to-?all|collective|^(send|recv)\b",
    "products": r"gemm|gemv|cutlass|nvjet|xmma|cublas|magma|\bdot|_dot_|convolution|matmul|linear|addmm|\bmm\b|\bbmm\b",
    "copies": r"memcpy|memset|^copy|transpose|concatenate|dynamic-(update-)?slice|gather|scatter|index",
}
OTHER = "other"  # element-wise operations, norms, reductions


class Event(NamedTuple):
    """An operation on a device; times in seconds."""

    line: str  # operations of one line follow or contain each other
    name: str
    start: float
    end: float


def read_jax_trace(folder: str) -> list[Event]:
    """The operations of the first device in a folder of `jax.profiler.trace`; on a CPU those of XLA's threads."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = sorted((plane for plane in planes if plane.name.startswith("/device:")), key=lambda plane: plane.name)
    devices = [plane for plane in devices if re.match(r"/device:(GPU|TPU):\d+", plane.name)]
    events = []
    for plane in devices[:1] or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if devices and not (line.name == "XLA Ops" or line.name.startswith("Stream")):
                continue
            for event in line.events:
                stats = dict(event.stats)
                if devices or "hlo_op" in stats:
                    name = f"{event.name} {stats.get('hlo_category', '')}".strip()
                    events.append(Event(line.name, name, event.start_ns * 1e-9, event.end_ns * 1e-9))
    return events


def shares(events: Iterable[Event]) -> dict[str, float]:
    """The share of the busy time of each class, largest first, and "idle", of the time from first to last.

    An operation that contains others, such as a loop, counts without them.
    """
    totals: dict[str, float] = defaultdict(float)
    lines: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        lines[event.line].append(event)
    first, last, spans = float("inf"), 0.0, []
    for line in lines.values():
        line.sort(key=lambda event: (event.start, -event.end))
        open_ends: list[tuple[float, str]] = []
        for event in line:
            while open_ends and open_ends[-1][0] <= event.start:
                open_ends.pop()
            seconds = event.end - event.start
            if open_ends:
                totals[open_ends[-1][1]] -= seconds
            kind = _class(event.name)
            totals[kind] += seconds
            open_ends.append((event.end, kind))
            spans.append((event.start, event.end))
            first, last = min(first, event.start), max(last, event.end)
    busy = sum(totals.values())
    if not busy:
        return {}
    covered, reached = 0.0, first
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    found = {kind: seconds / busy for kind, seconds in sorted(totals.items(), key=lambda item: -item[1])}
    return found | {"idle": 1 - covered / (last - first)}


def _class(name: str) -> str:
    text = name.lower()
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, text)), OTHER)
