"""Looks at the data of a recipe before a run does: what would be lost, what the model would see.

Examples:
  python -m jaxvlm.inspect_data check --config configs/quickstart.py
  python -m jaxvlm.inspect_data check --config configs/llava15_7b_finetune.py --config.stage.finetune.data.tokens=4096
  python -m jaxvlm.inspect_data show --config configs/quickstart.py --rows 20
  python -m jaxvlm.inspect_data show --batch runs/mine/nonfinite/finetune-120
  python -m jaxvlm.inspect_data prepare --config configs/llava15_7b_finetune.py --out data/prepared --jpeg 95

`check` goes through every record that the stage would read (of images header and end, no pixels) and says which break a
rule, what rows of other sizes would lose and how full they would be, what is there twice, and how many steps the stage
takes. Exit code 2 if anything would be lost. In --out are problems.jsonl (every record that would be lost or cut),
lengths.png and report.json. A second check of the same data takes seconds: what was found is kept in JAXVLM_CACHE.

`show` writes a page (HTML, for any browser, also offline) of training rows as the model will see them: pixels after
resizing and padding, every token, the supervised ones in colour. --batch shows one that a run has written instead,
because its loss was not finite.

`prepare` decodes and resizes every image once and writes the records into shards (ArrayRecord), each source of the
recipe into a folder of its own if there are several; it says what to put into the recipe. A run on the result sees the
same records in the same order, with the same pixels (with --jpeg nearly). Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.command import Answer, Parser, Subparser, check_stage, load_config, run
from jaxvlm.config import Config, StageConfig
from jaxvlm.data.recipe_tokenizer import build_tokenizer, saved_tokenizer
from jaxvlm.data.rows.index import load_index, measure_index
from jaxvlm.data.rows.pipeline import Pipeline, batch_spec, open_samples, summary
from jaxvlm.data.rows.prepare import prepare
from jaxvlm.data.rows.samples import Samples
from jaxvlm.data.sources.mix import Mix
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.files import replace_text
from jaxvlm.inspect.page import PageRow, page_rows, write_page
from jaxvlm.inspect.report import make_report, plot_lengths, table, to_json, write_problems
from jaxvlm.objectives.registry import find_objective
from jaxvlm.runs import RunFolder


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("inspect_data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Subparser)
    check = commands.add_parser("check", help="say what would be lost, and what other rows would lose")
    show = commands.add_parser("show", help="write a page of rows as the model will see them")
    show.add_argument("--rows", type=int, default=16, metavar="N", help="so many (default: 16)")
    show.add_argument("--first", type=int, default=0, metavar="N", help="from this row of the first epoch on")
    show.add_argument("--batch", type=Path, metavar="DIR", help="a batch that a run wrote, instead of a recipe's data")
    prepare = commands.add_parser("prepare", help="decode and resize images once, for many runs")
    prepare.add_argument(
        "--jpeg", type=int, default=0, metavar="Q", help="keep images as JPEG of this quality, not PNG"
    )
    prepare.add_argument("--shard-records", type=int, default=4096, metavar="N", help="of a file (default: 4096)")
    prepare.add_argument("--on-bad", choices=("fail", "skip"), help="records that break a rule (default: the recipe's)")
    for command in (check, show, prepare):
        command.add_argument("--config", metavar="FILE", help="recipe, such as configs/quickstart.py")
        command.add_argument("--stage", metavar="NAME", help="stage of the recipe (default: the last)")
        command.add_argument("--out", type=_folder, metavar="DIR", help="where files go (default: runs/RECIPE-data)")
    args, overrides = parser.parse_with_overrides(argv)

    if args.command == "show" and args.batch:
        if args.config:
            raise UserError("--batch shows a batch as it was; leave --config out")
        return show_batch(args.batch, args.out or args.batch)
    if not args.config:
        parser.error(f"{args.command} needs --config FILE")
    config = load_config(args.config, overrides)
    name = args.stage or config.stages[-1]
    check_stage(config, name, args.config)
    out = args.out or Path(f"runs/{Path(args.config).stem}-data")
    if args.command == "check":
        return check_stage_data(config, config.stage[name], out)
    if args.command == "prepare":
        if not 0 <= args.jpeg <= 95 or args.shard_records < 1:
            raise UserError(
                f"--jpeg {args.jpeg} --shard-records {args.shard_records}: a quality from 1 to 95, 1 record or more"
            )
        skip = (args.on_bad or config.stage[name].data.on_bad) == "skip"
        return prepare_stage_data(
            config, config.stage[name], args.out or out / "prepared", args.jpeg, args.shard_records, skip=skip
        )
    if args.rows < 1 or args.first < 0:
        raise UserError(f"--rows {args.rows} --first {args.first}: at least 1 row, from 0 on")
    return show_stage_data(config, config.stage[name], args.first, args.rows, out)


def _folder(name: str) -> Path:
    if "://" in name:
        raise argparse.ArgumentTypeError(
            f"{name} is no folder of this machine; give one, and copy it there when it is whole (as with "
            "`gcloud storage cp -r`)"
        )
    return Path(name)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); check --out and the space on the disk") from error


def check_stage_data(config: Config, stage: StageConfig, out: Path) -> dict[str, Any]:
    """Prints the report of a stage's data, and leaves it in `out`.

    Raises:
      Answer: exit code 2, if anything would be lost.
    """
    samples, _ = _open(config, stage)
    index = load_index(samples)
    measured = measure_index(index, samples.layout)
    report = make_report(samples, index, measured, rows=stage.global_batch_size, epochs=stage.epochs, seed=config.seed)
    print(table(report, samples))
    result = to_json(report)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_problems(out / "problems.jsonl", report, samples, measured)
        plot_lengths(out / "lengths.png", report)
        replace_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    print(f"\n{out}: report.json, lengths.png, and in problems.jsonl every record that would be lost or cut")
    if report.loses:
        raise Answer(2, result)
    return result


def show_stage_data(config: Config, stage: StageConfig, first: int, count: int, out: Path) -> dict[str, Any]:
    """Writes a page of `count` rows of a stage's first epoch."""
    samples, tokenizer = _open(config, stage)
    layout = samples.layout
    index = load_index(samples)
    pipeline = Pipeline(samples, index, measure_index(index, layout), 1, config.seed)  # a row a batch
    total = pipeline.num_rows(1)
    end = min(first + count, total)
    if first >= end:
        raise UserError(f"--first {first}: an epoch has {total} rows, counted from 0")

    def rows() -> Iterator[PageRow]:
        for number in range(first, end):
            batch, (records,) = pipeline.look_up(number)
            pictures = layout.preview(batch.media, 0)
            yield PageRow(batch, 0, records, pictures, f"epoch 0, row {number} of {total}")

    title = f"Rows {first} to {end - 1} of {', '.join(part.name for part in samples.source.parts)}"
    notes = [
        f"{stage.data.tokens} tokens and {stage.data.media.units} {layout.unit} a row, template {stage.data.template}"
    ]
    return _write(out / "rows.html", rows(), tokenizer, title, notes)


def _open(config: Config, stage: StageConfig) -> tuple[Samples, Any]:
    """The records of a stage, and the tokenizer."""
    tokenizer, layout = build_tokenizer(config), media_layout(config.model, stage.data)
    return open_samples(stage.data, tokenizer, layout, pairs=find_objective(stage.objective).pairs), tokenizer


def show_batch(folder: Path, out: Path) -> dict[str, Any]:
    """Writes a page of a batch that `training/nonfinite.py` has written into a run."""
    files = sorted(folder.glob("process-*.npz"))
    workdir = folder.parent.parent
    if not files or folder.parent.name != "nonfinite":
        raise UserError(f"--batch {folder} holds no batch; give a folder WORKDIR/nonfinite/STAGE-STEP")
    run = RunFolder(workdir)
    config = run.load_config()
    stage = config.stage.get(folder.name.rpartition("-")[0])
    if stage is None:
        raise UserError(f"--batch {folder}: {workdir} has no stage of that name; it has {', '.join(config.stages)}")
    layout = media_layout(config.model, stage.data)
    spec = batch_spec(stage.data, layout, 1)

    def rows() -> Iterator[PageRow]:
        for file in files:
            with np.load(file, allow_pickle=False) as arrays:
                batch = Batch.from_arrays(arrays, spec)
            records = json.loads(file.with_suffix(".json").read_text())
            yield from page_rows(batch, records, layout, file.stem)

    title = f"Batch of {folder.name} in {workdir}"
    return _write(out / "rows.html", rows(), saved_tokenizer(run.tokenizer, config), title, [])


def prepare_stage_data(
    config: Config, stage: StageConfig, out: Path, jpeg: int, shard_records: int, *, skip: bool
) -> dict[str, Any]:
    """Writes each source of a stage into a folder, and says how a recipe names these."""
    samples, _ = _open(config, stage)
    layout = samples.layout
    index = load_index(samples)
    if index.errors and not skip:
        raise UserError(summary(list(index.errors.values()), len(index), "--on-bad skip"))
    parts, starts, cards = samples.source.parts, samples.source.starts, {}
    for number, part in enumerate(parts):
        folder = out if len(parts) == 1 else out / f"{number:02d}-{re.sub('[^A-Za-z0-9]+', '-', part.name).strip('-')}"
        first, end = int(starts[number]), int(starts[number + 1])
        known = {at - first: error for at, error in index.errors.items() if first <= at < end}
        with _writing(folder):
            card = prepare(Mix([part]), known, layout, folder, jpeg=jpeg, shard_records=shard_records, skip=skip)
        cards[str(folder)] = card
        size = sum(shard["bytes"] for shard in card["shards"]) / 2**20
        used, read = card["ledger"]["used"]["total"], card["ledger"]["read"]
        records = f"{used:,} records" if used == read else f"{used:,} of {read:,} records (card.json names the others)"
        print(f"{folder}: {records}, {size:,.0f} MiB in {len(card['shards'])} files")
    if len(parts) == 1:
        print(f'the recipe\'s data: source="{out}", image_folder=""')
    else:
        named = ", ".join(f'("{f}", {p.weight})' for f, p in zip(cards, parts, strict=True))
        print(f"the recipe's data: mix=({named})")
    return {"folders": {folder: card["ledger"] for folder, card in cards.items()}}


def _write(path: Path, rows: Iterator[PageRow], tokenizer: Any, title: str, notes: list[str]) -> dict[str, Any]:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = write_page(path, rows, tokenizer, title=title, notes=notes)
    print(f"{path}: {shown} rows; open it in a browser")
    return {"page": str(path), "rows": shown}


if __name__ == "__main__":
    sys.exit(run(main))
