"""Answers the questions of a data set with a run's model and counts the exact matches.

Examples:
  python -m jaxvlm.evaluate --run runs/quickstart
  python -m jaxvlm.evaluate --run runs/quickstart --data easy_vqa:test --limit 500
  python -m jaxvlm.evaluate --run runs/mine --data test.json --image-folder images --stage pretrain --step 2000

Without --data the recipe's own test is repeated. An answer is correct if it equals the reference, except for
white space at its ends. Every assistant turn of the data is a question; the turns before it are its context.

Two files are written to --out: evaluation.json (exact match, and each question with answer and truth) and samples.png
(24 random questions). For the recipe's own test --out is the run's folder, otherwise
RUN/evaluation/DATA-STAGE-STEP, with -firstN appended for --limit N, so that different results have different folders.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--data", default="", metavar="SPEC", help="a data.source (default: the recipe's test)")
    parser.add_argument("--image-folder", default="", metavar="DIR", help="folder of relative image paths")
    parser.add_argument("--stage", default="", metavar="NAME", help="stage of the weights (default: the last)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask only the first N questions")
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions at once (default: the recipe's)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the recipe's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: see above)")
    args = parser.parse_args(argv)
    if args.step < 0 or args.limit < 0:
        raise UserError(f"--step {args.step} --limit {args.limit}: numbers from 1 on, or 0 for the newest and for all")

    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm.evaluation.evaluate import evaluate_run, result_name
    from jaxvlm.restore import open_run
    from jaxvlm.runs import RunFolder

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
    out = RunFolder(args.out) if args.out else None
    if out is None and (args.data or args.stage or args.step or args.limit):
        out = RunFolder(opened.folder).results(result_name(opened, evaluation.source, args.limit))
    result = evaluate_run(opened, evaluation, out=out, limit=args.limit, progress=True)
    for note in result.notes:
        print(note, file=sys.stderr)
    print(result.summary())
    return result.score


if __name__ == "__main__":
    sys.exit(run(main))
