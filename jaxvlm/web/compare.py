"""Several runs side by side: curves, settings that differ, and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.web.curves import compare_curves
from jaxvlm.web.run_list import summary
from jaxvlm.web.settings import differing_settings
from jaxvlm.web.texts import as_number, read_json

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

MOST_RUNS = 12
TEST = "test"  # the recipe's own
_LARGEST_RESULT = 2**28


def compare(studio: Studio, names: Sequence[str], points: int) -> dict[str, Any]:
    """What `api/compare` replies: {runs, series, settings, evaluations}.

    Args:
      names: runs that are known to be there.
      points: at most of each curve.
    """
    paths = [(name, studio.root / name) for name in names]
    evaluations: dict[str, dict[str, Any]] = {}
    for name, path in paths:
        for benchmark, result in results_of(path).items():
            evaluations.setdefault(benchmark, {})[name] = result
    return {
        "runs": [summary(studio, name) for name in names],
        "series": compare_curves([(name, path / "metrics.jsonl") for name, path in paths], points),
        "settings": differing_settings(paths),
        "evaluations": evaluations,
    }


def results_of(run: Path) -> dict[str, dict[str, Any]]:
    """The results of a run by name: {metric, score, low, high, count}; "test" is that of the recipe's own test."""
    found = {}
    files = [(TEST, run / "evaluation.json")]
    files += [(path.parent.name, path) for path in sorted(run.glob("evaluation/*/evaluation.json"))]
    files += [(path.stem, path) for path in sorted(run.glob("evaluations/*.json"))]
    for name, path in files:
        result = read_json(path, _LARGEST_RESULT)
        if result is not None and (score := _score(result)):
            found[name] = score
    return found


def _score(result: dict[str, Any]) -> dict[str, Any] | None:
    """The main number of a result's file, of either kind."""
    numbers = result.get("scores")
    if isinstance(numbers, dict):
        metric, score = next(
            ((name, as_number(x)) for name, x in numbers.items() if as_number(x) is not None), ("", None)
        )
        answers = result.get("answers")
        count: float | None = len(answers) if isinstance(answers, list) else None
    else:
        metric, score, count = "exact_match", as_number(result.get("exact_match")), as_number(result.get("count"))
    if score is None:
        return None
    interval = result.get("interval")
    bounds = interval if isinstance(interval, dict) else {}
    return {
        "metric": metric,
        "score": score,
        "low": as_number(bounds.get("low")),
        "high": as_number(bounds.get("high")),
        "count": count,
    }
