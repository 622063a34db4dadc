"""Reports of a run: a progress bar, one JSON line a step, TensorBoard files, and a picture of the curves."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from tensorboardX import SummaryWriter

from jaxvlm import processes
from jaxvlm.files import replace_text
from jaxvlm.progress import progress_bar

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Writer:
    """Metrics of one stage; all processes fetch them, so that none runs ahead, and the first writes.

    `log` fetches the values of the previous call, so that the device has its next step before the host waits for
    the last.
    """

    def __init__(self, metrics: Path, tensorboard: Path, stage: str, *, first_step: int, steps: int):
        """Opens the files; drops lines of `stage` after `first_step`, left by a killed run."""
        self._stage = stage
        self._path = metrics
        kept = [line for line in read_metrics(self._path) if line["stage"] != stage or line["step"] <= first_step]
        self._writes = processes.index() == 0
        self._full = False  # whether the last write found the disk full
        self._told_memory = False
        if self._writes:
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self._path.open("a")
            self._board_folder = tensorboard / stage
            self._board = self._open_board(first_step + 1)
        self._bar = progress_bar(stage, steps, "step", initial=first_step, show=self._writes, delay=0.0)
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._time, self._step = time.perf_counter(), first_step

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Stores the scalars of a train step; writes the previous ones."""
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Waits for the last values and writes them."""
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        scalars = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        now = time.perf_counter()
        seconds = (now - self._time) / max(1, step - self._step)
        scalars |= {"step_seconds": seconds, "tokens_per_second": scalars["tokens"] / seconds}
        scalars |= self._memory()
        self.write(step, scalars)
        self._bar.set_postfix_str(f"loss {scalars['loss']:.4f}, {scalars['tokens_per_second']:,.0f} tokens/s", False)
        self._bar.update(step - self._step)
        self._time, self._step = now, step

    def _memory(self) -> dict[str, float]:
        """Peak memory of a device, if it reports that; CPUs do not. Printed once, written at each step."""
        used = jax.local_devices()[0].memory_stats() or {}
        if not {"peak_bytes_in_use", "bytes_limit"} <= used.keys():
            return {}
        peak, limit = used["peak_bytes_in_use"] / 2**30, used["bytes_limit"] / 2**30
        if not self._told_memory:
            self._say(f"memory of a device: {peak:.2f} of {limit:.2f} GiB at most so far")
        self._told_memory = True
        return {"peak_memory_gib": peak}

    def _say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._writes:
            self._bar.write(text)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars under their names to both files.

        On a full disk some forty lines are buffered, and written when there is space again.
        """
        if not self._writes:
            return
        try:
            self._file.write(json.dumps({"stage": self._stage, "step": step, **scalars}) + "\n")
            self._file.flush()
            if not self._board.file_writer.event_writer._worker.is_alive():
                # Its thread ends when it cannot write; then the queue would fill and block the run.
                self._board = self._open_board(step)
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
            self._full = False
        except OSError as error:
            if not self._full:
                print(f"\nERROR: metrics of step {step} cannot be written: {error}", file=sys.stderr, flush=True)
            self._full = True

    def _open_board(self, step: int) -> SummaryWriter:
        return SummaryWriter(str(self._board_folder), purge_step=step, max_queue=100)

    def evaluation(self, step: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Evaluates and writes the results, also above the bar; no step's time has the evaluation in it."""
        self.flush()
        scalars = evaluate()
        self.write(step, scalars)
        self._say(f"{self._stage} {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scalars.items()))
        self._time = time.perf_counter()

    def close(self) -> None:
        """Writes pending values and closes the files."""
        self.flush()
        self._bar.close()
        if self._writes:
            for file in (self._board, self._file):
                with contextlib.suppress(OSError):
                    file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; drops an incomplete last line of a killed run."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def plot_metrics(metrics: Path, picture: Path) -> None:
    """Plots the loss and every evaluated metric over the stages of a metrics.jsonl, one after another."""
    lines = read_metrics(metrics)
    evaluated = [
        name.removeprefix("heldout_") for line in lines for name in line if name.startswith(("heldout_", "suite_"))
    ]
    names = list(dict.fromkeys(["loss", *evaluated]))
    figure, panels = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), layout="constrained", squeeze=False)
    for name, axes in zip(names, panels[0], strict=True):
        _plot(axes, lines, name)
    if all(line["loss"] > 0 for line in lines if "loss" in line):
        panels[0, 0].set(yscale="log")
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _plot(axes: Any, lines: list[dict[str, Any]], name: str) -> None:
    """Plots one metric of training, and of the held-out set or of a benchmark as points."""
    offset, curves = 0, [(name, "training"), (f"heldout_{name}", "held out")]
    if name.startswith("suite_"):
        curves = [(name, "benchmark")]
    for number, stage in enumerate(dict.fromkeys(line["stage"] for line in lines)):
        own = [line for line in lines if line["stage"] == stage]
        color = f"C{number}"
        for key, label in curves:
            found = [(offset + line["step"], line[key]) for line in own if key in line]
            steps, values = np.array(found).T if found else np.zeros((2, 0))
            if label != "training":
                axes.plot(steps, values, "o--", color=color, label=f"{stage}: {label}" if found else None)
            elif found:
                axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
                axes.plot(steps, _smooth(values), color=color, label=f"{stage}: {label}")
        offset += max((line["step"] for line in own), default=0)
    axes.set(xlabel="step", ylabel=name.replace("_", " "))
    axes.legend()
    axes.grid(alpha=0.3)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the curve."""
    width = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
