"""Measures jaxvlm on this machine's accelerator, beside transformers and torch where they are installed.

  python -m tests.benchmarks.accelerator --minutes 8 --out DIR
  python -m tests.benchmarks.accelerator --minutes 4 --out DIR --only lora decode

On a GPU or TPU the models have published sizes and random weights; on a CPU tiny ones take their place, as a rehearsal
of the same code. tests/benchmarks/accelerator.md says what is measured, how, and what a bare machine needs.

DIR gets results.json and table.md, written again after every measurement, and log.txt with the workers' own output. A
measurement that does not fit into memory is repeated with the next smaller setting. When the minutes are over the
program ends with what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.accelerator.measurements import MEASUREMENTS, Measurement, Setting
from tests.benchmarks.accelerator.peaks import find_peak
from tests.benchmarks.accelerator.process import OutOfMemoryError, OutOfTimeError, Worker, WorkerError
from tests.benchmarks.accelerator.report import Results

OURS, THEIRS, COMPILED = "jaxvlm", "transformers", "transformers, torch.compile"
BLOCK_SECONDS = 3.0  # that a block of steps should take, before the other side has its turn
MOST_IN_BLOCK = 10


def main(argv: list[str]) -> Results:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8, help="after which it ends (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of steps of each side (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="measure jaxvlm only")
    parser.add_argument("--peak-tflops", type=float, help="bfloat16 of a device that the table of peaks lacks")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "log.txt", "w", encoding="utf-8") as log:
        bench = Bench(args, deadline, log)
        try:
            bench.run()
        except OutOfTimeError:
            bench.results.note(f"the {args.minutes:g} minutes are over; what is above was measured")
        bench.results.save()
    print(f"\n{bench.results.table()}\n\n{args.out / 'results.json'}")
    return bench.results


class Bench:
    """The order of things: who runs when, and what is done when something does not fit."""

    def __init__(self, args: argparse.Namespace, deadline: float, log: IO[str]):
        self._args, self._deadline, self._log = args, deadline, log
        self.results = Results(args.out, {})
        self._tiny = False

    def run(self) -> None:
        """All measurements."""
        about = self._find_device()
        compared = not self._args.alone and self._can_compare(about)
        for name in self._args.only:
            measurement = MEASUREMENTS[name]
            with self._survived(name):
                (self._train if measurement.is_training else self._decode)(measurement, compared)
        if compared and "lora" in self._args.only:
            with self._survived("torch.compile"):
                self._compiled(MEASUREMENTS["lora"])

    def _find_device(self) -> dict[str, Any]:
        with self._worker(OURS) as worker:
            about = worker.ask("describe")
            self._tiny = about["platform"] == "cpu"
            peak = find_peak(about["kind"])
            about["peak_flops"] = peak.flops if peak else None
            about["peak_bandwidth"] = peak.bandwidth if peak else None
            if self._tiny:
                about["peak_flops"] = worker.ask("matmul")
        if self._args.peak_tflops:
            about["peak_flops"] = self._args.peak_tflops * 1e12
        about |= {"python": platform.python_version(), "driver": _driver()}
        self.results.about = about
        self.results.note(f"{about['devices']} x {about['kind']}; driver {about['driver'] or '-'}; {about['versions']}")
        if self._tiny:
            self.results.note("no accelerator: a rehearsal with tiny models; the peak is that of a matrix product here")
        elif about["peak_flops"] is None:
            self.results.note("the peak of this device is not known: no share of it (--peak-tflops gives it)")
        return about

    def _can_compare(self, about: dict[str, Any]) -> bool:
        missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
        if missing:
            self.results.note(f"not compared with torch: {', '.join(missing)} not installed")
            return False
        if about["platform"] not in ("gpu", "cuda", "cpu"):
            self.results.note(f"not compared with torch, which has no {about['platform']} here")
            return False
        if about["devices"] > 1:
            self.results.note("not compared with torch, which would use one device; hide the others to compare")
            return False
        with self._worker(THEIRS) as worker:
            try:
                about["theirs"] = worker.ask("describe")
            except WorkerError as error:
                self.results.note(f"not compared with torch: {error}")
                return False
        self.results.note(f"compared with {about['theirs']['versions']}")
        if about["theirs"]["kind"] == "cpu" and not self._tiny:
            self.results.note("not compared with torch, which finds no GPU")
            return False
        return True

    @contextlib.contextmanager
    def _worker(self, side: str) -> Iterator[Worker]:
        worker = Worker(side, self._deadline, self._log)
        try:
            yield worker
        finally:
            worker.close()

    @contextlib.contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        """A measurement that fails is named, and the others go on."""
        try:
            yield
        except OutOfTimeError:
            raise
        except WorkerError as error:
            self.results.note(f"{name}: {error}")

    def _open(
        self, side: str, measurement: Measurement, settings: list[Setting], kinds: tuple[str, ...] = (), **more: Any
    ) -> tuple[Worker, Setting, dict[str, Any]]:
        """A worker with the first setting that fits, after a run of each kind (`kinds`: of these) to warm up."""
        for setting in settings:
            worker = Worker(side, self._deadline, self._log)
            try:
                made = worker.ask("build", measurement=measurement.name, setting=vars(setting), tiny=self._tiny, **more)
                for kind in kinds or measurement.kinds:
                    worker.ask("run", kind=kind, count=1)
                return worker, setting, made
            except OutOfMemoryError as error:
                worker.close()
                self.results.note(f"{measurement.name}, {side}: {setting} does not fit ({str(error)[:120]})")
            except BaseException:
                worker.close()
                raise
        raise OutOfMemoryError(f"no setting fits {side}")

    def _train(self, measurement: Measurement, compared: bool) -> None:
        ours, setting, made = self._open(OURS, measurement, measurement.settings)
        theirs = None
        try:
            self._begin(ours, OURS, measurement, setting, made, made)
            if compared:
                ours, theirs = self._open_beside(ours, measurement, setting, made)
            for _ in range(self._args.rounds - 1 if theirs is None else self._args.rounds):
                for worker, side in ((theirs, THEIRS), (ours, OURS)):
                    for kind in measurement.kinds if worker is not None else ():
                        self._block(worker, side, measurement, kind)
        finally:
            for worker in (ours, theirs):
                if worker is not None:
                    worker.close()
        self._print(measurement)

    def _open_beside(
        self, ours: Worker, measurement: Measurement, setting: Setting, made: dict[str, Any]
    ) -> tuple[Worker | None, Worker | None]:
        """Their worker beside ours, or alone, after all blocks of ours, where both do not fit."""
        same = [Setting(setting.rows, "-", False), Setting(setting.rows, "-", True)]
        try:
            theirs, theirs_setting, theirs_made = self._open(THEIRS, measurement, same[:1])
            left: Worker | None = ours
        except OutOfMemoryError:
            self.results.note(f"{measurement.name}: both do not fit at once; they are measured one after the other")
            for _ in range(self._args.rounds):
                for kind in measurement.kinds:
                    self._block(ours, OURS, measurement, kind)
            ours.close()
            left = None
            smaller = [
                Setting(rows, "-", saves) for rows in measurement.rows if rows < setting.rows for saves in (False, True)
            ]
            try:
                theirs, theirs_setting, theirs_made = self._open(THEIRS, measurement, same + smaller)
            except WorkerError as error:
                self.results.note(f"{measurement.name}, {THEIRS}: {error}")
                return None, None
        except WorkerError as error:
            self.results.note(f"{measurement.name}, {THEIRS}: {error}")
            return ours, None
        for key in ("parameters", "trained"):
            if theirs_made[key] != made[key]:
                self.results.note(f"{measurement.name}: {key} differ, ours {made[key]:,}, theirs {theirs_made[key]:,}")
        self._begin(theirs, THEIRS, measurement, theirs_setting, theirs_made, made)
        return left, theirs

    def _begin(
        self,
        worker: Worker,
        side: str,
        measurement: Measurement,
        setting: Setting,
        made: dict[str, Any],
        ours: dict[str, Any],
    ) -> None:
        """The rows of a side, with their first block, memory and trace."""
        for kind in measurement.kinds:
            row, sizes = self.results.row(measurement.name, kind, side), made["kinds"][kind]
            work = ours["kinds"][kind]
            row |= {"rows": setting.rows, "setting": vars(setting), "devices": made["devices"]}
            row |= {name: sizes[name] for name in ("tokens", "samples", "positions", "steps")}
            row["flops"] = work["flops"] * sizes["tokens"] / work["tokens"]  # of the model, whoever computes it
            row |= {"compile_seconds": made.get("compile_seconds"), "parameters": made["parameters"]}
            self._block(worker, side, measurement, kind)
        peak = worker.ask("peak")
        for kind in measurement.kinds:
            self.results.row(measurement.name, kind, side)["peak_bytes"] = peak
            self._trace(worker, side, measurement, kind)

    def _trace(self, worker: Worker, side: str, measurement: Measurement, kind: str) -> None:
        """Where the time goes; a machine may forbid it."""
        try:
            self.results.row(measurement.name, kind, side)["trace"] = worker.ask("trace", kind=kind)
        except OutOfTimeError:
            raise
        except WorkerError as error:
            self.results.note(f"no trace of {measurement.name}, {side}: {error}")
        self.results.save()

    def _block(self, worker: Worker, side: str, measurement: Measurement, kind: str) -> None:
        """A block of steps."""
        row = self.results.row(measurement.name, kind, side)
        last = row["seconds"][-1] if row["seconds"] else None
        if last is None:
            last = worker.ask("run", kind=kind, count=1)[0]["seconds"]
        count = max(1, min(MOST_IN_BLOCK, int(BLOCK_SECONDS / last)))
        for run in worker.ask("run", kind=kind, count=count):
            row["seconds"].append(run["seconds"])
            row["loss"] = run["loss"]
        self.results.save()

    def _decode(self, measurement: Measurement, compared: bool) -> None:
        for side in (OURS, THEIRS) if compared else (OURS,):
            with self._survived(f"{measurement.name}, {side}"), self._worker(side) as worker:
                made = worker.ask("build", measurement=measurement.name, setting=None, tiny=self._tiny)
                for kind in measurement.kinds:
                    with self._survived(f"{measurement.name} of {kind}, {side}"):
                        start = time.monotonic()
                        worker.ask("run", kind=kind, count=1)
                        warm = time.monotonic() - start
                        runs = worker.ask("run", kind=kind, count=self._args.rounds)
                        self._answers(side, measurement, kind, runs, made, warm)
                        self.results.row(measurement.name, kind, side)["peak_bytes"] = worker.ask("peak")
                        self._trace(worker, side, measurement, kind)
        self._print(measurement)

    def _answers(
        self, side: str, measurement: Measurement, kind: str, runs: list[dict], made: dict[str, Any], warm: float
    ) -> None:
        row = self.results.row(measurement.name, kind, side)
        ours = self.results.row(measurement.name, kind, OURS)
        row |= {"rows": int(kind), "samples": int(kind), "steps": 1, "devices": made["devices"]}
        row |= {"tokens": runs[0]["tokens"], "bytes": runs[0].get("bytes", ours.get("bytes"))}
        row["seconds"] = [run["seconds"] for run in runs]
        row["prompt_seconds"] = [run["prompt_seconds"] for run in runs]
        first = max(0.0, warm - runs[0]["seconds"] - runs[0]["prompt_seconds"])
        row["compile_seconds"] = first if side == OURS else None
        self.results.save()

    def _compiled(self, measurement: Measurement) -> None:
        """Their step once more, compiled, as this takes longest to begin."""
        eager = self.results.row(measurement.name, "full", THEIRS)
        if not eager["seconds"]:
            return
        settings = [Setting(**eager["setting"])]
        worker, setting, made = self._open(THEIRS, measurement, settings, ("full",), more={"compile": True})
        try:
            row = self.results.row(measurement.name, "full", COMPILED)
            row |= {key: eager[key] for key in ("rows", "setting", "devices", "tokens", "samples", "flops", "steps")}
            for _ in range(self._args.rounds):
                self._block(worker, COMPILED, measurement, "full")
        finally:
            worker.close()

    def _print(self, measurement: Measurement) -> None:
        left = max(0.0, self._deadline - time.monotonic())
        print(f"{measurement.name}: done, {left:.0f} s left", flush=True)


def _driver() -> str:
    """Of an NVIDIA GPU; "" elsewhere."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
