"""Reversible rows of a weight conversion, and the one engine that reads them in both directions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np

from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """One weight: left to right imports, right to left exports.

        Rule("layers.{i}.self_attn.q_proj.weight", "blocks/attention/q/w", "(N H) D -> D N H")

    `{i}` counts the blocks; ours are stacked over a leading axis that the pattern does not name.
    """

    hf: str
    ours: str
    pattern: str = "... -> ..."

    @property
    def stacked(self) -> bool:
        """Whether the row stands for one tensor of each block."""
        return "{i}" in self.hf


def prefixed(rules: Sequence[Rule], hf: str, ours: str) -> tuple[Rule, ...]:
    """The rows with `hf` in front of Hugging Face's names and `ours` in front of our paths."""
    return tuple(dataclasses.replace(rule, hf=hf + rule.hf, ours=ours + rule.ours) for rule in rules)


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"language/embed/w": leaf}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten_tree(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def unflatten_tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"language/embed/w": leaf} -> nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def import_tensors(
    rules: Sequence[Rule], hf: Mapping[str, np.ndarray], abstract: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Our weights out of Hugging Face's tensors.

    Args:
      rules: a table; every weight of `abstract` has one row.
      hf: name -> tensor.
      abstract: nested dict of values with a shape, what the model expects.
      sizes: of the letters that no shape of ours shows, such as the rows and columns of a patch.

    Returns:
      Nested dict of NumPy arrays with the tree and shapes of `abstract` and the dtypes of `hf`.

    Raises:
      UserError: every tensor that is unused, missing or of a wrong shape, in one message.
    """
    wanted, flat, used, problems = flatten_tree(abstract), {}, set(), _uncovered(rules, abstract)
    for rule in rules:
        if rule.ours not in wanted:
            continue  # its tensors, if there are any, are reported as unused
        shape = tuple(wanted[rule.ours].shape)
        names = _names(rule, shape)
        used.update(names)
        missing = [name for name in names if name not in hf]
        problems += [f"{name} is missing, for {rule.ours} {shape}" for name in missing]
        ours, theirs = _shapes(rule, shape, sizes)
        wrong = [name for name in names if name in hf and tuple(hf[name].shape) != theirs]
        problems += [f"{name} is {tuple(hf[name].shape)}, expected {theirs} for {rule.ours} {shape}" for name in wrong]
        if not missing and not wrong:
            parts = [einops.rearrange(hf[name], rule.pattern, **_known(rule, ours, sizes)) for name in names]
            flat[rule.ours] = np.stack(parts) if rule.stacked else parts[0]
    problems += [f"{name} {tuple(hf[name].shape)} has no place in the model" for name in sorted(set(hf) - used)]
    if problems:
        raise UserError(f"weights do not fit, {len(problems)} problems: " + "; ".join(problems))
    return unflatten_tree({path: flat[path] for path in wanted})


def export_tensors(rules: Sequence[Rule], params: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors out of our weights: `import_tensors` backwards.

    Raises:
      UserError: weights without a row.
    """
    flat = flatten_tree(params)
    if problems := _uncovered(rules, params):
        raise UserError("weights cannot be exported: " + "; ".join(problems))
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.ours not in flat:
            continue
        array = np.asarray(flat[rule.ours])
        left, right = rule.pattern.split("->")
        known = _known(rule, array.shape[1:] if rule.stacked else array.shape, sizes)
        parts = array if rule.stacked else array[None]
        for name, part in zip(_names(rule, array.shape), parts, strict=True):
            tensors[name] = np.ascontiguousarray(einops.rearrange(part, f"{right} -> {left}", **known))
    return tensors


def _names(rule: Rule, shape: tuple[int, ...]) -> list[str]:
    return [rule.hf.replace("{i}", str(i)) for i in range(shape[0])] if rule.stacked else [rule.hf]


def _uncovered(rules: Sequence[Rule], tree: Mapping[str, Any]) -> list[str]:
    covered = {rule.ours for rule in rules}
    return [
        f"{path} {tuple(x.shape)} has no row in the table"
        for path, x in flatten_tree(tree).items()
        if path not in covered
    ]


def _groups(side: str) -> list[list[str]]:
    """ "(N H) D" -> [["N", "H"], ["D"]]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]


def _known(rule: Rule, ours: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the letters of a row's pattern: those that stand alone on our side, and those given."""
    if "..." in rule.pattern:
        return {}
    left, right = (_groups(side) for side in rule.pattern.split("->"))
    known = {group[0]: size for group, size in zip(right, ours, strict=True) if len(group) == 1}
    letters = {letter for group in left for letter in group}
    return known | {letter: size for letter, size in sizes.items() if letter in letters}


def _shapes(rule: Rule, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of one block's part of ours, and of the tensor it is made of."""
    ours = shape[1:] if rule.stacked else shape
    if "..." in rule.pattern:
        return ours, ours
    known = _known(rule, ours, sizes)
    theirs = [int(np.prod([known[letter] for letter in group])) for group in _groups(rule.pattern.split("->")[0])]
    return ours, tuple(theirs)
