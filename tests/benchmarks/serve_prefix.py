"""Many questions about one image: served with the beginnings of prompts cached, and without, on this machine's CPU.

  python -m tests.benchmarks.serve_prefix
  python -m tests.benchmarks.serve_prefix --model tiny --questions 8 --rounds 1 --json

A LLaVA with random weights reads an image first, as all LLaVAs do: all questions about an image share the system
message and the image's features. Each round asks about an image that no other has, with the cache of beginnings and
without, in turn; the features of the image are cached in both, so that the encoder runs once. The answers have one
token each, or the share of the prompt would depend on their length. That both answer alike is tested elsewhere.

Numbers are medians over the rounds; "ratio" is the median over the rounds of (without / with).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxvlm.data.records import Record, Turn
from jaxvlm.serving.limits import Limits
from jaxvlm.serving.scheduler import Scheduler
from tests.benchmarks.serve import QUESTIONS, SIZES, ask_all, make_engine, make_questions

KINDS = ("with", "without")
MEASURES = ("seconds", "first_token_seconds", "cpu_seconds")


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="large_images", metavar="|".join(SIZES))
    parser.add_argument("--questions", type=int, default=20, help="about each image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(Path(folder), args.model, tokens=320)
        limits = Limits(slots=2, steps=1)
        schedulers = {
            "with": Scheduler(engine, limits),
            "without": Scheduler(engine, dataclasses.replace(limits, prefix_cache_bytes=0)),
        }
        rounds = measure(schedulers, args.questions, args.rounds)
    stats = schedulers["with"].stats()
    result = {
        "model": args.model,
        "questions": args.questions,
        "rounds": args.rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "load_at_start": load,
        "cached_share": stats.cached_tokens / stats.prompt_tokens,
        "prefix_cache_bytes": stats.prefix_cache_bytes,
        **{name: {kind: statistics.median(r[kind][name] for r in rounds) for kind in KINDS} for name in MEASURES},
        "ratio": {name: statistics.median(r["without"][name] / r["with"][name] for r in rounds) for name in MEASURES},
    }
    print(report(result), flush=True)
    if args.json:
        print(json.dumps(result))
    return result


def measure(schedulers: dict[str, Scheduler], questions: int, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Of each round the measures with and without the cache."""
    for scheduler in schedulers.values():
        scheduler.start()
    measured = []
    for number, (like, _) in enumerate(make_questions(rounds + 1, "1")):
        asked = [(about(like, which), 1) for which in range(questions)]
        found = {kind: ask_all(schedulers[kind], asked, 1) for kind in KINDS}
        for values in found.values():
            values["seconds"] = questions / values["tokens_per_second"]
        measured += [found] if number else []  # the first is the warm-up
    for scheduler in schedulers.values():
        scheduler.close(0)
    return measured


def about(like: Record, number: int) -> Record:
    """A question about the image of a record."""
    text = f"<image>\n{QUESTIONS[number % len(QUESTIONS)]} {number}"
    return dataclasses.replace(like, turns=(Turn("user", text),))


def report(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"{result['model']}: {result['questions']} questions about an image; {result['cpus']} CPUs, load "
        f"{result['load_at_start']:.1f} at the start",
        f"{result['cached_share']:.0%} of the prompts' tokens were cached, "
        f"{result['prefix_cache_bytes'] / 2**20:.1f} MiB at the end",
        "",
        "                     with  without  ratio",
    ]
    for name, words in zip(MEASURES, ("all questions, s", "first token, s", "CPU time, s"), strict=True):
        kinds = "".join(f"{result[name][kind]:>9.3f}" for kind in KINDS)
        lines.append(f"{words:<16}{kinds}  {result['ratio'][name]:>5.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
