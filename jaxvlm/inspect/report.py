"""The report of `inspect_data check`: what training with a recipe would do with its data.

Everything comes from the index, so a second report, also for other rows, takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxvlm.data.records import RecordError
from jaxvlm.data.rows.index import Index, Measured
from jaxvlm.data.rows.packing import plan_rows
from jaxvlm.data.rows.pipeline import Pipeline, heldout, rejected
from jaxvlm.data.rows.samples import Samples
from jaxvlm.errors import UserError
from jaxvlm.files import replace_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_GROUPS = 3  # of duplicates
_TRIED = 20_000  # samples on which other row sizes are tried
_USUAL_TOKENS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)


@dataclasses.dataclass(frozen=True)
class RowSize:
    """Losses and fill of rows of one size."""

    tokens: int
    units: int  # media units
    rejected: int  # records that no such row can hold
    truncated: int  # records whose text would be cut
    cut: int  # tokens of text that would be cut from those
    filled: float  # share of positions with a token, for a sample of the records
    units_filled: float  # share of media units in use
    samples: float  # in a row
    cost: float  # operations of training on a sample, padding included, where the recipe's rows are 1


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """One source of the recipe."""

    name: str
    weight: float
    records: int
    rejected: int
    heldout: int
    with_images: int
    images: int
    median_length: int  # positions
    supervised: int  # tokens of all training records, untruncated


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Duplicates of one kind."""

    what: str
    distinct: int
    repeated: int  # distinct ones that are in several records
    leaked: int  # held-out records that share one with training records
    largest: tuple[tuple[int, list[int]], ...]  # the number of records with it, and the first few


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report."""

    sources: tuple[SourceCounts, ...]
    errors: dict[int, RecordError]
    truncated: np.ndarray  # int64[n]; records whose text would be cut
    unasked: int  # records that begin with an answer, which is left out
    unanswered: int  # records that end with a question, which is left out
    notes: dict[str, int]  # what is not read of records, or becomes something else than expected -> number of records
    warnings: tuple[str, ...]  # of the renderer, about all records
    lossless: RowSize | None  # the smallest rows that would lose nothing; None without a record that fits any
    rows: tuple[RowSize, ...]  # the recipe's first
    duplicates: tuple[Duplicates, ...]
    lengths: np.ndarray  # int32[n] of the records that can be read, whole
    boxes: int  # in all texts, where data.boxes says what they mean
    outside: tuple[str, ...]  # records with a box outside of its image
    plan: dict[str, float] | str  # steps and the average contents of one; or why there is nothing to train on
    tokens: int  # of a row of the recipe
    unit: str  # what a media unit is called

    @property
    def loses(self) -> bool:
        """Whether any of the data would be lost, or a source is empty."""
        return bool(self.errors) or len(self.truncated) > 0 or isinstance(self.plan, str)


def make_report(
    samples: Samples,
    index: Index,
    measured: Measured,
    *,
    rows: int,
    epochs: float,
    seed: int,
    cost: Callable[[int, int, float], float],
) -> Report:
    """Makes the report of a stage.

    Args:
      samples: from `open_samples`.
      index: from `load_index` of them.
      measured: from `measure_index`, with the layout of the samples.
      rows: of a step.
      epochs: of the stage.
      seed: of the run, for the schedule of rows.
      cost: operations of training on a row of so many tokens, media units and samples, padding included.

    Raises:
      UserError: rows are too short for any image.
    """
    config = samples.config
    errors = rejected(samples, index, measured)
    bad = np.zeros(len(index), bool)
    bad[list(errors)] = True
    held = heldout(index, config.heldout) & ~bad
    readable = measured.length > 0
    lossless = _lossless(measured, samples.layout.least_positions)
    sizes = _sizes_to_try(config.tokens, config.media.units, lossless)
    tried = [_try(measured, tokens, units, config.pack, cost) for tokens, units in sizes]
    whole = _try(measured, *lossless, config.pack, cost) if lossless else None
    unit = tried[0].cost or 1.0
    return Report(
        sources=tuple(
            _count_source(samples, index, measured, bad, held, number) for number in range(len(samples.source.parts))
        ),
        errors=errors,
        truncated=np.flatnonzero(~bad & (measured.length > config.tokens)),
        unasked=int(np.count_nonzero(index.dropped_answer & ~bad)),
        unanswered=int(np.count_nonzero(index.dropped_question & ~bad)),
        notes=index.notes,
        warnings=samples.renderer.warnings,
        lossless=whole and dataclasses.replace(whole, cost=whole.cost / unit),
        rows=tuple(dataclasses.replace(size, cost=size.cost / unit) for size in tried),
        duplicates=(
            _duplicates("conversation", index.text_hash[readable], np.flatnonzero(readable), held),
            _duplicates("image", index.image_hash, np.repeat(np.arange(len(index)), index.images), held),
        ),
        lengths=measured.length[readable],
        boxes=int(index.boxes.sum()),
        outside=tuple(samples.source.origin(int(at)) for at in np.flatnonzero(index.boxes_outside)),
        plan=_plan(samples, index, measured, rows, epochs, seed),
        tokens=config.tokens,
        unit=measured.unit,
    )


def _count_source(
    samples: Samples, index: Index, measured: Measured, bad: np.ndarray, held: np.ndarray, number: int
) -> SourceCounts:
    part = samples.source.parts[number]
    own = slice(int(samples.source.starts[number]), int(samples.source.starts[number + 1]))
    good = ~bad[own]
    lengths = measured.length[own][good]
    return SourceCounts(
        name=part.name,
        weight=part.weight,
        records=len(part.source),
        rejected=int(np.count_nonzero(bad[own])),
        heldout=int(np.count_nonzero(held[own])),
        with_images=int(np.count_nonzero(index.images[own])),
        images=int(index.images[own].sum()),
        median_length=int(np.median(lengths)) if len(lengths) else 0,
        supervised=int(index.supervised[own][good & ~held[own]].sum()),
    )


def _lossless(measured: Measured, least_positions: int) -> tuple[int, int] | None:
    """T and U with which nothing is rejected for its size, nor truncated; T a multiple of 64."""
    if not measured.length.any():
        return None
    tokens = -(-max(int(measured.length.max()), least_positions + 2) // 64) * 64
    return tokens, int(measured.units[measured.length > 0].max())


def _sizes_to_try(tokens: int, units: int, lossless: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The recipe's rows, other lengths with as many media units, and the same length with other numbers of units."""
    longest, most = lossless or (tokens, units)
    lengths = [T for T in _USUAL_TOKENS if longest > T and tokens != T][-6:]
    few = units < 8  # slots, which are tried one by one; patches by eighths
    steps: tuple[int, ...] = (units + 1, units - 1, units + 2)
    if not few:
        steps = tuple(units * eighths // 8 for eighths in (4, 6, 7, 9, 10))
    if not units and not most:  # text alone
        steps = ()
    others = sorted({most, *steps} - {units})
    return [(tokens, units), *((T, units) for T in lengths), *((tokens, other) for other in others if other >= 0)]


def _try(measured: Measured, tokens: int, units: int, pack: bool, cost: Callable[[int, int, float], float]) -> RowSize:
    """Rows of a size; their cost is that of a sample, in operations."""
    misfits = measured.misfits(tokens, units)
    fits = (measured.length > 0) & ~misfits
    long = fits & (measured.length > tokens)
    order = np.random.default_rng(0).permutation(np.flatnonzero(fits))[:_TRIED]
    lengths = np.minimum(measured.length, tokens)
    rows = plan_rows(lengths, measured.units, order, tokens=tokens, budget=units, pack=pack)
    count = max(1, len(rows))
    in_row = len(order) / count
    return RowSize(
        tokens,
        units,
        rejected=int(np.count_nonzero(misfits)),
        truncated=int(np.count_nonzero(long)),
        cut=int((measured.length[long] - tokens).sum()),
        filled=float(lengths[order].sum()) / (count * tokens),
        units_filled=float(measured.units[order].sum()) / (count * units) if units else 1.0,
        samples=in_row,
        cost=cost(tokens, units, in_row) / in_row if in_row else 0.0,
    )


def _plan(
    samples: Samples, index: Index, measured: Measured, rows: int, epochs: float, seed: int
) -> dict[str, float] | str:
    try:
        pipeline = Pipeline(samples, index, measured, rows, seed)
    except UserError as error:
        return str(error)
    planned = pipeline.rows_of_epoch(0)
    members = np.array([index for row in planned for index in row], np.int64)
    total = pipeline.num_rows(epochs)
    lengths = np.minimum(measured.length[members], samples.config.tokens)
    return {
        "steps": -(-total // rows),
        "rows": total,
        "rows_per_step": rows,
        "samples_per_row": len(members) / len(planned),
        "samples_per_step": rows * len(members) / len(planned),
        "supervised_tokens_per_step": rows * float(index.supervised[members].sum()) / len(planned),
        "filled": float(lengths.sum()) / (len(planned) * samples.config.tokens),
    }


def _duplicates(what: str, hashes: np.ndarray, owners: np.ndarray, held: np.ndarray) -> Duplicates:
    """Groups of equal hashes.

    Args:
      what: the name of what was hashed.
      hashes: uint64[m].
      owners: int64[m]; the record of each.
      held: bool[n]; the records that are held out.
    """
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    once = np.ones(len(hashes), bool)  # for each record
    once[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    hashes, owners = hashes[once], owners[once]
    values, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    is_held = held[owners]
    trained = np.zeros(len(values), bool)
    trained[inverse[~is_held]] = True
    most = [group for group in np.argsort(-counts, kind="stable")[:_GROUPS] if counts[group] > 1]
    return Duplicates(
        what=what,
        distinct=len(values),
        repeated=int(np.count_nonzero(counts > 1)),
        leaked=len(np.unique(owners[is_held & trained[inverse]])),
        largest=tuple((int(counts[group]), owners[inverse == group][:3].tolist()) for group in most),
    )


def write_problems(path: Path, report: Report, samples: Samples, measured: Measured) -> None:
    """Writes every record that would be lost or cut as a line of JSON: index, origin, reason, problem."""
    lines = [
        {"record": at, "origin": error.origin, "reason": error.reason, "problem": str(error)}
        for at, error in report.errors.items()
    ]
    for at in map(int, report.truncated):
        problem = (
            f"{measured.length[at]} positions, the last {measured.length[at] - report.tokens} of them text that is cut"
        )
        lines.append({"record": at, "origin": samples.source.origin(at), "reason": "truncated", "problem": problem})
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def plot_lengths(path: Path, report: Report) -> None:
    """Draws the histogram of lengths, and the share of the data that rows of each length hold whole."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    if len(report.lengths):
        axes.hist(report.lengths, bins=80, color="C0", alpha=0.7)
        whole = axes.twinx()
        whole.plot(np.sort(report.lengths), np.linspace(0, 100, len(report.lengths)), color="C1")
        whole.set(ylabel="records of at most that many positions (%)", ylim=(0, 101))
    axes.axvline(report.tokens, color="k", linestyle="--", linewidth=1, label=f"data.tokens = {report.tokens}")
    axes.set(xlabel="positions of a record, images expanded", ylabel="records")
    axes.legend(loc="center right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def to_json(report: Report) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    reasons = Counter(error.reason for error in report.errors.values())
    return {
        "loses": report.loses,
        "records": sum(source.records for source in report.sources),
        "rejected": dict(reasons.most_common()),
        "truncated": len(report.truncated),
        "unasked": report.unasked,
        "unanswered": report.unanswered,
        "notes": report.notes,
        "warnings": report.warnings,
        "sources": [dataclasses.asdict(source) for source in report.sources],
        "lossless": dataclasses.asdict(report.lossless) if report.lossless else None,
        "rows": [dataclasses.asdict(rows) for rows in report.rows],
        "duplicates": {
            d.what: {"distinct": d.distinct, "repeated": d.repeated, "leaked": d.leaked} for d in report.duplicates
        },
        "boxes": {"count": report.boxes, "outside": list(report.outside)},
        "plan": report.plan,
    }
