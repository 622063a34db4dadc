"""How long `inspect_data check` takes for LLaVA's 665,000 records, in how much memory, and how long the second time.

  python -m tests.benchmarks.check
  python -m tests.benchmarks.check --records 20000

The records are made by rule: the mixture of tests/benchmarks/packing.py, turns of its lengths in words of English-like
spelling, an id and an image each. 20,000 image files (JPEG, small, but with real headers) stand for the 336,000 of
LLaVA; a file that is read before is in memory, as all would be on a machine with enough of it. The tokenizer is one of
32,000 tokens, trained on part of the text. The memory is that of the command and its workers together (PSS: what
they share is counted once).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from jaxvlm.data.text.tokenizer import train_tokenizer
from tests.benchmarks.packing import make_mixture

IMAGES = 20_000
RECIPE = """
from configs import base

def get_config():
    c = base.get_config()
    c.stages = ("finetune",)
    stage = c.stage.finetune = base.stage()
    stage.data.source, stage.data.media.units = "{folder}/records.json", 3
    c.tokenizer.source = "{folder}/tokenizer"
    return c
"""


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=665_000, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes = make_data(folder, args.records)
        where = f"{len(os.sched_getaffinity(0))} CPUs, load {os.getloadavg()[0]:.1f} at the start"
        print(f"{args.records:,} records, {megabytes:,.0f} MB of JSON; {where}\n")
        print("        seconds  records/s  peak GiB", flush=True)
        result: dict[str, Any] = {"records": args.records}
        for turn in ("first", "second"):
            seconds, peak = run_check(folder)
            result[turn] = {"seconds": seconds, "peak_bytes": peak}
            print(f"{turn:>6} {seconds:>8.1f} {args.records / seconds:>10,.0f} {peak / 2**30:>9.2f}", flush=True)
    if args.json:
        print(json.dumps(result))
    return result


def make_data(folder: Path, count: int) -> float:
    """Writes records, images, tokenizer and recipe; returns the megabytes of the records."""
    random = np.random.default_rng(0)
    words = np.array(_words(random))
    (folder / "images").mkdir()
    for number in range(min(IMAGES, count)):
        pixels = random.integers(0, 256, (1, 1, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(folder / "images" / f"{number}.jpg")
    mixture = make_mixture(count, 2048)
    count = len(mixture.lengths)  # rounded for each source
    text_tokens = mixture.lengths - 35 - 576 * mixture.images
    sample: list[str] = []
    with (folder / "records.json").open("w") as file:
        file.write("[")
        for number, place in enumerate(random.permutation(count)):
            tokens = max(int(text_tokens[place] / 1.3), 6)  # words
            rounds = 1 + tokens // 60
            spoken = [" ".join(random.choice(words, max(1, tokens // (2 * rounds)))) for _ in range(2 * rounds)]
            if len(sample) < 20_000:
                sample.extend(spoken)
            turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(spoken)]
            record: dict[str, Any] = {"id": str(number), "conversations": turns}
            if mixture.images[place]:
                turns[0]["value"] = f"<image>\n{turns[0]['value']}"
                record["image"] = f"images/{number % IMAGES}.jpg"
            file.write(f"{',' if number else ''}\n{json.dumps(record)}")
        file.write("\n]\n")
    train_tokenizer(sample, 32_000).save_pretrained(folder / "tokenizer")
    (folder / "recipe.py").write_text(RECIPE.format(folder=folder))
    return (folder / "records.json").stat().st_size / 1e6


def _words(random: np.random.Generator) -> list[str]:
    """20,000 words of one to four syllables, the first by far the most frequent ones."""
    syllables = [c + v + e for c in "bcdfghlmnprstvw" for v in "aeiou" for e in ("", "n", "r", "s", "t")]
    made = ["".join(random.choice(syllables, 1 + int(random.integers(0, 4)))) for _ in range(20_000)]
    rank = 1 / np.arange(1, len(made) + 1)
    return list(random.choice(made, 200_000, p=rank / rank.sum()))


def run_check(folder: Path) -> tuple[float, int]:
    """Seconds and peak bytes of the command; raises if it fails."""
    environment = os.environ | {"JAXVLM_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxvlm.inspect_data", "check", "--config", str(folder / "recipe.py")]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(folder / "out")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak = [0]
    watch = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak), daemon=True)
    watch.start()
    printed, _ = process.communicate()
    if process.returncode not in (0, 2):  # 2: some are longer than a row
        raise RuntimeError(printed.decode()[-2000:])
    return time.perf_counter() - began, peak[0]


def _watch(process: psutil.Process, peak: list[int]) -> None:
    while True:
        total = 0
        try:
            for one in [process, *process.children(recursive=True)]:
                total += one.memory_full_info().pss
        except psutil.Error:
            if not process.is_running():
                return
        peak[0] = max(peak[0], total)
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
