"""The results: one file of JSON that grows, and the table."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.accelerator.measurements import MEASUREMENTS


class Results:
    """All that has been measured, saved after each change."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.about = folder, about
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def row(self, measurement: str, kind: str, side: str) -> dict[str, Any]:
        """The row of a line of the table, made at its first use."""
        key = {"measurement": measurement, "kind": kind, "side": side}
        for row in self.rows:
            if key.items() <= row.items():
                return row
        self.rows.append(key | {"seconds": []})
        return self.rows[-1]

    def note(self, text: str) -> None:
        """Prints a line, and keeps it."""
        print(text, flush=True)
        self.notes.append(text)
        self.save()

    def save(self) -> None:
        """Writes results.json and table.md."""
        values = {"about": self.about, "rows": [row | derived(row, self.about) for row in self.rows]}
        for name, text in {
            "results.json": json.dumps(values | {"notes": self.notes}, indent=1),
            "table.md": self.table(),
        }.items():
            waiting = self._folder / f".{name}"
            waiting.write_text(text + "\n", encoding="utf-8")
            os.replace(waiting, self._folder / name)

    def table(self) -> str:
        """The table in Markdown, and what its names mean."""
        head = ["measured", "batch", "side", "rows", "ms", "tokens/s", "samples/s", "of peak", "GiB", "compile s"]
        lines = [[*head, "ratio", "where the time goes"]]
        for row in self.rows:
            if row["seconds"]:
                lines.append(_cells(row, derived(row, self.about), self._ratio(row)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        names = dict.fromkeys(row["measurement"] for row in self.rows if row["seconds"])
        instead = "a tiny model in place of " if self.about.get("platform") == "cpu" else ""
        return "\n".join([*text, "", *(f"{name}: {instead}{MEASUREMENTS[name].title}" for name in names)])

    def _ratio(self, row: dict[str, Any]) -> float | None:
        """Tokens a second of ours over those of this row."""
        ours = [
            r
            for r in self.rows
            if (r["measurement"], r["kind"], r["side"]) == (row["measurement"], row["kind"], "jaxvlm")
        ]
        if row["side"] == "jaxvlm" or not ours or not ours[0]["seconds"]:
            return None
        return derived(ours[0], self.about)["tokens_per_second"] / derived(row, self.about)["tokens_per_second"]


def derived(row: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What follows from a row's medians.

    Decoding counts the tokens that are written, over the whole time of the answers; its share of the peak is that of
    the memory's bandwidth, for reading the weights and the cache once for every token after the first.
    """
    if not row["seconds"]:
        return {}
    seconds = statistics.median(row["seconds"])
    found = {"median_seconds": seconds, "tokens_per_second": row["tokens"] / seconds}
    found["samples_per_second"] = row["samples"] / seconds
    devices = row.get("devices", 1)
    if row.get("flops") and about.get("peak_flops"):
        found["share_of_peak"] = row["flops"] / seconds / devices / about["peak_flops"]
    if row.get("bytes") and about.get("peak_bandwidth"):
        writing = statistics.median(s - p for s, p in zip(row["seconds"], row["prompt_seconds"], strict=True))
        found["share_of_peak"] = row["bytes"] / writing / devices / about["peak_bandwidth"]
    return found


def _cells(row: dict[str, Any], found: dict[str, Any], ratio: float | None) -> list[str]:
    def number(value: float | None, form: str, unit: float = 1) -> str:
        return "-" if value is None else format(value / unit, form)

    kinds = row.get("trace") or {}
    where = ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items() if share >= 0.005)
    return [
        row["measurement"],
        row["kind"],
        row["side"],
        str(row["rows"]),
        number(found["median_seconds"] / row["steps"], ",.1f", 1e-3),
        number(found["tokens_per_second"], ",.0f"),
        number(found["samples_per_second"], ",.2f"),
        number(found.get("share_of_peak"), ".1%"),
        number(row.get("peak_bytes"), ".1f", 2**30),
        number(row.get("compile_seconds"), ".0f"),
        number(ratio, ".2f"),
        where or "-",
    ]
