"""Names of adapters in PEFT, from the rows of the weights that they adapt.

Names, groups of axes and the layers of each adapter follow the row of its weight: of

    Rule("...layers.{i}.self_attn.q_proj.weight", "language/blocks/attention/q/w", "(N H) D -> D N H")

come the rows of `...q_proj.lora_A.weight` ("R D -> D R") and `...q_proj.lora_B.weight` ("(N H) R -> R N H").

Source: PEFT, `utils/save_and_load.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxvlm.trees import paths
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.rules import Rule
from jaxvlm.weights.spelling import Spelling

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the first that exists is read
BASE = "base_model.model."  # PEFT's wrapper module


def projections(names: AdapterNames) -> dict[str, Rule]:
    """Path of each projection of the blocks, "language/blocks/attention/q" -> the row of its weight."""
    rows = (row for row in names.rules(names.spelling) if row.stacked and row.ours.endswith("/w"))
    return {row.ours.removesuffix("/w"): row for row in rows}


def module_name(row: Rule) -> str:
    """A module's name inside its block, "self_attn.q_proj"."""
    return row.hf.partition("{i}.")[2].removesuffix(".weight")


def single_modules(names: AdapterNames) -> dict[str, Rule]:
    """Linear layers outside of the blocks: module, in any spelling -> the row of its weight in `names.spelling`."""

    def is_linear(row: Rule) -> bool:
        axes = row.pattern.partition("->")[0].split()
        return row.hf.endswith(".weight") and row.ours.endswith("/w") and len(axes) == 2 and not row.stacked

    rows = {row.ours: row for row in names.rules(names.spelling)}
    spellings = [Spelling(**{part: prefix}) for part, (prefixes, _) in names.known.items() for prefix in prefixes]
    found = [row for spelling in spellings for row in names.rules(spelling) if is_linear(row)]
    return {row.hf.removesuffix(".weight"): rows[row.ours] for row in found}


def adapter_rules(row: Rule) -> tuple[Rule, Rule]:
    """The rows of both weights of an adapter, in PEFT's names; R is the rank."""
    left, right = row.pattern.split("->")
    # A Linear has [out, in]; either may be a group of several axes of ours.
    out, inner = re.findall(r"\([^)]*\)|\S+", left)
    ours_out = " ".join(letter for letter in right.split() if letter in out)
    ours_in = " ".join(letter for letter in right.split() if letter in inner)
    hf, ours = BASE + row.hf.removesuffix("weight"), row.ours.removesuffix("w")
    return (
        Rule(f"{hf}lora_A.weight", f"{ours}lora/a", f"R {inner} -> {ours_in} R"),
        Rule(f"{hf}lora_B.weight", f"{ours}lora/b", f"{out} R -> R {ours_out}"),
    )


def chosen_leaves(abstract: Mapping[str, Any], *, projector: bool) -> dict[str, Any]:
    """Path -> shape of the leaves of adapters and, if asked, of the projector."""
    return {
        path: leaf
        for path, leaf in paths(abstract).items()
        if "/lora/" in path or (projector and path.startswith("projector/"))
    }


def one_of(names: Iterable[str], separator: str) -> str:
    """A regex of exactly these names: "blocks/attention/q" and "blocks/attention/v" -> "blocks/attention/(q|v)"."""
    rest: dict[str, list[str]] = {}
    for name in names:
        first, _, tail = name.partition(separator)
        rest.setdefault(first, []).append(tail)
    return either(
        [
            re.escape(first) + (re.escape(separator) + one_of(tails, separator) if tails[0] else "")
            for first, tails in rest.items()
        ]
    )


def either(choices: Sequence[str]) -> str:
    """A regex of any of these regexes."""
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"
