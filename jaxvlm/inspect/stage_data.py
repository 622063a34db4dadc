"""The data of a stage: checked, shown as pages of rows, and prepared; each function returns its findings."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.config import Config, StageConfig
from jaxvlm.data.recipe_tokenizer import build_tokenizer, saved_tokenizer
from jaxvlm.data.rows.index import load_index, measure_index, summary
from jaxvlm.data.rows.pipeline import Pipeline, batch_spec, open_samples
from jaxvlm.data.rows.prepare import prepare
from jaxvlm.data.rows.samples import Samples
from jaxvlm.data.sources.mix import Mix
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.files import replace_text
from jaxvlm.flops import Work
from jaxvlm.inspect.page import PageRow, page_rows, write_page
from jaxvlm.inspect.report import make_report, plot_lengths, to_json, write_problems
from jaxvlm.inspect.report_table import table
from jaxvlm.inspect.row_records import write_rows
from jaxvlm.objectives.registry import find_objective
from jaxvlm.planning.flops import model_flops, total_flops
from jaxvlm.runs import RunFolder

_CHOICE = 1000  # records of each source, of which a check shows rows


class Findings(NamedTuple):
    """The findings of a function of this file."""

    text: str  # for a person
    result: dict[str, Any]  # for a program


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); check --out and the space on the disk") from error


def _open(config: Config, stage: StageConfig) -> tuple[Samples, Any]:
    """The records of a stage, and the tokenizer."""
    tokenizer, layout = build_tokenizer(config), media_layout(config.model, stage.data)
    pairs = find_objective(stage.objective).pairs
    return open_samples(stage.data, tokenizer, layout, pairs=pairs, date=config.date), tokenizer


def check_stage_data(config: Config, stage: StageConfig, out: Path, rows: int = 0) -> Findings:
    """Writes the report of a stage's data into `out`; `result["loses"]` is whether anything would be lost.

    Args:
      rows: number of rows that are written first, as a page and as data. They are packed from a random choice of the
        records that break no rule.
    """
    samples, tokenizer = _open(config, stage)
    files = _write_examples(samples, tokenizer, config.seed, rows, out) if rows else ""
    index = load_index(samples)
    measured = measure_index(index, samples.layout)
    report = make_report(
        samples,
        index,
        measured,
        rows=stage.global_batch_size,
        epochs=stage.epochs,
        seed=config.seed,
        cost=lambda tokens, units, in_row: _cost_of_row(config, stage, tokens, units, in_row),
    )
    result = to_json(report)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_problems(out / "problems.jsonl", report, samples, measured)
        plot_lengths(out / "lengths.png", report)
        replace_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    files = f"{out}: report.json, lengths.png, and in problems.jsonl every record that would be lost or cut{files}"
    return Findings(f"{table(report, samples)}\n\n{files}", result)


def _write_examples(samples: Samples, tokenizer: Any, seed: int, rows: int, out: Path) -> str:
    """Writes rows packed from at most `_CHOICE` records of each source, in seconds for any number of records.

    Returns:
      The end of the report's list of files.
    """
    some = copy.copy(samples)
    some.source = samples.source.choice(_CHOICE)
    index = load_index(some)
    try:
        pipeline = Pipeline(some, index, measure_index(index, some.layout), 1, seed)
    except UserError:  # each of them breaks a rule, which the report tells
        return ""
    shown = list(_iterate_rows(some, pipeline, 0, min(rows, pipeline.num_rows(1))))
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out, shown, tokenizer)
        write_page(out / "rows.html", shown, tokenizer, title=_title(some, 0, len(shown)), notes=[])
    return f"; rows.html and rows.json: {len(shown)} rows"


def _cost_of_row(config: Config, stage: StageConfig, tokens: int, units: int, in_row: float) -> float:
    """Operations of training on a row, padding included, without adapters."""
    work = Work(
        rows=1, tokens=tokens, samples=max(in_row, 1.0), units=units, images=max(in_row, 1.0), supervised=tokens / 4
    )
    return total_flops(model_flops(config.model, stage.parts, {}, work))


def show_stage_data(config: Config, stage: StageConfig, first: int, count: int, out: Path) -> Findings:
    """Writes a page of `count` rows of a stage's first epoch."""
    samples, tokenizer = _open(config, stage)
    layout = samples.layout
    index = load_index(samples)
    pipeline = Pipeline(samples, index, measure_index(index, layout), 1, config.seed)  # a row a batch
    total = pipeline.num_rows(1)
    end = min(first + count, total)
    if first >= end:
        raise UserError(f"--first {first}: an epoch has {total} rows, counted from 0")

    notes = [
        f"{stage.data.tokens} tokens and {stage.data.media.units} {layout.unit} a row, template {stage.data.template}"
    ]
    rows = _iterate_rows(samples, pipeline, first, end)
    return _write(out / "rows.html", rows, tokenizer, _title(samples, first, end), notes)


def _iterate_rows(samples: Samples, pipeline: Pipeline, first: int, end: int) -> Iterator[PageRow]:
    """The rows `first` to `end` - 1 of the first epoch; the pipeline has one in a batch."""
    for number in range(first, end):
        batch, (records,) = pipeline.look_up(number)
        pictures = samples.layout.preview(batch.media, 0)
        yield PageRow(batch, 0, records, pictures, f"epoch 0, row {number} of {pipeline.num_rows(1)}")


def _title(samples: Samples, first: int, end: int) -> str:
    return f"Rows {first} to {end - 1} of {', '.join(part.name for part in samples.source.parts)}"


def show_batch(folder: Path, out: Path) -> Findings:
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
) -> Findings:
    """Writes each source of a stage into a folder, and reports how a recipe names these."""
    samples, _ = _open(config, stage)
    layout = samples.layout
    index = load_index(samples)
    if index.errors and not skip:
        raise UserError(summary(list(index.errors.values()), len(index), "--on-bad skip"))
    parts, starts, cards = samples.source.parts, samples.source.starts, {}
    lines = []
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
        lines.append(f"{folder}: {records}, {size:,.0f} MiB in {len(card['shards'])} files")
    if len(parts) == 1:
        lines.append(f'the recipe\'s data: source="{out}", image_folder=""')
    else:
        named = ", ".join(f'("{f}", {p.weight})' for f, p in zip(cards, parts, strict=True))
        lines.append(f"the recipe's data: mix=({named})")
    return Findings("\n".join(lines), {"folders": {folder: card["ledger"] for folder, card in cards.items()}})


def _write(path: Path, rows: Iterator[PageRow], tokenizer: Any, title: str, notes: list[str]) -> Findings:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = write_page(path, rows, tokenizer, title=title, notes=notes)
    return Findings(f"{path}: {shown} rows; open it in a browser", {"page": str(path), "rows": shown})
