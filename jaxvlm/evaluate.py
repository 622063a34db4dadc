"""Answers the questions of a data set with a run's model and counts the exact matches.

Examples:
  python -m jaxvlm.evaluate --run runs/quickstart
  python -m jaxvlm.evaluate --run runs/quickstart --data easy_vqa:test --limit 500
  python -m jaxvlm.evaluate --run runs/mine --data test.json --image-folder images --stage pretrain --step 2000

Without --data the recipe's own test is repeated. An answer counts if it is the true one, character by character but for
white space at its ends. Every assistant turn of the data is a question; the turns before it are its context.

Two files are written to --out: evaluation.json (exact match, and each question with answer and truth) and samples.png
(24 questions drawn by lot). --out is the run's folder for the recipe's own test, and otherwise
RUN/evaluation/DATA-STAGE-STEP, with -firstN behind it after --limit N; so results of different things stay apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax

from jaxvlm.command import Parser, run
from jaxvlm.config import EvaluationConfig
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.text.conversation import drop_leading_answer
from jaxvlm.errors import UserError
from jaxvlm.files import replace_text
from jaxvlm.inference.chat import answer, is_right, question, score, truth
from jaxvlm.inference.sheet import draw_sheet, sample
from jaxvlm.restore import Run, open_run
from jaxvlm.runs import RunFolder

_NAMED_PROBLEMS = 10
_PRINTED = 6  # questions


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--data", default="", metavar="SPEC", help="a data.source (default: the recipe's test)")
    parser.add_argument("--image-folder", default="", metavar="DIR", help="what relative image paths are relative to")
    parser.add_argument("--stage", default="", metavar="NAME", help="stage of the weights (default: the last)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask only the first N questions")
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions at once (default: the recipe's)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the recipe's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: see above)")
    args = parser.parse_args(argv)
    if args.step < 0 or args.limit < 0:
        raise UserError(f"--step {args.step} --limit {args.limit}: numbers from 1 on, or 0 for the newest and for all")

    evaluation = RunFolder(args.run).load_config().evaluation
    if args.data:
        evaluation = dataclasses.replace(evaluation, source=args.data, image_folder=args.image_folder)
    elif args.image_folder:
        raise UserError("--image-folder goes with --data; the recipe's own test has its folder in the recipe")
    if not evaluation.source:
        raise UserError(f"the recipe of {args.run} has no test (evaluation.source); name a data set with --data")
    given = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    evaluation = dataclasses.replace(evaluation, **{name: value for name, value in given.items() if value is not None})

    opened = open_run(Path(args.run), stage=args.stage, step=args.step)
    out = args.out
    if out is None and (args.data or args.stage or args.step or args.limit):
        out = opened.folder / "evaluation" / _name(opened, evaluation.source, args.limit)
    return evaluate_run(opened, evaluation, out=out, limit=args.limit)


def evaluate_run(
    opened: Run, evaluation: EvaluationConfig, *, out: Path | None = None, limit: int = 0
) -> dict[str, Any]:
    """Evaluates a run, prints a table and a few answers, and writes evaluation.json and samples.png.

    Args:
      opened: the run.
      evaluation: which data, and how it is asked.
      out: folder of the results; None: the run's.
      limit: how many questions; 0: all.

    Returns:
      What `jaxvlm.inference.chat.score` does.

    Raises:
      UserError: records that break a rule or images that cannot be read; nothing is left out.
    """
    allow_outside = opened.stage.data.allow_outside
    questions = load_questions(evaluation.source, evaluation.image_folder, limit, allow_outside=allow_outside)
    answers = answer(
        opened.model,
        opened.params,
        opened.tokenizer,
        opened.stage.data,
        questions,
        mesh=opened.mesh,
        rules=opened.rules,
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
        progress=True,
    )
    result = score(questions, answers)
    if jax.process_index() > 0:  # all hosts have all answers, one of them writes
        return result
    out = opened.folder if out is None else out
    print(f"{evaluation.source}, answered by {opened.folder} ({_weights(opened)})\n\n{_table(result)}\n")
    for number in sample(len(questions), _PRINTED):
        print(_line(questions[number], answers[number]))
    _save(out, opened, evaluation.source, limit, questions, answers, result)
    return result


def load_questions(spec: str, image_folder: str = "", limit: int = 0, *, allow_outside: bool = False) -> list[Record]:
    """The questions of a data set, each a record that ends in the true answer.

    Args:
      spec: as `data.source` of a recipe.
      image_folder: as `data.image_folder`.
      limit: only the first so many; 0: all.
      allow_outside: as `data.allow_outside`.

    Raises:
      UserError: no such data, records that break a rule (ten at most are named), or no question.
    """
    source = load_source(spec, image_folder, allow_outside=allow_outside)
    questions: list[Record] = []
    problems = []
    for index in range(len(source)):
        if limit and len(questions) >= limit:
            break
        try:
            record = source[index]
        except RecordError as error:
            problems.append(str(error))
            continue
        asked = drop_leading_answer(record)
        if asked is not record:
            print(f"{record.origin}: the answer before the first question is left out", file=sys.stderr)
        questions.extend(source.questions(asked))
    if problems:
        more = f"; and {len(problems) - _NAMED_PROBLEMS} more" if len(problems) > _NAMED_PROBLEMS else ""
        raise UserError("; ".join(problems[:_NAMED_PROBLEMS]) + more)
    if not questions:
        raise UserError(f"{spec} holds no question: none of its {len(source)} records has an answer to compare with")
    return questions[:limit] if limit else questions


def _save(
    out: Path,
    opened: Run,
    data: str,
    limit: int,
    questions: list[Record],
    answers: list[str],
    result: dict[str, Any],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "evaluation.json"
    before = _data_of(path)
    if before not in (None, data):
        print(f"{path} held the result for {before}; it is replaced", file=sys.stderr)
    about = {"data": data, "stage": opened.stage_name, "step": opened.step, "limit": limit or None}
    rows = [
        {
            "id": q.id,
            "origin": q.origin,
            "group": q.group,
            "question": question(q),
            "answer": a,
            "truth": truth(q),
            "right": is_right(q, a),
        }
        for q, a in zip(questions, answers, strict=True)
    ]
    replace_text(path, json.dumps(about | result | {"answers": rows}, indent=1, ensure_ascii=False) + "\n")
    title = f"{data}   {_weights(opened)}   exact match {result['exact_match']:.1%} of {result['count']:,}"
    draw_sheet(out / "samples.png", questions, answers, title)
    print(f"\nall answers are in {path}, a sheet of them in {out / 'samples.png'}")


def _data_of(result: Path) -> str | None:
    """The data that a result is of; None if there is none that can be read."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return json.loads(result.read_text())["data"]
    return None


def _weights(opened: Run) -> str:
    return f"{opened.stage_name}, step {opened.step:,}"


def _name(opened: Run, data: str, limit: int) -> str:
    """Name of a result's folder: `easy_vqa-test-finetune-1000-first500`."""
    stem = Path(data).stem if data.endswith((".json", ".jsonl")) else data
    first = f"-first{limit}" if limit else ""
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{opened.stage_name}-{opened.step}{first}")


def _table(result: dict[str, Any]) -> str:
    rows = [("all", result), *result["by_group"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'group':<{width}}  exact match  questions"]
    return "\n".join(lines + [f"{name:<{width}}  {r['exact_match']:>11.2%}  {r['count']:>9,}" for name, r in rows])


def _line(record: Record, text: str) -> str:
    asked, said, true = (textwrap.shorten(t, 100, placeholder=" ...") for t in (question(record), text, truth(record)))
    verdict = "right" if is_right(record, text) else f"wrong, truth: {true}"
    return f"  {asked}  ->  {said or '(nothing)'}   [{verdict}]"


if __name__ == "__main__":
    sys.exit(run(main))
