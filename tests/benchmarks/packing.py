"""How full our rows are and how long the plan takes, beside best fit in windows, first fit, and what is possible.

  python -m tests.benchmarks.packing
  python -m tests.benchmarks.packing --samples 66500 --rounds 1

The lengths are a model of LLaVA-1.5's mixture of 665k conversations, not that data itself: the sizes of the sources are
those of its paper (arXiv:2310.03744, appendix: questions about one image are merged into one conversation, ten regions
of each image of Visual Genome, less than ten rounds of RefCOCO, long conversations of ShareGPT cut), and the tokens of
text are log-normal in each source. Their medians were reckoned from rounds times tokens a round before anything was
packed; see SOURCES. As they are estimates, the table has all texts 0.8 and 1.25 times as long, too.

"bound" is what no packer can exceed: the linear program of cutting stock (its arc flow, Valério de Carvalho 1999) of
the lengths rounded down to T / 512 positions, without a window; at most 100 %, and a row for each I images. Rounding
flatters it by up to half a percent.

"seconds" are those of a CPU (each packer is one thread), medians of plans that take turns; "ratio" is ours over best
fit. "slots" is the share of image slots in use: the encoder runs on the others, too.

"rows for 128" is the batch, in rows, that holds LLaVA's 128 samples on average, and so its supervised tokens a step.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from jaxvlm.data.rows.packing import plan_rows

PREFIX = 35  # tokens of vicuna_v1 before the image
FEATURES = 576  # positions of an image
LLAVA_BATCH = 128  # samples
SIZES = ((2048, 3), (2304, 3), (2560, 3), (3072, 4), (4096, 5), (4096, 6))  # T, I
SCALES = (0.8, 1.0, 1.25)
BEST_FIT_WINDOW = 2048  # samples
OPEN_ROWS = 64  # of first fit


@dataclass(frozen=True)
class Source:
    """Conversations of one kind, and the log-normal of their tokens of text (without `PREFIX`)."""

    name: str
    thousands: int  # of 665
    median: float  # tokens of text
    sigma: float  # of the logarithm
    supervised: float  # share of the text
    images: int = 1


# A round has about 8 tokens beside its words (USER:, ASSISTANT:, </s>), a box about 25, "answer with one word" 12.
SOURCES = (
    Source("conversation", 58, 290, 0.35, 0.70),  # 4 to 5 rounds of a question and some 40 tokens of answer
    Source("detail", 23, 140, 0.25, 0.85),
    Source("complex reasoning", 77, 180, 0.30, 0.80),
    Source("ShareGPT", 41, 1500, 1.00, 0.75, images=0),  # of which about two fifths are cut at 2048
    Source("VQAv2", 83, 105, 0.25, 0.17),  # 5.4 questions an image
    Source("GQA", 72, 270, 0.50, 0.15),  # about 13 questions an image
    Source("OKVQA", 9, 40, 0.15, 0.08),
    Source("A-OKVQA", 66, 75, 0.15, 0.03),  # one question with four choices, answered by a letter
    Source("OCR-VQA", 80, 140, 0.25, 0.35),  # 5 questions a book cover
    Source("TextCaps", 22, 90, 0.45, 0.20),  # the question lists the words in the image
    Source("RefCOCO", 48, 300, 0.45, 0.40),  # about 6 rounds, each with a box
    Source("VG", 86, 490, 0.12, 0.40),  # 10 rounds, each with a box
)

Rows = list[list[int]] | list[tuple[int, ...]]


@dataclass(frozen=True)
class Mixture:
    """int[n] each, in the order of SOURCES: positions, images, supervised tokens, and the number of the source."""

    lengths: np.ndarray
    images: np.ndarray
    supervised: np.ndarray
    source: np.ndarray


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=665_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="timed plans of each packer (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    print(describe(make_mixture(args.samples, 2048)))
    print(f"\n{args.samples:,} samples; {len(os.sched_getaffinity(0))} CPUs, load {os.getloadavg()[0]:.1f}\n")
    print(HEADER)
    results = []
    for tokens, images in SIZES:
        for scale in SCALES:
            results.append(measure(args.samples, tokens, images, scale, args.rounds))
            print(line(results[-1]), flush=True)
    if args.json:
        print(json.dumps(results))
    return {"results": results}


def make_mixture(samples: int, tokens: int, scale: float = 1.0, seed: int = 0) -> Mixture:
    """About so many samples, cut at `tokens` positions, all texts `scale` times as long."""
    random = np.random.default_rng(seed)
    parts = []
    for number, source in enumerate(SOURCES):
        count = round(samples * source.thousands / sum(source.thousands for source in SOURCES))
        before = PREFIX + FEATURES * source.images
        text = np.exp(random.normal(np.log(scale * source.median), source.sigma, count)).astype(int)
        text = np.clip(text, 8, tokens - before)
        supervised = np.maximum(1, np.rint(source.supervised * text).astype(int))
        parts.append((before + text, np.full(count, source.images), supervised, np.full(count, number)))
    return Mixture(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def describe(mixture: Mixture) -> str:
    """The quantiles of the lengths of each source."""
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    lines = [f"{'positions':<20}{'samples':>10}{'mean':>8}" + "".join(f"{f'{share:.0%}':>8}" for share in shares)]
    for number, name in [*enumerate(source.name for source in SOURCES), (None, "all")]:
        lengths = mixture.lengths if number is None else mixture.lengths[mixture.source == number]
        quantiles = "".join(f"{quantile:>8.0f}" for quantile in np.quantile(lengths, shares))
        lines.append(f"{name:<20}{len(lengths):>10,}{lengths.mean():>8.0f}{quantiles}")
    return "\n".join(lines)


def measure(samples: int, tokens: int, images: int, scale: float, rounds: int) -> dict[str, Any]:
    """One row of the table: each packer on the same order, taking turns."""
    mixture = make_mixture(samples, tokens, scale)
    order = np.random.default_rng(1).permutation(len(mixture.lengths))
    packers: dict[str, Callable[[], Rows]] = {
        "ours": lambda: plan_rows(mixture.lengths, mixture.images, order, tokens=tokens, budget=images, pack=True),
        "best_fit": lambda: best_fit(mixture.lengths, mixture.images, order, tokens, images),
        "first_fit": lambda: first_fit(mixture.lengths, mixture.images, order, tokens, images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in packers}
    num_rows = {}
    for _ in range(rounds):
        for name, pack in packers.items():
            start = time.process_time()
            rows = pack()
            seconds[name].append(time.process_time() - start)
            check(rows, mixture, tokens, images)
            num_rows[name] = len(rows)
    positions, ours = int(mixture.lengths.sum()), num_rows["ours"]
    least = max(fewest_rows(mixture.lengths, tokens), positions / tokens, mixture.images.sum() / images)
    return {
        "tokens": tokens,
        "images": images,
        "scale": scale,
        "rows": ours,
        "fill": {name: positions / tokens / count for name, count in num_rows.items()},
        "bound": positions / tokens / least,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(a / b for a, b in zip(seconds["ours"], seconds["best_fit"], strict=True)),
        "slots": float(mixture.images.sum() / images / ours),
        "samples_per_row": len(order) / ours,
        "supervised_per_row": float(mixture.supervised.sum() / ours),
        "rows_for_llava_batch": LLAVA_BATCH * ours / len(order),
    }


def check(rows: Rows, mixture: Mixture, tokens: int, images: int) -> None:
    """Every sample is in one row, and no row is too full."""
    members = np.concatenate([np.asarray(row) for row in rows])
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    assert np.array_equal(np.sort(members), np.arange(len(mixture.lengths)))
    assert np.add.reduceat(mixture.lengths[members], starts).max() <= tokens
    assert np.add.reduceat(mixture.images[members], starts).max() <= images


def best_fit(lengths: np.ndarray, image_counts: np.ndarray, order: np.ndarray, tokens: int, images: int) -> Rows:
    """Window after window, the longest sample first, each into the row that it fills best."""
    rows: list[list[int]] = []
    for start in range(0, len(order), BEST_FIT_WINDOW):
        window = order[start : start + BEST_FIT_WINDOW]
        # (positions left, row) sorted, for each number of image slots left
        left: list[list[tuple[int, int]]] = [[] for _ in range(images + 1)]
        for sample in window[np.argsort(-lengths[window], kind="stable")].tolist():
            length, count = int(lengths[sample]), int(image_counts[sample])
            places = [(slots, bisect.bisect_left(left[slots], (length, -1))) for slots in range(count, images + 1)]
            fitting = [(left[slots][at][0], slots, at) for slots, at in places if at < len(left[slots])]
            if fitting:
                room, slots, at = min(fitting)
                row = left[slots].pop(at)[1]
            else:
                room, slots, row = tokens, images, len(rows)
                rows.append([])
            rows[row].append(sample)
            bisect.insort(left[slots - count], (room - length, row))
    return rows


def first_fit(lengths: np.ndarray, image_counts: np.ndarray, order: np.ndarray, tokens: int, images: int) -> Rows:
    """Each sample in its turn into the first of `OPEN_ROWS` rows that has room; if none has, the oldest is closed."""
    rows: list[list[int]] = []
    left: list[list[int]] = []  # [positions left, image slots left, row]
    for sample, length, count in zip(
        order.tolist(), lengths[order].tolist(), image_counts[order].tolist(), strict=True
    ):
        row = next((row for row in left if row[0] >= length and row[1] >= count), None)
        if row is None:
            row = [tokens, images, len(rows)]
            rows.append([])
            left = [*left[1 - OPEN_ROWS :], row]
        rows[row[2]].append(sample)
        row[0] -= length
        row[1] -= count
    return rows


def fewest_rows(lengths: np.ndarray, tokens: int) -> float:
    """A number of rows of `tokens` positions that any way to pack `lengths` needs.

    A row is a path from node 0 upwards; an arc of length l is a sample. The program finds the flow that uses each
    length often enough with the least flow out of node 0, in which paths may be fractions.
    """
    unit = max(1, tokens // 512)
    sizes, demand = np.unique(np.maximum(lengths // unit, 1), return_counts=True)
    sizes, demand = sizes[::-1], demand[::-1]  # longest first: a row needs only paths in this order
    end = tokens // unit
    reached = np.zeros(end + 1, bool)
    reached[0] = True
    arcs = []
    for kind, size in enumerate(sizes):
        for node in range(end - size + 1):
            if reached[node]:
                reached[node + size] = True
                arcs.append((node, node + size, kind))
    tail, head, kind = np.array(arcs).T
    arc, inner = np.arange(len(arcs)), tail > 0
    # Rows of the program: what leaves a node above 0 has come there; then each length as often as it is there.
    entries = np.concatenate([-np.ones(len(arcs)), np.ones(inner.sum()), -np.ones(len(arcs))])
    at = np.concatenate([head - 1, tail[inner] - 1, end + kind]), np.concatenate([arc, arc[inner], arc])
    matrix = coo_array((entries, at), shape=(end + len(sizes), len(arcs))).tocsr()
    found = linprog(tail == 0, A_ub=matrix, b_ub=np.concatenate([np.zeros(end), -demand]), method="highs")
    assert found.success, found.message
    return float(found.fun)


COLUMNS = (
    "ours",
    "best fit",
    "first fit",
    "bound",
    "s ours",
    "s best",
    "ratio",
    "slots",
    "samples",
    "superv.",
    "for 128",
)
HEADER = (
    f"{'':24}{'share of positions used':^40}{'CPU seconds':^24}{'':8}{'a row':^16}{'rows':>8}\n"
    f"{'T':>5}{'I':>3}{'text':>6}{'rows':>10}"
    + "".join(f"{name:>{10 if i < 4 else 8}}" for i, name in enumerate(COLUMNS))
)


def line(r: dict[str, Any]) -> str:
    """A line of the table."""
    fills = "".join(f"{fill:>10.2%}" for fill in [*r["fill"].values(), r["bound"]])
    seconds = f"{r['seconds']['ours']:>8.2f}{r['seconds']['best_fit']:>8.2f}{r['ratio']:>8.2f}"
    samples = f"{r['samples_per_row']:>8.3f}{r['supervised_per_row']:>8.0f}{r['rows_for_llava_batch']:>8.1f}"
    row = f"{r['tokens']:>5}{r['images']:>3}{r['scale']:>6}{r['rows']:>10,}"
    return f"{row}{fills}{seconds}{r['slots']:>8.1%}{samples}"


if __name__ == "__main__":
    main(sys.argv[1:])
