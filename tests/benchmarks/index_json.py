"""How fast a file of conversations is indexed, beside `json.load` of the same file, and how much memory it takes.

  python -m tests.benchmarks.index_json
  python -m tests.benchmarks.index_json --records 665000 --rounds 3

Writes LLaVA records of about 1.2 kB to a temporary folder: as a list with ASCII text, as a list with text of which one
word in three is not ASCII, and as lines. The files are warm. In each round both run once, each in a process of its own.
"ratio" is the median over the rounds of (seconds of json.load / seconds of the index in the same round); for lines,
`json.loads` of each. The index checks every element of a list, and hashes the file, too. "peak" is by how much the
highest resident memory of the process grew (Linux), in sizes of the file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = ["what", "is", "the", "red", "circle", "left", "of"]
MORE = ["größe", "漢字", "🙂"]
FILES = {"ascii.json": False, "unicode.json": True, "ascii.jsonl": False}
RUN = """
import json, resource, sys, time
from pathlib import Path
from jaxvlm.data.sources.json_items import JsonItems
def load(path):
    with path.open() as file:
        return [json.loads(line) for line in file] if path.suffix == ".jsonl" else json.load(file)
run, path = {"index": JsonItems, "load": load}[sys.argv[1]], Path(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
records = len(run(path))
seconds = time.perf_counter() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([seconds, grown * 1024 / path.stat().st_size, records]))
"""


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="of each file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    print(f"{'file':14}{'MB':>8}{'index s':>10}{'load s':>10}{'ratio':>8}{'index peak':>12}{'load peak':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, unicode in FILES.items():
            path = Path(folder, name)
            write(path, args.records, unicode=unicode)
            rounds = [[measure(run, path) for run in ("index", "load")] for _ in range(args.rounds)]
            assert all(records == args.records for both in rounds for _, _, records in both)
            index, load = (statistics.median(both[i][0] for both in rounds) for i in (0, 1))
            ratio = statistics.median(both[1][0] / both[0][0] for both in rounds)
            peaks = [statistics.median(both[i][1] for both in rounds) for i in (0, 1)]
            size = path.stat().st_size / 1e6
            results[name] = {"megabytes": size, "index": index, "load": load, "ratio": ratio, "peaks": peaks}
            print(f"{name:14}{size:8.1f}{index:10.3f}{load:10.3f}{ratio:8.2f}{peaks[0]:12.2f}{peaks[1]:12.2f}")
    if args.json:
        print(json.dumps(results))
    return results


def measure(run: str, path: Path) -> list[float]:
    """Seconds, growth of the peak in sizes of the file, and records, of a process that does nothing else."""
    done = subprocess.run([sys.executable, "-c", RUN, run, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def write(path: Path, records: int, *, unicode: bool) -> None:
    """Writes a LLaVA file."""
    chance = random.Random(0)
    words = WORDS + MORE * unicode
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(500)]
    lines = path.suffix == ".jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.write("" if lines else "[\n")
        for i in range(records):
            turns = [{"from": ("human", "gpt")[j % 2], "value": chance.choice(texts)} for j in range(4)]
            record = {"id": f"{i:08d}", "image": f"coco/{i}.jpg", "conversations": turns}
            file.write(json.dumps(record, ensure_ascii=False) + ("\n" if lines or i == records - 1 else ",\n"))
        file.write("" if lines else "]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
