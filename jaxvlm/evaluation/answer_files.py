"""Reads answers that were made elsewhere: our own files, LLaVA's answer files, lmms-eval's samples.

  ours       {"id", "text"} a line (NAME.answers.jsonl), or a result (NAME.json)
  LLaVA      {"question_id", "text", "prompt"} a line
  lmms-eval  {"doc_id", "doc", "filtered_resps"} a line (samples_*.jsonl of --log_samples)

Each row must be of one question, and each question needs a row: nothing is paired by its place alone.

Source: LLaVA llava/eval/model_vqa_loader.py; lmms-eval lmms_eval/loggers/evaluation_tracker.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.answer_log import Reply
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.task import Task

# Columns of lmms-eval's documents that may name a question.
_DOC_KEYS = ("question_id", "questionId", "id", "index", "qid", "data_id", "image_id")
_KNOWN = '{"id", "text"} (ours), {"question_id", "text"} (LLaVA) or {"doc_id", "doc", "filtered_resps"} (lmms-eval)'


def read_answers(path: Path, task: Task) -> dict[str, Reply]:
    """The answers of a file to the items of a task, by their id.

    Raises:
      UserError: the file is missing, damaged or of another form or benchmark; rows belong to no question, or two to the
        same; items have no row. At most ten are named of each.
    """
    rows = _rows(path, task)
    texts = [_text(row) for row in rows]
    if unknown := [number for number, text in enumerate(texts, 1) if text is None]:
        keys = listed([repr(key) for key in rows[unknown[0] - 1]], ", ")
        raise UserError(f"{path}: row {unknown[0]} is no answer; expected {_KNOWN}, found the keys {keys}")
    names = _names(rows, task)
    _check(path, rows, names, task)
    return {
        name: Reply(name, text, row.get("tokens"), row.get("truncated"))
        for name, text, row in zip(names, texts, rows, strict=True)
        if name is not None and text is not None
    }


def _rows(path: Path, task: Task) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--answers {path} cannot be read: {reason}") from error
    try:
        whole = json.loads(text) if path.suffix == ".json" else None
        rows = whole if whole is not None else [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"--answers {path} is not JSON ({error}); a .jsonl file has one object a line") from error
    made_by: Any = None
    if isinstance(rows, dict):
        made_by, rows = rows.get("benchmark"), rows.get("answers")
    elif rows and isinstance(rows[0], dict) and isinstance(rows[0].get("settings"), dict):
        made_by, rows = rows[0]["settings"].get("benchmark"), rows[1:]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"--answers {path} holds no list of answers; expected {_KNOWN}")
    if made_by not in (None, task.benchmark.name):
        raise UserError(f"--answers {path} has the answers to {made_by}, not to {task.benchmark.name}")
    return rows


def _text(row: Mapping[str, Any]) -> str | None:
    """The answer of a row; None: it has none."""
    found = row.get("text")
    for key in ("filtered_resps", "resps"):
        if found is None and "doc_id" in row:
            found = row.get(key)
            while isinstance(found, list) and len(found) == 1:
                found = found[0]
    return found if isinstance(found, str) else None


def _names(rows: Sequence[Mapping[str, Any]], task: Task) -> list[str | None]:
    """For each row the id of its item; None: it belongs to none, or to more than one."""
    known = {item.id for item in task.whole}
    plain: list[Callable[[Mapping[str, Any]], Any]] = [lambda row: row.get("id"), lambda row: row.get("question_id")]
    plain += [_from_doc(key) for key in _DOC_KEYS]
    best: list[str | None] = [None] * len(rows)
    ways = [lambda row, of=of: _id(of(row), known) for of in plain] + [_by_prompt(task), _by_place(task)]
    for way in ways:
        found = [way(row) for row in rows]
        if len({name for name in found if name}) > len({name for name in best if name}):
            best = found
        if None not in best and len(set(best)) == len(rows):
            break
    return best


def _id(value: Any, known: set[str]) -> str | None:
    return str(value) if str(value) in known else None


def _from_doc(key: str) -> Callable[[Mapping[str, Any]], Any]:
    def find(row: Mapping[str, Any]) -> Any:
        doc = row.get("doc")
        return doc.get(key) if isinstance(doc, Mapping) else None

    return find


def _by_prompt(task: Task) -> Callable[[Mapping[str, Any]], str | None]:
    """LLaVA's ids of TextVQA and MME are those of images: image and prompt together name the question."""
    by_prompt: dict[str, list[Item]] = {}
    for item in task.whole:
        by_prompt.setdefault(_bare(task.benchmark.prompt(item, task.dialect)), []).append(item)

    def find(row: Mapping[str, Any]) -> str | None:
        prompt, image = row.get("prompt"), str(row.get("question_id"))
        if not isinstance(prompt, str):
            return None
        found = [item for item in by_prompt.get(_bare(prompt), ()) if image in _names_of_images(item)]
        return found[0].id if len(found) == 1 else None

    return find


def _by_place(task: Task) -> Callable[[Mapping[str, Any]], str | None]:
    """lmms-eval's `doc_id` is the place in the split; taken where the question is the same."""

    def find(row: Mapping[str, Any]) -> str | None:
        place, question = row.get("doc_id"), _from_doc("question")(row)
        if not isinstance(place, int) or not 0 <= place < len(task.whole) or not isinstance(question, str):
            return None
        item = task.whole[place]
        return item.id if _bare(question) == _bare(item.question) else None

    return find


def _names_of_images(item: Item) -> set[str]:
    """Names under which an answer file may mean an item's image: its name, with its folder, without its ending."""
    names = {item.cluster}
    for image in item.images:
        if isinstance(image, str):
            path = Path(image)
            names |= {path.name, path.stem, f"{path.parent.name}/{path.name}"}
    return names - {""}


def _bare(text: str) -> str:
    """A prompt without placeholders of images, white space as single spaces."""
    return " ".join(re.sub(r"<image( \d+)?>", " ", text).split())


def _check(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str | None], task: Task) -> None:
    problems = []
    if foreign := [
        _label(row, number) for number, (row, name) in enumerate(zip(rows, names, strict=True), 1) if not name
    ]:
        problems.append(f"rows of no question: {len(foreign):,} ({listed(foreign, ', ')})")
    if doubled := [name for name, count in Counter(names).items() if name and count > 1]:
        problems.append(f"questions with several rows: {len(doubled):,} ({listed(doubled, ', ')})")
    have = set(names)
    if missing := [item.id for item in task.items if item.id not in have]:
        problems.append(f"questions without a row: {len(missing):,} of {len(task.items):,} ({listed(missing, ', ')})")
    if problems:
        raise UserError(
            f"{path} does not fit {task.benchmark.title} ({task.describe()}, files in {task.folder}): "
            f"{'; '.join(problems)}"
        )


def _label(row: Mapping[str, Any], number: int) -> str:
    name = next((row[key] for key in ("id", "question_id", "doc_id") if key in row), "without an id")
    return f"{name} (row {number})"
