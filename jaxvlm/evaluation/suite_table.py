"""Results of suites as text, and the list of benchmarks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxvlm.evaluation.benchmarks.benchmark import Benchmark
from jaxvlm.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from jaxvlm.evaluation.result import EXAMPLES, Result
from jaxvlm.evaluation.task import GENERATE

_WIDTH = 60  # characters of an answer or a text


def table(results: Sequence[Result]) -> str:
    """A line for each result: number, interval, questions, dialect, and what others published of the same dialect."""
    rows = [("benchmark", "number", "95 % interval", "questions", "dialect", "metric", "published")]
    for r in results:
        number = f"{r.main[1]:.2f}" if r.main else "-"
        interval = f"{r.interval.low:.2f} to {r.interval.high:.2f}" if r.interval else "-"
        count = f"{len(r.task.items):,}" + (f" of {len(r.task.whole):,}" if r.task.is_sample else "")
        published = ", ".join(f"{p.value:g} {p.model}" for p in r.published) or "-"
        name = f"{r.task.benchmark.title} {r.task.split}"
        how = r.task.dialect if r.task.scoring == GENERATE else f"{r.task.dialect}, {r.task.scoring}"
        rows.append((name, number, interval, count, how, r.task.benchmark.metric, published))
    return aligned(rows, right=(1, 3))


def details(result: Result) -> str:
    """The other numbers, the groups, and what went wrong, as lines."""
    lines = [f"{result.task.benchmark.title}: {result.task.describe()}"]
    others = [f"{name} {value:.2f}" for name, value in list(result.scores.numbers.items())[1:]]
    if others:
        lines += textwrap.wrap("also: " + ", ".join(others), 118, initial_indent="  ", subsequent_indent="    ")
    if result.main is None:
        lines.append("  the files have no truth: a server scores the submission")
    for axis, numbers in result.scores.groups.items():
        counts = result.scores.counts.get(axis, {})
        rows = [(f"  {axis}", "number", "questions")]
        rows += [
            (f"  {name}", f"{x:.2f}", f"{counts[name]:,}" if name in counts else "") for name, x in numbers.items()
        ]
        lines.append(aligned(rows, right=(1, 2)))
    lines.append(f"  unparsed answers: {len(result.unparsed):,}")
    lines += [f"    {reply.id}: {_short(reply.text)}" for reply in result.unparsed[:EXAMPLES]]
    cut = result.truncated
    how = "not known" if cut is None else f"{len(cut):,}"
    limit = result.generation.get("max_new_tokens")
    lines.append(f"  truncated answers: {how}{f' (limit {limit} tokens)' if cut and limit else ''}")
    lines += [f"    {reply.id}: {_short(reply.text)}" for reply in (cut or [])[:EXAMPLES]]
    return "\n".join(lines)


def catalogue(root: Path) -> str:
    """The list of benchmarks: what each needs, whether its folder in `root` exists, and a table."""
    needs: list[str] = []
    rows = [("name", "benchmark", "default split", "questions", "dialects", "metric")]
    for name in BENCHMARKS:
        b = find_benchmark(name)
        split, count = next(iter(b.splits.items()))
        rows.append((name, b.title, split, f"{count:,}" if count else "-", ", ".join(b.dialects), b.metric))
        there = "" if (root / name).is_dir() else ", which is not there"
        needs.append(f"{name}: in {root / name}{there}; from {b.source}\n{_files(b)}")
    return (
        "\n\n".join(needs) + f"\n\n{aligned(rows, right=(3,))}\n\n"
        "--suite list:NAME shows what a benchmark tests, its splits, and published numbers. Nothing is downloaded. The "
        "folders are\nlooked for in --data."
    )


def _files(benchmark: Benchmark) -> str:
    return textwrap.indent(textwrap.dedent(benchmark.files).strip("\n"), "  ")


def description(benchmark: Benchmark, folder: Path) -> str:
    """One page on a benchmark."""
    splits = ", ".join(f"{name} ({count:,})" if count else name for name, count in benchmark.splits.items())
    limits = ", ".join(f"{name or 'otherwise'} {count}" for name, count in benchmark.max_new_tokens.items())
    rows = [
        ("tests", benchmark.about),
        ("metric", benchmark.metric),
        ("splits", f"{splits}; the first is the default"),
        ("dialects", f"{', '.join(benchmark.dialects)}; the first is the default"),
        ("longest answer", f"{limits} tokens"),
        ("files from", benchmark.source),
        ("files in", str(folder)),
    ]
    lines = [f"{benchmark.title} ({benchmark.name})", ""]
    for name, text in rows:
        lines += textwrap.wrap(text, 100, initial_indent=f"{name:<16}", subsequent_indent=" " * 16)
    lines += ["", _files(benchmark)]
    if benchmark.published:
        default = next(iter(benchmark.splits))
        rows_of = [("published", "number", "split", "dialect", "source")]
        rows_of += [(p.model, f"{p.value:g}", p.split or default, p.dialect, p.source) for p in benchmark.published]
        lines += ["", aligned(rows_of, right=(1,))]
    return "\n".join(lines)


def aligned(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    """Rows in columns; those of `right` end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _short(text: str) -> str:
    return textwrap.shorten(repr(text), _WIDTH, placeholder=" ...")
