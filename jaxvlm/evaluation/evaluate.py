"""The test of a run: its model answers the questions of a data set, and the result is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import jax

from jaxvlm.config import EvaluationConfig
from jaxvlm.data.records import Record
from jaxvlm.evaluation.questions import load_questions
from jaxvlm.evaluation.scoring import is_right, question, score, truth
from jaxvlm.evaluation.sheet import draw_sheet, sample
from jaxvlm.files import replace_text
from jaxvlm.inference.engine import Engine
from jaxvlm.media import picture_files
from jaxvlm.restore import Run
from jaxvlm.runs import RunFolder

_SHOWN = 6  # questions


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A run's answers to a data set."""

    data: str  # spec of the data set
    limit: int  # at most this many questions, the first ones; 0: all
    run: Run
    out: RunFolder  # of evaluation.json and samples.png
    questions: list[Record]
    answers: list[str]
    score: dict[str, Any]  # of `scoring.score`
    notes: list[str]  # records left out, files replaced

    def summary(self) -> str:
        """The score as a table, a few answers, and the paths of the files, for printing."""
        lines = [f"{self.data}, answered by {self.run.folder} ({_weights(self.run)})", "", _table(self.score), ""]
        lines += [_line(self.questions[i], self.answers[i]) for i in sample(len(self.questions), _SHOWN)]
        files = f"all answers are in {self.out.evaluation_file}, a sheet of them in {self.out.samples}"
        return "\n".join([*lines, "", files])


def evaluate_run(
    run: Run, evaluation: EvaluationConfig, *, out: RunFolder | None = None, limit: int = 0, progress: bool = False
) -> Evaluation:
    """Evaluates a run and writes evaluation.json and samples.png; on several hosts the first writes.

    Args:
      evaluation: the data and the settings of decoding.
      out: folder of the results; None: the run's.
      limit: how many questions; 0: all.
      progress: show a bar on standard error.

    Raises:
      UserError: records that break a rule or images that cannot be read; no record is left out.
    """
    allow_outside = run.stage.data.allow_outside
    questions, notes = load_questions(evaluation.source, evaluation.image_folder, limit, allow_outside=allow_outside)
    answers = Engine.of(run).answer(
        questions, max_new_tokens=evaluation.max_new_tokens, batch_size=evaluation.batch_size, progress=progress
    )
    out = RunFolder(run.folder) if out is None else out
    if jax.process_index() == 0:
        before = _data_of(out.evaluation_file)
        if before not in (None, evaluation.source):
            notes.append(f"{out.evaluation_file} held the result for {before}; it is replaced")
    result = Evaluation(evaluation.source, limit, run, out, questions, answers, score(questions, answers), notes)
    if jax.process_index() == 0:
        _save(result)
    return result


def result_name(run: Run, data: str, limit: int) -> str:
    """Name of a result's folder: `easy_vqa-test-finetune-1000-first500`."""
    stem = Path(data).stem if data.endswith((".json", ".jsonl")) else data
    first = f"-first{limit}" if limit else ""
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{run.stage_name}-{run.step}{first}")


def _save(e: Evaluation) -> None:
    e.out.path.mkdir(parents=True, exist_ok=True)
    about = {"data": e.data, "stage": e.run.stage_name, "step": e.run.step, "limit": e.limit or None}
    rows = [
        {
            "id": q.id,
            "origin": q.origin,
            "group": q.group,
            "question": question(q),
            "answer": a,
            "truth": truth(q),
            "right": is_right(q, a),
            "images": picture_files(q.images),
        }
        for q, a in zip(e.questions, e.answers, strict=True)
    ]
    text = json.dumps(about | e.score | {"answers": rows}, indent=1, ensure_ascii=False) + "\n"
    replace_text(e.out.evaluation_file, text)
    title = f"{e.data}   {_weights(e.run)}   exact match {e.score['exact_match']:.1%} of {e.score['count']:,}"
    draw_sheet(e.out.samples, e.questions, e.answers, title)


def _data_of(result: Path) -> str | None:
    """The data of an earlier result; None if there is no readable one."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return json.loads(result.read_text())["data"]
    return None


def _weights(run: Run) -> str:
    return f"{run.stage_name}, step {run.step:,}"


def _table(result: dict[str, Any]) -> str:
    rows = [("all", result), *result["by_group"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'group':<{width}}  exact match  questions"]
    return "\n".join(lines + [f"{name:<{width}}  {r['exact_match']:>11.2%}  {r['count']:>9,}" for name, r in rows])


def _line(record: Record, text: str) -> str:
    asked, answered, true = (
        textwrap.shorten(t, 100, placeholder=" ...") for t in (question(record), text, truth(record))
    )
    verdict = "right" if is_right(record, text) else f"wrong, truth: {true}"
    return f"  {asked}  ->  {answered or '(nothing)'}   [{verdict}]"
