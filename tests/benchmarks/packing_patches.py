"""How full rows are in tokens and in patches, for images of many sizes as Qwen-VL takes them.

  python -m tests.benchmarks.packing_patches

Sizes are made by rule, not those of a data set. "coco": the longer side is 640 pixels, the other 360 to 640. "mixture":
half coco; screenshots of 1920 x 1080 and 1080 x 2340, pages of 1700 x 2200, small pictures of 100 to 300 pixels a side,
and sides of 200 to 2000 at random, an eighth each of all. A sample is one image with 40 to 400 tokens of text. Images
are resized to at most `--max-pixels`, by the layout of a recipe. "in use" is the share of patches, "cost" what a sample
costs in forward operations of the 7B and its encoder (13 GFLOP a position, 1.3 a patch, padding included), where the
cheapest is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

from configs import qwen_vl
from jaxvlm.data.rows.packing import plan_rows
from jaxvlm.families.registry import media_layout, resolve
from jaxvlm.media import MediaLayout, Size

PATCHES_PER_TOKEN = (2.0, 2.5, 3.0, 3.5, 4.0)
COST_OF_POSITION, COST_OF_PATCH = 13.0, 1.3  # GFLOP forward
KINDS = {"qwen2_vl": "qwen2_vl_7b", "qwen3_vl": "qwen3_vl_8b"}


def coco(random: np.random.Generator) -> Size:
    """A photograph."""
    sides = sorted((640, int(random.integers(360, 641))))
    return Size(*(sides if random.random() < 0.75 else sides[::-1]))


def mixture(random: np.random.Generator) -> Size:
    """A photograph half the time; else a screenshot, a page, a small picture, or any size."""
    if random.random() < 0.5:
        return coco(random)
    which = int(random.integers(4))
    if which == 0:
        return Size(1080, 1920) if random.random() < 0.5 else Size(2340, 1080)
    if which == 1:
        return Size(2200, 1700)
    low, high = ((100, 300), (200, 2000))[which - 2]
    return Size(*map(int, random.integers(low, high, 2)))


MIXES = {"coco": coco, "mixture": mixture}


def fill(layout: MediaLayout, mix: str, samples: int, tokens: int) -> list[dict[str, Any]]:
    """Plans rows of each number of patches; returns shares of positions and patches in use, and costs."""
    random = np.random.default_rng(0)
    extents = [layout.extent(MIXES[mix](random)) for _ in range(samples)]
    lengths = np.array([extent.positions for extent in extents]) + random.integers(40, 401, samples)
    units = np.array([extent.units for extent in extents])
    found = []
    for ratio in PATCHES_PER_TOKEN:
        budget = int(tokens * ratio)
        rows = plan_rows(lengths, units, np.arange(samples), tokens=tokens, budget=budget, pack=True)
        cost = len(rows) * (tokens * COST_OF_POSITION + budget * COST_OF_PATCH) / samples
        positions, patches = lengths.sum() / (len(rows) * tokens), units.sum() / (len(rows) * budget)
        found.append({"mix": mix, "patches": budget, "filled": positions, "in_use": patches, "cost": cost})
    cheapest = min(line["cost"] for line in found)
    return [line | {"cost": line["cost"] / cheapest} for line in found]


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Prints the table; returns its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, metavar="N")
    parser.add_argument("--tokens", type=int, default=4096, metavar="T")
    parser.add_argument("--max-pixels", type=int, default=1280 * 28**2, metavar="AREA")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    lines = []
    for kind, recipe in KINDS.items():
        c = qwen_vl.finetune(recipe)
        c.stage.finetune.data.media.update(min_pixels=56**2, max_pixels=args.max_pixels)
        config = resolve(c.to_dict())
        layout = media_layout(config.model, config.stage["finetune"].data)
        lines += [{"kind": kind} | line for mix in MIXES for line in fill(layout, mix, args.samples, args.tokens)]
    print(f"{'kind':<10}{'mix':<10}{'tokens':>8}{'patches':>9}{'filled':>9}{'in use':>9}{'cost':>7}")
    for line in lines:
        shares = f"{line['filled']:>9.1%}{line['in_use']:>9.1%}{line['cost']:>7.2f}"
        print(f"{line['kind']:<10}{line['mix']:<10}{args.tokens:>8}{line['patches']:>9}{shares}")
    if args.json:
        print(json.dumps(lines))
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
