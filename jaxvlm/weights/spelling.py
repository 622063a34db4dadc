"""Prefixes of the tensor names of each part; one model is spelled in several ways."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from jaxvlm.config import PARTS
from jaxvlm.weights.tensors import RenamedSource, TensorSource

# Part, or "head" -> all known prefixes, longest first, and a tensor that identifies it.
Known = Mapping[str, tuple[tuple[str, ...], str]]


@dataclasses.dataclass(frozen=True)
class Spelling:
    """The prefix of the names of each part; None: the part is not in the files.

    `{i}` is replaced by the number of a part's layer, and `{2i}` by its index in a `Sequential` in which every
    other module is an activation.
    """

    vision: str | None = None
    projector: str | None = None
    language: str | None = None
    head: str | None = None

    def prefixes(self) -> dict[str, str]:
        """Part -> prefix of its tensors."""
        prefixes: dict[str, str | None] = {part: getattr(self, part) for part in PARTS}
        return {part: prefix for part, prefix in prefixes.items() if prefix is not None}


def numbered(prefix: str, i: int) -> str:
    """The prefix of layer `i`, counted from 1."""
    return re.sub(r"\{(2?)i\}", lambda match: str(2 * (i - 1) if match[1] else i), prefix)


def find_spelling(names: Iterable[str], known: Known) -> Spelling:
    """Finds the spelling of a checkpoint from the names of its tensors."""
    names = set(names)
    return Spelling(
        **{
            part: next((prefix for prefix in prefixes if numbered(prefix, 1) + marker in names), None)
            for part, (prefixes, marker) in known.items()
        }
    )


def find_heads(names: Iterable[str], known: Known) -> list[str]:
    """The names of all output projections of a checkpoint, in the order of `known`; some files have several."""
    prefixes, marker = known.get("head", ((), ""))
    names = set(names)
    return [prefix + marker for prefix in prefixes if prefix + marker in names]


def respelled(tensors: TensorSource, old: Spelling, new: Spelling) -> TensorSource:
    """A checkpoint's tensors under the names of another spelling; parts that either lacks keep their names."""
    news = dataclasses.asdict(new)
    pairs = [
        (numbered(prefix, i), numbered(news[part], i))
        for part, prefix in dataclasses.asdict(old).items()
        if prefix is not None and news[part] is not None
        for i in (range(1, 10) if "i}" in prefix else (1,))
    ]
    # Longest first: the head's prefix may be a part of the language's.
    pairs.sort(key=lambda pair: -len(pair[0]))

    def rename(name: str) -> str:
        return next((to + name.removeprefix(start) for start, to in pairs if name.startswith(start)), name)

    return RenamedSource(tensors, rename)
