"""The report of `inspect_data check` as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvlm.data.records import RecordError
from jaxvlm.data.rows.samples import Samples
from jaxvlm.inspect.report import Report

_SHOWN = 10  # bad records
_BARS = 14  # of the histogram in text


def table(report: Report, samples: Samples) -> str:
    """The report as text."""
    blocks = [_source_lines(report), _histogram(report), _rows_lines(report), _plan_lines(report), _box_lines(report)]
    blocks += [_duplicate_lines(report, samples), _note_lines(report), _problem_lines(report)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _source_lines(report: Report) -> list[str]:
    head = (
        "source",
        "weight",
        "records",
        "rejected",
        "held out",
        "with images",
        "images",
        "median length",
        "supervised",
    )
    rows = [
        (
            source.name,
            f"{source.weight:g}",
            *(f"{n:,}" for n in (source.records, source.rejected, source.heldout, source.with_images, source.images)),
            f"{source.median_length:,}",
            f"{source.supervised:,}",
        )
        for source in report.sources
    ]
    return _aligned([head, *rows])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _histogram(report: Report) -> list[str]:
    if not len(report.lengths):
        return []
    top = max(int(report.lengths.max()), report.tokens)
    edges = np.linspace(0, top, _BARS + 1).round().astype(int)
    counts = np.histogram(report.lengths, edges)[0]
    lines = ["positions of a record, images expanded"]
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "#" * int(np.ceil(50 * count / counts.max()))
        mark = "  <- data.tokens" if start < report.tokens <= end else ""
        lines.append(f"{start:>7,} to {end:>7,} {count:>10,} {bar}{mark}")
    return lines


def _rows_lines(report: Report) -> list[str]:
    """Row sizes: the recipe's, others, and what would lose nothing."""
    named = [("the recipe", report.rows[0])] + [("", rows) for rows in report.rows[1:]]
    if report.lossless:
        named.append(("loses nothing", report.lossless))
    rows = [
        (
            name,
            f"{r.tokens:,}",
            str(r.units),
            f"{r.rejected:,}",
            f"{r.truncated:,}",
            f"{r.cut:,}",
            f"{r.filled:.1%}",
            f"{r.units_filled:.1%}" if r.units else "",
            f"{r.samples:.2f}",
            f"{r.cost:.2f}",
        )
        for name, r in named
    ]
    return _aligned(
        [
            (
                "rows",
                "tokens",
                report.unit,
                "rejected",
                "truncated",
                "tokens cut",
                "filled",
                "in use",
                "samples",
                "cost",
            ),
            *rows,
        ]
    )


def _plan_lines(report: Report) -> list[str]:
    plan = report.plan
    if isinstance(plan, str):
        return [plan]
    return [
        f"{plan['steps']:,.0f} steps of {plan['rows_per_step']:.0f} rows, {plan['filled']:.1%} full: "
        f"{plan['samples_per_row']:.2f} samples a row, {plan['samples_per_step']:.0f} samples and "
        f"{plan['supervised_tokens_per_step']:,.0f} supervised tokens a step"
    ]


def _duplicate_lines(report: Report, samples: Samples) -> list[str]:
    lines = []
    for found in report.duplicates:
        if not found.repeated:
            continue
        lines.append(f"{found.repeated:,} of {found.distinct:,} distinct {found.what}s are in several records")
        if found.leaked:
            lines.append(f"  {found.leaked:,} held-out records share one with records that are trained on")
        for count, members in found.largest:
            lines.append(f"  {count:,} times: {', '.join(samples.source.origin(at) for at in members)}")
    return lines


def _box_lines(report: Report) -> list[str]:
    if not report.boxes:
        return []
    lines = [f"{report.boxes:,} boxes and points are rewritten for the model"]
    if report.outside:
        named = ", ".join(report.outside[:_SHOWN]) + (", ..." if len(report.outside) > _SHOWN else "")
        lines.append(f"{len(report.outside):,} records have one outside of its image (is data.boxes right?): {named}")
    return lines


def _note_lines(report: Report) -> list[str]:
    lines = [f"warning: {warning}" for warning in report.warnings]
    if report.notes:
        lines.append("not read, or not as written (records):")
        lines.extend(f"  {count:>9,}  {note}" for note, count in report.notes.items())
    return lines


def _problem_lines(report: Report) -> list[str]:
    lines = []
    if report.errors:
        reasons = Counter(error.reason for error in report.errors.values())
        lines.append(f"{len(report.errors):,} records break a rule:")
        lines.extend(f"  {count:>9,}  {reason}" for reason, count in reasons.most_common())
        lines.extend(f"  {error}" for error in _worst(report.errors.values()))
    if len(report.truncated):
        lines.append(f"{len(report.truncated):,} records are longer than a row: their last text would be cut")
    if report.unasked:
        lines.append(f"{report.unasked:,} records begin with an answer, which would be left out: nothing asks for it")
    if report.unanswered:
        lines.append(f"{report.unanswered:,} records end with a question, which would be left out: it has no answer")
    return lines or ([] if report.loses else ["every record would be seen whole"])


def _worst(errors: Any) -> Iterator[RecordError]:
    """The errors to print: one of each reason, the most frequent first, then others."""
    by_reason: dict[str, list[RecordError]] = {}
    for error in errors:
        by_reason.setdefault(error.reason, []).append(error)
    groups = sorted(by_reason.values(), key=len, reverse=True)
    ordered = [group[depth] for depth in range(_SHOWN) for group in groups if depth < len(group)]
    yield from ordered[:_SHOWN]
