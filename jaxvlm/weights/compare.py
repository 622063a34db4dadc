"""Compares the tensors of two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxvlm.weights.spelling import Known, find_heads, find_spelling
from jaxvlm.weights.tensors import RenamedSource, TensorSource


class Comparison(NamedTuple):
    """What differs between two checkpoints."""

    differences: dict[str, float]  # name -> largest difference of its values; infinite where one cannot be told
    problems: list[str]  # tensors that only one has, or that have another shape, dtype or values

    @property
    def differing(self) -> dict[str, float]:
        """The differences that are not 0, the largest first."""
        return dict(sorted(((name, x) for name, x in self.differences.items() if x > 0), key=lambda item: -item[1]))

    @property
    def largest(self) -> float:
        """The largest difference."""
        return max(self.differences.values(), default=0.0)


def compare_tensors(a: TensorSource, b: TensorSource, names: tuple[object, object]) -> Comparison:
    """Compares all tensors of two checkpoints under the same spelling.

    Values are equal if both are the same number. A NaN equals nothing, since no one can rely on it.

    Args:
      names: of the checkpoints, for the problems.
    """
    problems = [f"only {names[0]} has {name}" for name in a if name not in b]
    problems += [f"only {names[1]} has {name}" for name in b if name not in a]
    differences: dict[str, float] = {}
    for name in sorted(set(a) & set(b)):
        one, two = a.spec(name), b.spec(name)
        if one.shape != two.shape:
            problems.append(f"{name}: {one.shape} and {two.shape}")
            continue
        if one.dtype != two.dtype:
            problems.append(f"{name}: {one.dtype} and {two.dtype}")
        x, y = _comparable(a[name]), _comparable(b[name])
        differences[name] = _largest_difference(x, y)
        nans = [(np.count_nonzero(np.isnan(z)), where) for z, where in zip((x, y), names, strict=True)]
        if found := [f"{count:,} in {where}" for count, where in nans if count]:
            problems.append(f"{name} has NaN: {' and '.join(found)}")
    made = Comparison(differences, problems)
    if made.differing:
        problems.append(f"{len(made.differing)} tensors differ, by up to {made.largest:g}")
    return made


def _comparable(tensor: np.ndarray) -> np.ndarray:
    """Floats that hold every value of a tensor."""
    return np.asarray(tensor, np.float64 if tensor.dtype.kind in "iu" or tensor.itemsize > 4 else np.float32)


def _largest_difference(x: np.ndarray, y: np.ndarray) -> float:
    differing = x != y
    if not differing.any():
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(x[differing] - y[differing])
    return float(np.where(np.isnan(distances), np.inf, distances).max())


def without_copies(tensors: TensorSource, known: Known, ignored: Sequence[str]) -> TensorSource:
    """The tensors that a model is made of: without those that import ignores, and without heads that repeat the
    embedding, as files of tied models may have them, or that repeat another head.

    Args:
      known: the spellings of the model's parts.
      ignored: patterns of whole names.
    """
    heads = find_heads(tensors, known)
    language = find_spelling(tensors, known).language
    first = heads[:1] if language is None else [language + known["language"][1], *heads[:1]]
    left_out = {head for head in heads for other in first if head != other and same_values(tensors, head, other)}

    def keep(name: str) -> str | None:
        return None if name in left_out or any(re.fullmatch(pattern, name) for pattern in ignored) else name

    return RenamedSource(tensors, keep)


def same_values(tensors: TensorSource, one: str, two: str) -> bool:
    """Whether two tensors have the same values; reads some rows at a time, since vocabularies are large."""
    x, y, rows = tensors[one], tensors[two], 4096
    return x.shape == y.shape and all(
        np.array_equal(_comparable(x[i : i + rows]), _comparable(y[i : i + rows])) for i in range(0, len(x), rows)
    )
