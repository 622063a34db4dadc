"""The files of a result."""

from __future__ import annotations

import re
from pathlib import Path

from jaxvlm.evaluation.pictures import write_pictures
from jaxvlm.evaluation.result import Result, to_json
from jaxvlm.evaluation.task import Task
from jaxvlm.evaluation.worst_page import write_worst
from jaxvlm.files import replace_bytes, replace_text


def stem(task: Task, label: str = "") -> str:
    """Name of the result's files.

    A result of a choice of questions, or of another split, dialect or scoring, has another name: none replaces another.
    """
    sample = f"sample{len(task.items)}" if task.is_sample else ""
    return "-".join(filter(None, (task.name, re.sub(r"[^\w.-]+", "-", label), sample)))


def save(result: Result, out: Path, label: str = "") -> list[Path]:
    """Writes STEM.json, STEM.html (the worst answers) and, if a server scores, STEM-submission/; returns their paths.

    Images that are no files of their own are written small to STEM-images/.

    Args:
      out: the folder.
      label: what distinguishes the model from others whose results are in the folder; "": nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    name = stem(result.task, label)
    written = [out / f"{name}.json", out / f"{name}.html"]
    write_worst(written[1], result)
    texts = [reply.text for reply in result.replies]
    files = {} if result.task.is_sample else result.task.benchmark.submission(result.task.items, texts, result.values)
    for file, content in files.items():
        written.append(out / f"{name}-submission" / file)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(written[-1], content.encode() if isinstance(content, str) else content)
    pictures = write_pictures(result, out / f"{name}-images")
    replace_text(written[0], to_json(result, pictures))  # last: what it tells of is there
    return written
