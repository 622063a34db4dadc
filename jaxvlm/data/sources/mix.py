"""Several sources as one sequence of records, each with its weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from jaxvlm.config import DataConfig, MixConfig
from jaxvlm.data.records import Record
from jaxvlm.data.sources.items import Chosen
from jaxvlm.data.sources.load import Source, load_source
from jaxvlm.data.text.boxes import SPACES
from jaxvlm.errors import UserError


@dataclass(frozen=True)
class MixedSource:
    """One source of a mix."""

    name: str  # as the recipe names it
    source: Source
    weight: float
    boxes: str = ""  # a name of `boxes.SPACES`, the coordinates of boxes in its texts


class _ChosenSource(Chosen):
    """A fixed random choice of a source's records."""

    def __init__(self, source: Source, count: int):
        super().__init__(source, count)
        self.questions = source.questions


class Mix:
    """The records of all parts in order. Small and picklable, as sources are.

    Attributes:
      parts: the sources.
      starts: int64[parts + 1]; where each begins, then the number of records.
    """

    def __init__(self, parts: list[MixedSource]):
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part.source) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, at = self.find(index)
        return source[at]

    def origin(self, index: int) -> str:
        """The place of record `index`."""
        source, at = self.find(index)
        return source.origin(at)

    def boxes(self, index: int) -> str:
        """The coordinates of boxes in the texts of record `index`, see `MixedSource`."""
        return self.parts[int(np.searchsorted(self.starts, index, side="right")) - 1].boxes

    def find(self, index: int) -> tuple[Source, int]:
        """The source of record `index`, and the record's index there."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number].source, index - int(self.starts[number])

    def choice(self, count: int) -> Mix:
        """The mix with at most `count` records of each source, a fixed random choice."""
        chosen = (_ChosenSource(part.source, count) if count < len(part.source) else part.source for part in self.parts)
        return Mix([replace(part, source=source) for part, source in zip(self.parts, chosen, strict=True)])

    def fingerprint(self) -> str:
        """A hash of the content of all records and of their order; not of the weights."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update(f"{part.name} {part.source.fingerprint()}".encode("utf-8", "surrogateescape"))  # in messages
        return digest.hexdigest()


def load_mix(config: DataConfig) -> Mix:
    """Opens the sources of `data.source` or `data.mix`.

    Raises:
      UserError: all faults of the sources, in one message.
    """
    if bool(config.source) == bool(config.mix):
        found = "neither" if not config.mix else "both"
        raise UserError(f"data.source names one source, data.mix several; set one of them, found {found}")
    named = config.mix or ((config.source, MixConfig()),)
    parts, problems = [], []
    for number, (name, options) in enumerate(named):
        where = f"data.mix[{number}]" if config.mix else "data.source"
        if options.weight <= 0:
            problems.append(f"{where} = {name!r}: weight = {options.weight}, expected more than 0")
        if options.limit is not None and options.limit < 1:
            problems.append(f"{where} = {name!r}: limit = {options.limit}, expected 1 or more")
            continue
        folder = config.image_folder if options.image_folder is None else options.image_folder
        try:
            source: Source = load_source(name, folder, allow_outside=config.allow_outside)
        except UserError as error:
            problems.append(str(error))
            continue
        if options.limit is not None and options.limit < len(source):
            source = _ChosenSource(source, options.limit)
        boxes = config.boxes if options.boxes is None else options.boxes
        if boxes and boxes not in SPACES:
            problems.append(f'{where} = {name!r}: boxes = {boxes!r}, expected {", ".join(SPACES)} or ""')
        parts.append(MixedSource(name, source, options.weight, boxes))
    if problems:
        raise UserError("; ".join(problems))
    return Mix(parts)
