"""A made-up benchmark: questions about coloured squares, two about each image."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, OFFICIAL, Benchmark, Item, Published, Scores

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210)}


class Colours(Benchmark):
    name = "colours"
    title = "Colours"
    about = "The colour of a square, and whether it is a given one."
    files = "questions.jsonl  {id, image, question, answer} a line\n*.png            the squares"
    source = "tests/evaluation/colours.py"
    metric = "accuracy, percent"
    splits = {"test": 24, "hidden": 24}
    dialects = (LLAVA, OFFICIAL)
    max_new_tokens = {"": 6, OFFICIAL: 3}
    published = (Published("Nobody 7B", 77.0, LLAVA, "nobody"), Published("Nobody 7B", 78.5, OFFICIAL, "nobody"))

    def load(self, folder, split):
        path = folder / "questions.jsonl"
        if not path.is_file():
            raise UserError(f"{self.title} {split}: {path} is missing; it comes from {self.source}")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [self._item(folder, split, row, f"{path.name}[{place}]") for place, row in enumerate(rows)]

    def _item(self, folder, split, row, origin):
        choices = ("yes", "no") if row["answer"] in ("yes", "no") else tuple(COLOURS)
        groups = {"kind": "yes/no" if "yes" in choices else "colour"}
        truth = None if split == "hidden" else row["answer"]
        image = str(folder / row["image"])
        return Item(row["id"], (image,), row["question"], truth, choices, groups, row["image"], origin)

    def prompt(self, item, dialect):
        end = "one word" if dialect == LLAVA else "briefly"
        return f"<image>\n{item.question} {end}"

    def parse(self, item, text, dialect):
        return next((choice for choice in item.choices if choice in text), None)

    def score(self, items, values, dialect):
        if any(item.truth is None for item in items):
            return Scores({}, np.full(len(items), np.nan))
        hits = np.array([item.truth == value for item, value in zip(items, values, strict=True)], float)
        kinds = {kind: [n for n, i in enumerate(items) if i.groups["kind"] == kind] for kind in ("colour", "yes/no")}
        kinds = {kind: own for kind, own in kinds.items() if own}
        numbers = {"accuracy": 100 * hits.mean(), "parsed": 100 * np.mean([value is not None for value in values])}
        means = {kind: 100 * hits[own].mean() for kind, own in kinds.items()}
        counts = {kind: len(own) for kind, own in kinds.items()}
        return Scores(numbers, hits, {"kind": means}, {"kind": counts})

    def continuations(self, item, dialect):
        return item.choices

    def submission(self, items, texts, values):
        return {"answers.txt": "".join(f"{i.id}\t{text}\n" for i, text in zip(items, texts, strict=True))}


def write_files(root: Path, count: int = 12) -> Path:
    """The files of `count` images below `root`, in the benchmark's folder; returns `root`."""
    folder = root / Colours.name
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        Image.new("RGB", (30 + number, 20), COLOURS[colour]).save(folder / f"{number}.png")
        asked = list(COLOURS)[number % 2]
        for kind, question, answer in (
            ("what", "what color is it?", colour),
            ("is", f"is it {asked}?", "yes" if asked == colour else "no"),
        ):
            lines.append({"id": f"{number}-{kind}", "image": f"{number}.png", "question": question, "answer": answer})
    # Not image by image, as in files in circulation.
    lines.sort(key=lambda line: line["id"].partition("-")[2])
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
