"""What is asked of a benchmark: the items of a split or a fixed choice of them, in a dialect."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvlm.data.records import Record, Turn
from jaxvlm.errors import UserError, did_you_mean, missing_extra
from jaxvlm.evaluation.benchmarks.benchmark import Benchmark, Item
from jaxvlm.evaluation.benchmarks.registry import find_benchmark
from jaxvlm.media import Medium, Video

DEFAULT_FOLDER = "data/benchmarks"
GENERATE, SUM, MEAN = "generate", "loglikelihood", "loglikelihood_mean"
SCORINGS = (GENERATE, SUM, MEAN)


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark as it is asked.

    Attributes:
      folder: of its files.
      scoring: GENERATE; or SUM or MEAN of the log probabilities of its continuations' tokens, which ranks them.
      items: those that are asked, in the order of the files.
      whole: all items of the split.
    """

    benchmark: Benchmark
    folder: Path
    split: str
    dialect: str
    scoring: str
    items: tuple[Item, ...]
    whole: tuple[Item, ...]

    @property
    def name(self) -> str:
        """The benchmark's name, with split, dialect and scoring where they are not the default: "vqav2-val"."""
        b = self.benchmark
        parts = [b.name]
        parts += [self.split] if self.split != next(iter(b.splits)) else []
        parts += [self.dialect] if self.dialect != b.dialects[0] else []
        parts += [self.scoring] if self.scoring != GENERATE else []
        return re.sub(r"[^\w.-]+", "-", "-".join(parts))

    @property
    def is_sample(self) -> bool:
        """Whether it has fewer items than the split."""
        return len(self.items) < len(self.whole)

    @property
    def max_new_tokens(self) -> int:
        """The length limit of an answer, of the dialect."""
        limits = self.benchmark.max_new_tokens
        return limits[self.dialect] if self.dialect in limits else limits[""]

    def describe(self) -> str:
        """Split, dialect and number of questions in words."""
        count = f"{len(self.items):,} questions"
        if self.is_sample:
            count = f"{len(self.items):,} of {len(self.whole):,} questions, a fixed random choice"
        scoring = "" if self.scoring == GENERATE else f", {self.scoring}"
        return f"{self.split}, dialect {self.dialect}{scoring}, {count}"

    def record(self, item: Item, answer: str | None = None) -> Record:
        """The conversation that asks an item; with an answer that is scored as its last turn."""
        turns = [Turn("user", self.benchmark.prompt(item, self.dialect))]
        if answer is not None:
            turns.append(Turn("assistant", answer))
        return Record(item.id, tuple(turns), item.images, item.origin)

    def continuations(self, item: Item) -> tuple[str, ...]:
        """The answers that are ranked; () if answers are generated."""
        return () if self.scoring == GENERATE else self.benchmark.continuations(item, self.dialect)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that is asked: prompts, images (paths below the folder, or bytes) and continuations."""
        asked = hashlib.sha256()
        for item in self.items:
            images = [_image_name(image, self.folder) for image in item.images]
            prompt = self.benchmark.prompt(item, self.dialect)
            asked.update(json.dumps([item.id, prompt, images, self.continuations(item)]).encode() + b"\n")
        return asked.hexdigest()


def load_tasks(
    specs: Sequence[str], root: Path, *, split: str = "", dialect: str = "", limit: int = 0, scoring: str = GENERATE
) -> list[Task]:
    """Loads benchmarks, and checks what is asked of them.

    Args:
      specs: names of `BENCHMARKS` or paths of classes, each with ":SPLIT" for another split than the default.
      root: the folder in which each benchmark has a folder of its name; or a file, for a benchmark that is one.
      split: of those without one of their own; "": the benchmark's default.
      dialect: "": the benchmark's default.
      limit: at most this many items, see `choose`; 0: all.
      scoring: one of `SCORINGS`.

    Raises:
      UserError: what is wrong with each of them, in one message: an unknown benchmark, split or dialect, a missing
        package, missing or broken files, nothing to rank.
    """
    tasks, problems = [], []
    for spec in dict.fromkeys(specs):
        name, _, own = spec.partition(":")
        try:
            tasks.append(_load(find_benchmark(name), root, own or split, dialect, limit, scoring))
        except UserError as error:
            problems.append(f"{spec}: {error}" if name not in str(error).partition(":")[0] else str(error))
    if problems:
        raise UserError("; ".join(problems))
    return tasks


def _load(benchmark: Benchmark, root: Path, split: str, dialect: str, limit: int, scoring: str) -> Task:
    split = _one_of(benchmark.splits, split, "split")
    dialect = _one_of(benchmark.dialects, dialect, "dialect")
    for package in benchmark.packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(benchmark.title, package, "evaluate")
    folder = root if root.is_file() else root / benchmark.name
    items = tuple(benchmark.load(folder, split))
    task = Task(benchmark, folder, split, dialect, scoring, tuple(choose(items, limit)), items)
    for item in task.items:
        benchmark.prompt(item, dialect)  # raises if the dialect asks with what the files lack
    bare = [] if scoring == GENERATE else [item.id for item in task.items if not task.continuations(item)]
    if bare:
        raise UserError(
            f"{len(bare):,} of {len(task.items):,} questions (such as {bare[0]}) have no choices to rank by "
            f"likelihood; leave --scoring {scoring} out"
        )
    return task


def _one_of(known: Sequence[str] | Any, name: str, what: str) -> str:
    names = list(known)
    if name and name not in names:
        raise UserError(f'no {what} "{name}"{did_you_mean(name, names)}; it has {", ".join(names)}')
    return name or names[0]


def choose(items: Sequence[Item], limit: int) -> list[Item]:
    """A fixed random choice of at most `limit` items (0: all), in their order.

    Whole clusters are chosen, by a hash of their name: questions of one image stay together, the choice does not depend
    on the order of the files, and that of a smaller limit is part of that of a larger one. One cluster is always taken.
    """
    if not limit or limit >= len(items):
        return list(items)
    clusters: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        clusters.setdefault(cluster_of(item), []).append(place)
    chosen: list[int] = []
    for name in sorted(clusters, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if chosen and len(chosen) + len(clusters[name]) > limit:
            break
        chosen += clusters[name]
    return [items[place] for place in sorted(chosen)]


def cluster_of(item: Item) -> str:
    """The name of an item's cluster; an item without one is alone."""
    return f"cluster {item.cluster}" if item.cluster else f"item {item.id}"


def by_image(items: Sequence[Item]) -> list[Item]:
    """Items with those of the same images side by side, so that each image is decoded once."""
    first: dict[tuple[Medium, ...], int] = {}
    for item in items:
        first.setdefault(item.images, len(first))
    return sorted(items, key=lambda item: first[item.images])


@functools.lru_cache(8)  # questions of one image are neighbours
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _image_name(image: Medium, folder: Path) -> Any:
    """What identifies an image, ready for JSON: the same in another place."""
    if isinstance(image, bytes):
        return _sha256(image)
    if isinstance(image, Video):
        frames = image.source if isinstance(image.source, tuple) else (image.source,)
        return [[_image_name(frame, folder) for frame in frames], image.fps, image.numbers]
    path = Path(image)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
