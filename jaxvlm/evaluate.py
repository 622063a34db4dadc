"""Measures a run's model or published weights: on benchmarks, or on a data set by exact match.

Examples:
  python -m jaxvlm.evaluate --run runs/quickstart
  python -m jaxvlm.evaluate --run runs/quickstart --data easy_vqa:test --limit 500
  python -m jaxvlm.evaluate --run runs/mine --data test.json --image-folder images --stage pretrain --step 2000
  python -m jaxvlm.evaluate --suite list
  python -m jaxvlm.evaluate --suite list:pope
  python -m jaxvlm.evaluate --run runs/mine --suite pope,gqa,mme --data data/benchmarks
  python -m jaxvlm.evaluate --run runs/mine --suite pope --limit 500 --scoring loglikelihood
  python -m jaxvlm.evaluate --from llava-hf/llava-1.5-7b-hf --suite pope
  python -m jaxvlm.evaluate --suite pope --answers llava-v1.5-7b.jsonl

Benchmarks (--suite; docs/evaluation.md). Each has a folder of its name in --data; nothing is downloaded. The number is
printed with its 95 % interval (bootstrap over images), its dialect, which says how it is asked, read and averaged, and
published numbers of the same dialect. Files go to --out (default: RUN/evaluations, or evaluations/SOURCE): NAME.json
with every answer, NAME.html with the worst ones, NAME.answers.jsonl, which --resume continues after a stop, and
submissions where a server scores. --limit takes a fixed random choice of questions, whose result has its own name.

Data sets (without --suite). Without --data the recipe's own test is repeated. An answer is correct if it equals the
reference, except for white space at its ends. Every assistant turn of the data is a question; the turns before it are
its context. Two files are written to --out: evaluation.json (exact match, and each question with answer and truth) and
samples.png (24 random questions). For the recipe's own test --out is the run's folder, otherwise
RUN/evaluation/DATA-STAGE-STEP, with -firstN appended for --limit N, so that different results have different folders.

--from, --adapter and --template name a model as those of `generate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.command import Parser, add_process_flags, run
from jaxvlm.errors import UserError
from jaxvlm.model_flags import add_model_flags, check_model_flags, open_flags, with_system

if TYPE_CHECKING:
    from jaxvlm.evaluation.result import Result
    from jaxvlm.evaluation.task import Task
    from jaxvlm.restore import Run

_LIST = "list"
_SUITE_FLAGS = ("split", "dialect", "scoring", "answers", "resume")


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    args = _parser().parse_args(argv)
    _check_flags(args)
    if args.suite is None:
        return _evaluate_data(args)
    names = [name for name in args.suite.split(",") if name]
    if any(name.partition(":")[0] == _LIST for name in names):
        return _list(names, args)
    return _score_answers(names, args) if args.answers else _run_suites(names, args)


def _parser() -> Parser:
    parser = Parser("evaluate", __doc__)
    add_model_flags(parser)
    parser.add_argument(
        "--suite", metavar="NAMES", help='benchmarks, as pope,gqa or vqav2:val; "list" and "list:NAME" describe them'
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="SPEC",
        help="a data.source (default: the recipe's test); with --suite the folder that has a folder for each benchmark "
        "(default: data/benchmarks)",
    )
    parser.add_argument("--image-folder", default="", metavar="DIR", help="folder of relative image paths")
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="ask only the first N questions; of a benchmark a fixed choice",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions at once (default: the recipe's)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer (default: the recipe's, or the benchmark's)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: see above)")
    suite = parser.add_argument_group("with --suite")
    suite.add_argument("--split", metavar="NAME", help="of the benchmark (default: see --suite list)")
    suite.add_argument("--dialect", metavar="NAME", help="whose prompts, parsing and averaging (default: the same)")
    suite.add_argument(
        "--scoring",
        choices=["generate", "loglikelihood", "loglikelihood_mean"],
        help="generate answers (default), or rank choices by the sum or the mean of their tokens' log probabilities",
    )
    suite.add_argument(
        "--answers", type=Path, metavar="FILE", help="score these answers, without a model (ours, LLaVA's, lmms-eval's)"
    )
    suite.add_argument("--resume", action="store_true", help="continue a stopped evaluation")
    add_process_flags(parser)
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    """Raises `UserError` with everything that does not go together."""
    problems = []
    if args.step < 0 or args.limit < 0:
        problems.append(f"--step {args.step} --limit {args.limit}: numbers from 1 on, or 0 for the newest and for all")
    if args.suite is None:
        given = [f"--{name}" for name in _SUITE_FLAGS if getattr(args, name)]
        problems += [f"{', '.join(given)}: only with --suite"] if given else []
        if args.image_folder and not args.data:
            problems.append("--image-folder goes with --data; the recipe's own test has its folder in the recipe")
        problems += _problems_of_model(args)
    else:
        problems += _problems_of_suite(args)
    if problems:
        raise UserError("; ".join(problems))


def _problems_of_suite(args: argparse.Namespace) -> list[str]:
    names = [name for name in args.suite.split(",") if name]
    if not names:
        return ["--suite names no benchmark; --suite list shows them"]
    if any(name.partition(":")[0] == _LIST for name in names):
        return []
    problems = []
    if args.image_folder:
        problems.append("--image-folder: a benchmark's images are where its files name them; leave it out")
    for flag in ("batch_size", "max_new_tokens"):
        if (value := getattr(args, flag)) is not None and value < 1:
            problems.append(f"--{flag.replace('_', '-')} {value}: expected 1 or more")
    if args.answers is None:
        return problems + _problems_of_model(args)
    model_flags = ["run", "from", "adapter", "stage", "step", "template", "system", "batch_size", "max_new_tokens"]
    model_flags += ["scoring", "resume"]
    given_flags = vars(args) | {"from": args.sources}
    if given := [f"--{flag.replace('_', '-')}" for flag in model_flags if given_flags.get(flag)]:
        problems.append(f"--answers FILE is scored without a model; leave out {', '.join(given)}")
    if len(names) > 1:
        problems.append(f"--answers FILE has the answers to one benchmark, --suite names {len(names)}")
    return problems


def _problems_of_model(args: argparse.Namespace) -> list[str]:
    try:
        check_model_flags(args)
    except UserError as error:
        return [str(error)]
    return []


def _list(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    from jaxvlm.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
    from jaxvlm.evaluation.suite_table import catalogue, description

    root = Path(_root(args))
    pages = [name.partition(":")[2] for name in names]
    print("\n\n".join(description(find_benchmark(name), root / name) if name else catalogue(root) for name in pages))
    return {"benchmarks": list(BENCHMARKS)}


def _run_suites(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Opens the model, asks each benchmark, and prints each result as it is there."""
    from jaxvlm import processes
    from jaxvlm.evaluation.suite import Asking, run_task, weights_fingerprint
    from jaxvlm.evaluation.suite_table import table
    from jaxvlm.inference.engine import Engine
    from jaxvlm.runs import RunFolder

    processes.connect(args)
    tasks = _tasks(names, args)
    config, load = open_flags(args)
    out = args.out or (RunFolder(args.run).evaluations if args.run else _folder_of_sources(args))
    label = ""
    results = []
    with processes.abort_together():
        opened = _with_system(load(), args.system)
        engine = Engine.of(opened)
        model = _describe(args, opened) | {"weights": weights_fingerprint(engine)}
        if args.stage or args.step:
            label = f"{opened.stage_name}-{opened.step}"
        batch_size = args.batch_size or config.evaluation.batch_size
        asking = Asking(batch_size, args.max_new_tokens, resume=args.resume, progress=True)
        for task in tasks:
            results.append(run_task(engine, task, model, out, label, asking))
            if processes.index() == 0:
                _report(results[-1], out, label)
        if processes.index() == 0:
            print(table(results))
    return _numbers(results, label)


def _describe(args: argparse.Namespace, opened: Run) -> dict[str, Any]:
    """What a result says of the model."""
    if args.run:
        return {"run": args.run, "stage": opened.stage_name, "step": opened.step}
    return {"sources": args.sources, "adapter": args.adapter}


def _folder_of_sources(args: argparse.Namespace) -> Path:
    """evaluations/NAME, of weights that are in no run: the last part of their path or name."""
    return Path("evaluations") / Path(args.adapter or args.sources[-1]).name.partition("@")[0]


def _with_system(opened: Run, system: str | None) -> Run:
    """The model with another system message; None: with its own."""
    from jaxvlm.inference.engine import Engine

    data = with_system(Engine.of(opened), system).data
    return dataclasses.replace(opened, stage=dataclasses.replace(opened.stage, data=data))


def _score_answers(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    from jaxvlm.evaluation.answer_files import read_answers
    from jaxvlm.evaluation.result import file_hashes, score_task
    from jaxvlm.evaluation.saving import save
    from jaxvlm.evaluation.suite_table import table

    (task,) = _tasks(names, args)
    replies = read_answers(args.answers, task)
    model = {"answers": str(args.answers), "sha256": file_hashes(args.answers)[args.answers.name]}
    result = score_task(task, replies, model=model, generation={})
    out, label = args.out or args.answers.parent / "evaluations", args.answers.stem
    save(result, out, label)
    _report(result, out, label)
    print(table([result]))
    return _numbers([result], label)


def _tasks(names: list[str], args: argparse.Namespace) -> list[Task]:
    from jaxvlm.evaluation.task import GENERATE, load_tasks

    return load_tasks(
        names,
        Path(_root(args)),
        split=args.split or "",
        dialect=args.dialect or "",
        limit=args.limit,
        scoring=args.scoring or GENERATE,
    )


def _root(args: argparse.Namespace) -> str:
    from jaxvlm.evaluation.task import DEFAULT_FOLDER

    return args.data or DEFAULT_FOLDER


def _report(result: Result, out: Path, label: str) -> None:
    from jaxvlm.evaluation.saving import stem
    from jaxvlm.evaluation.suite_table import details

    name = out / stem(result.task, label)
    print(f"{details(result)}\n  all answers are in {name}.json, the worst in {name}.html\n", flush=True)


def _numbers(results: list[Result], label: str) -> dict[str, Any]:
    """What `--json` prints."""
    from jaxvlm.evaluation.saving import stem

    return {
        stem(r.task, label): {
            "scores": r.scores.numbers,
            "interval": [r.interval.low, r.interval.high] if r.interval else None,
            "count": len(r.task.items),
            "of": len(r.task.whole),
            "dialect": r.task.dialect,
            "unparsed": len(r.unparsed),
            "truncated": None if r.truncated is None else len(r.truncated),
        }
        for r in results
    }


def _evaluate_data(args: argparse.Namespace) -> dict[str, Any]:
    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm import processes
    from jaxvlm.evaluation.evaluate import evaluate_run, result_name
    from jaxvlm.runs import RunFolder

    processes.connect(args)
    config, load = open_flags(args)
    evaluation = config.evaluation
    if args.data:
        evaluation = dataclasses.replace(evaluation, source=args.data, image_folder=args.image_folder)
    if not evaluation.source:
        model = f"the recipe of {args.run}" if args.run else args.sources[-1]
        raise UserError(f"{model} has no test (evaluation.source); name a data set with --data")
    given = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    evaluation = dataclasses.replace(evaluation, **{name: value for name, value in given.items() if value is not None})

    with processes.abort_together():
        opened = _with_system(load(), args.system)
        name = result_name(opened, evaluation.source, args.limit)
        out = RunFolder(args.out) if args.out else None
        if out is None and args.sources:
            out = RunFolder(_folder_of_sources(args) / name)
        elif out is None and (args.data or args.stage or args.step or args.limit):
            out = RunFolder(opened.folder).results(name)
        result = evaluate_run(opened, evaluation, out=out, limit=args.limit, progress=True)
    processes.log(*result.notes)
    if processes.index() == 0:
        print(result.summary())
    return result.score


if __name__ == "__main__":
    sys.exit(run(main))
