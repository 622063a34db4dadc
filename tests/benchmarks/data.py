"""How fast images are read, conversations tokenized and headers checked on one core, beside what others use for it.

  python -m tests.benchmarks.data
  python -m tests.benchmarks.data --images 64 --conversations 400 --rounds 9

In each round all sides work through the same files or conversations, turn by turn, in an order that turns with the
rounds. "ratio" is the median over the rounds of (seconds of the other / seconds of ours in the same round): above 1
ours is faster. Seconds are those of the CPU, on one core and in one thread, with the files warm: what else runs on the
machine counts less.

  images         JPEGs of 640 x 480 and 480 x 640, quality 90, to 336 x 336, decoding included. CLIP's processor of
                 transformers (Pillow backend) cuts a square out instead of padding; LLaVA's loop pads and then uses
                 it; the plain loop stops at the resized pixels, which is what ours gives.
  conversations  ids and loss weights (ours) against ids alone of the same text (theirs). "chat template" is
                 transformers' way from turns to ids, which only a tokenizer with a template of its own has.
  headers        `read_size` on small JPEG and PNG files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
os.environ |= dict.fromkeys(THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}  # before what reads them

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from jaxvlm.config import TokenizerConfig  # noqa: E402
from jaxvlm.data.media import images as ours  # noqa: E402
from jaxvlm.data.media.images import CLIP_GREY, load_image, read_size  # noqa: E402
from jaxvlm.data.records import Record, Turn  # noqa: E402
from jaxvlm.data.text.conversation import Renderer  # noqa: E402
from jaxvlm.data.text.tokenizer import image_token_id, load_tokenizer, train_tokenizer, training_texts  # noqa: E402
from tests.smollm2 import smollm2_file  # noqa: E402

SIZE = 336
SYLLABLES = (
    "ka",
    "lo",
    "mi",
    "re",
    "tu",
    "sen",
    "dar",
    "vik",
    "ol",
    "an",
    "per",
    "sti",
    "qua",
    "ne",
    "the",
    "ing",
    "er",
    "ght",
)
Sides = dict[str, Callable[[], Any]]


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="JPEG files (default: %(default)s)")
    parser.add_argument("--conversations", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=32_000, help="of the trained tokenizer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), args.images)
        results = {
            "images": compare(image_sides(photos), args.rounds, args.images),
            "pieces": image_pieces(photos, args.rounds),
            "headers": headers_per_second(Path(folder), args.rounds),
        }
    results |= conversations(args.conversations, args.vocab, args.rounds)
    print(report(results, load))
    if args.json:
        print(json.dumps(results))


def compare(sides: Sides, rounds: int, count: int) -> dict[str, Any]:
    """Items a second of each side, and of each but the first ("ours") its ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for name in names:
        sides[name]()
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
    rows: dict[str, Any] = {}
    for name, times in seconds.items():
        ratios = [other / own for other, own in zip(times, seconds[names[0]], strict=True)]
        rows[name] = {"per_second": count / statistics.median(times), "ratio": statistics.median(ratios)}
        rows[name] |= {"lowest": min(ratios), "highest": max(ratios)}
    return rows


def write_photos(folder: Path, count: int) -> list[str]:
    """Soft areas, round shapes and a camera's noise; every second one upright."""
    paths = []
    for index in range(count):
        chance = np.random.default_rng(index)
        width, height = ((640, 480), (480, 640))[index % 2]
        few = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = few.resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for x, y, across, *colour in chance.integers(0, 256, (12, 6)).tolist():
            draw.ellipse((2 * x, 2 * y, 2 * x + across, 2 * y + across), fill=tuple(colour))
        noisy = np.asarray(image) + chance.normal(0, 4, (height, width, 3))
        paths.append(str(folder / f"{index}.jpg"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def image_sides(paths: Sequence[str]) -> Sides:
    """Ours and the three others."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3
    )

    def each(read: Callable[[str], Any]) -> Callable[[], None]:
        def run() -> None:
            for path in paths:
                read(path)

        return run

    def square(path: str) -> Image.Image:
        with Image.open(path) as file:
            image = file.convert("RGB")
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), CLIP_GREY)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return canvas

    def clip(path: str) -> np.ndarray:
        with Image.open(path) as image:
            return processor(image)["pixel_values"][0]

    return {
        "ours": each(lambda path: load_image(path, SIZE, "pad", exact=False)),
        "CLIP's processor": each(clip),
        "LLaVA's loop": each(lambda path: processor(square(path))["pixel_values"][0]),
        "plain loop": each(lambda path: np.asarray(square(path).resize((SIZE, SIZE), Image.Resampling.BICUBIC))),
    }


def image_pieces(paths: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds of the parts of ours an image; each includes the parts above it."""

    def header(path: str) -> None:
        with ours._open(path):
            pass

    def decoded(path: str) -> Image.Image:
        with ours._open(path) as image:
            image.load()
            return image

    parts: dict[str, Callable[[str], Any]] = {
        "header": header,
        "decoded": decoded,
        "copied to numpy": lambda path: np.asarray(decoded(path)),
        "resized": lambda path: load_image(path, SIZE, "pad", exact=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start = time.process_time()
            for path in paths:
                part(path)
            seconds[name].append((time.process_time() - start) / len(paths))
    return {name: statistics.median(times) for name, times in seconds.items()}


def headers_per_second(folder: Path, rounds: int) -> dict[str, float]:
    """Of 200 files of each format."""
    result = {}
    for suffix in ("jpg", "png"):
        paths = [str(folder / f"small{index}.{suffix}") for index in range(200)]
        for path in paths:
            Image.new("RGB", (320, 240), "red").save(path)
        times = []
        for _ in range(rounds):
            start = time.process_time()
            for path in paths:
                read_size(path, "d.json[3]")
            times.append(time.process_time() - start)
        result[suffix] = len(paths) / statistics.median(times)
    return result


def make_records(count: int, seed: int) -> list[Record]:
    """Two to six rounds about an image; words as frequent as in a language."""
    chance = random.Random(0)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    chance.seed(seed)

    def sentences(least: int, most: int) -> str:
        said = (chance.choices(words, weights, k=chance.randint(5, 16)) for _ in range(chance.randint(least, most)))
        return " ".join(f"{' '.join(sentence).capitalize()}." for sentence in said)

    records = []
    for index in range(count):
        turns = []
        for number in range(chance.randint(2, 6)):
            turns.append(Turn("user", ("" if number else "<image>\n") + sentences(1, 1)))
            turns.append(Turn("assistant", sentences(1, 4)))
        records.append(Record(str(index), tuple(turns), ("x.jpg",), f"d.json[{index}]"))
    return records


def conversations(count: int, vocab: int, rounds: int) -> dict[str, Any]:
    """Each tokenizer with its templates."""
    records = make_records(count, 1)
    trained = train_tokenizer(training_texts(make_records(3000 if vocab > 5000 else 50, 2), "vicuna_v1"), vocab)
    small = load_tokenizer(TokenizerConfig(source=str(smollm2_file()), vocab_size=0))
    results = {}
    for name, tokenizer, template in (
        (f"trained, {len(trained):,} tokens, vicuna_v1", trained, "vicuna_v1"),
        ("SmolLM2, chatml", small, "chatml"),
        ("SmolLM2, its own template", small, "tokenizer"),
    ):
        sides = conversation_sides(tokenizer, template, records)
        results[name] = compare(sides, rounds, count)
    return results


def conversation_sides(tokenizer: Any, template: str, records: Sequence[Record]) -> Sides:
    """Ours, the tokenizer, its backend, and for its own template transformers' rendering with it."""
    renderer = Renderer(tokenizer, template, image_token_id=image_token_id(tokenizer))
    texts = [tokenizer.decode(renderer.render(record).tokens) for record in records]
    messages = [[{"role": turn.role, "content": turn.text} for turn in record.turns] for record in records]
    sides: Sides = {
        "ours": lambda: [renderer.render(record) for record in records],
        "tokenizer": lambda: [tokenizer(text)["input_ids"] for text in texts],
        "backend.encode": lambda: [tokenizer.backend_tokenizer.encode(text).ids for text in texts],
    }
    if template == "tokenizer":
        sides["chat template"] = lambda: [tokenizer.apply_chat_template(said, tokenize=True) for said in messages]
    return sides


def report(results: dict[str, Any], load: float) -> str:
    """The tables."""
    lines = [f"one core, load {load:.1f} at the start"]
    for title, rows in results.items():
        if title in ("pieces", "headers"):
            continue
        lines += ["", f"{title:<44}{'a second':>10}{'ratio':>10}{'range':>16}"]
        for name, row in rows.items():
            spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
            lines.append(f"  {name:<42}{row['per_second']:>10,.0f}{row['ratio']:>10.2f}{spread:>16}")
    lines += ["", f"{'an image of ours, up to':<44}{'ms':>10}"]
    lines += [f"  {name:<42}{seconds * 1e3:>10.2f}" for name, seconds in results["pieces"].items()]
    lines += ["", f"{'headers':<44}{'a second':>10}"]
    lines += [f"  {name:<42}{count:>10,.0f}" for name, count in results["headers"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
