"""The result of a suite: answers parsed and scored, with everything that is needed to judge the number."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.answer_log import Reply
from jaxvlm.evaluation.benchmarks.benchmark import Published, Scores
from jaxvlm.evaluation.interval import DRAWS, LEVEL, Interval, bootstrap
from jaxvlm.evaluation.task import GENERATE, Task
from jaxvlm.media import picture_files

EXAMPLES = 5  # of unparsed and of truncated answers
_HASHED = {".json", ".jsonl", ".tsv", ".csv", ".txt", ".parquet", ".arrow"}  # not images, which the prompts name
_NAMED_FILES = 20  # of a folder
_PACKAGES = ("jaxvlm", "jax", "flax", "numpy", "pillow", "transformers")


@dataclasses.dataclass(frozen=True)
class Result:
    """A scored task.

    Attributes:
      replies: one for each item.
      values: what `Benchmark.parse` made of them.
      scores: without numbers if only a server has the truth.
      interval: of the main number; None: there is none.
      model: what answered, ready for JSON.
      generation: settings of decoding, ready for JSON.
      answered, seconds: how many answers were made in how long, without those of an earlier call that was resumed.
    """

    task: Task
    replies: tuple[Reply, ...]
    values: tuple[Any, ...]
    scores: Scores
    interval: Interval | None
    model: Mapping[str, Any]
    generation: Mapping[str, Any]
    answered: int = 0
    seconds: float = 0.0

    @property
    def main(self) -> tuple[str, float] | None:
        """Name and value of the main number; None: only a server can tell."""
        return next(((name, x) for name, x in self.scores.numbers.items() if math.isfinite(x)), None)

    @property
    def published(self) -> list[Published]:
        """Numbers of others that can be compared: of generated answers, and of the same split and dialect."""
        if self.task.scoring != GENERATE:
            return []
        task, default = self.task, next(iter(self.task.benchmark.splits))
        asked = task.split, task.dialect
        return [found for found in task.benchmark.published if (found.split or default, found.dialect) == asked]

    @property
    def unparsed(self) -> list[Reply]:
        """Answers that could not be parsed."""
        return [reply for reply, value in zip(self.replies, self.values, strict=True) if value is None]

    @property
    def truncated(self) -> list[Reply] | None:
        """Answers that ended at the length limit; None: not known."""
        if all(reply.truncated is None for reply in self.replies):
            return None
        return [reply for reply in self.replies if reply.truncated]

    def to_dict(self, pictures: Mapping[bytes, str]) -> dict[str, Any]:
        """The whole result, ready for JSON; `pictures` are the files of images that are none themselves."""
        task = self.task
        return _finite(
            {
                "benchmark": task.benchmark.name,
                "title": f"{task.benchmark.title}: {task.describe()}",
                "metric": task.benchmark.metric,
                "split": task.split,
                "dialect": task.dialect,
                "scoring": task.scoring,
                "data": self._data(),
                "model": dict(self.model),
                "generation": dict(self.generation),
                "scores": self.scores.numbers,
                "interval": self._interval(),
                "groups": self.scores.groups,
                "group_counts": self.scores.counts,
                "unparsed": _some(self.unparsed),
                "truncated": None if self.truncated is None else _some(self.truncated),
                "published": [dataclasses.asdict(found) for found in self.published],
                "answered": self.answered,
                "seconds": round(self.seconds, 1),
                "versions": versions(),
                "answers": self._answers(pictures),
            }
        )

    def _data(self) -> dict[str, Any]:
        task = self.task
        return {
            "folder": str(task.folder),
            "files": file_hashes(task.folder),
            "asked": task.fingerprint,
            "count": len(task.items),
            "of": len(task.whole),
        }

    def _interval(self) -> dict[str, Any] | None:
        if self.interval is None:
            return None
        return {"level": LEVEL, "draws": DRAWS, **dataclasses.asdict(self.interval)}

    def _answers(self, pictures: Mapping[bytes, str]) -> list[dict[str, Any]]:
        rows = zip(self.task.items, self.replies, self.values, self.scores.credits.tolist(), strict=True)
        return [
            {
                **reply.to_dict(),
                "origin": item.origin,
                "groups": dict(item.groups),
                "question": item.question,
                "choices": list(item.choices),
                "value": value,
                "truth": item.truth,
                "credit": credit,
                "images": [
                    pictures.get(image) if isinstance(image, bytes) else file
                    for image, file in zip(item.images, picture_files(item.images), strict=True)
                ],
            }
            for item, reply, value, credit in rows
        ]


def score_task(
    task: Task,
    replies: Mapping[str, Reply],
    *,
    model: Mapping[str, Any],
    generation: Mapping[str, Any],
    answered: int = 0,
    seconds: float = 0.0,
) -> Result:
    """Parses and scores the answers of a task.

    Args:
      replies: by id, at least one for each item.

    Raises:
      UserError: items without an answer; ten at most are named.
    """
    benchmark, items = task.benchmark, task.items
    if missing := [item.id for item in items if item.id not in replies]:
        raise UserError(f"{len(missing):,} of {len(items):,} questions have no answer: {listed(missing, ', ')}")
    own = tuple(replies[item.id] for item in items)
    values = tuple(benchmark.parse(item, reply.text, task.dialect) for item, reply in zip(items, own, strict=True))
    scores = benchmark.score(items, values, task.dialect)
    interval = bootstrap(benchmark, items, values, scores, task.dialect)
    return Result(task, own, values, scores, interval, model, generation, answered, seconds)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a benchmark that is not an image, by its path; of a folder with many, one of them all."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.suffix.lower() in _HASHED and path.is_file():
            by_folder.setdefault(path.parent, []).append(path)
    found: dict[str, str] = {}
    for parent, paths in by_folder.items():
        hashes = {path: _sha256(path) for path in paths}
        if len(paths) <= _NAMED_FILES:
            found |= {_relative(path, folder): hashes[path] for path in paths}
        else:
            together = "".join(f"{hashes[path]}  {path.name}\n" for path in paths)  # as sha256sum writes them
            name = f"{_relative(parent, folder)}/* ({len(paths):,} files)"
            found[name] = hashlib.sha256(together.encode()).hexdigest()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relative(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a number may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _some(replies: Sequence[Reply]) -> dict[str, Any]:
    return {"count": len(replies), "examples": [{"id": r.id, "text": r.text} for r in replies[:EXAMPLES]]}


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def to_json(result: Result, pictures: Mapping[bytes, str]) -> str:
    """The text of the result's file."""
    return json.dumps(result.to_dict(pictures), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
