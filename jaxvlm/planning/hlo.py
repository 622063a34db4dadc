"""The text of an optimised and scheduled XLA program, parsed as far as an estimate of its time needs it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4}
_BYTES |= {"u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$", re.DOTALL)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|branch_computations|called_computations)=\{?([^,}]*)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # everything after the operands
    is_root: bool

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of it, if it made one."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(match[1]) if match else None

    @property
    def bytes(self) -> float:
        """Of the result."""
        return bytes_of(self.type)

    @property
    def origin(self) -> str:
        """Its place in the traced program; its own name if the compiler added it."""
        match = re.search(r'op_name="(?:jit\(\w+\)/)?([^"]*)"', self.attributes)
        return match[1] if match else re.sub(r"[.\d]+$", "", self.name)

    def called(self, key: str) -> str | None:
        """The computation that an attribute such as `calls` or `body` names."""
        match = re.search(rf"\b{key}=%?([\w.-]+)", self.attributes)
        return match[1] if match else None

    def attribute(self, key: str) -> str | None:
        """The value of `key="value"` or `key=value`."""
        match = re.search(rf'\b{key}="?([\w.-]+)', self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name; the instructions of each in the order they run in."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    def trip_count(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs; None if the program does not contain it."""
        if match := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes):
            return int(match[1])
        condition = {x.name: x for x in self.computations.get(loop.called("condition") or "", ())}
        root = next((x for x in condition.values() if x.is_root), None)
        if root is not None and root.opcode == "fusion":  # a fused comparison: its operands are the fusion's
            inside = self.computations.get(root.called("calls") or "", ())
            root = next((dataclasses.replace(x, operands=root.operands) for x in inside if x.opcode == "compare"), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, limit = (condition.get(name) for name in root.operands)
        if counter is None or limit is None or limit.opcode != "constant" or counter.opcode != "get-tuple-element":
            return None
        stride = self._stride(loop.called("body") or "", int(counter.attribute("index") or 0))
        return -(-int(limit.operands[0]) // stride)

    def _stride(self, body: str, index: int) -> int:
        """The increment of a loop's counter in one run of its body; the counter is element `index` of the carry.

        More than 1 where the compiler has unrolled the loop.
        """
        named = {x.name: x for x in self.computations.get(body, ())}
        root = next((x for x in named.values() if x.is_root), None)
        at = named.get(root.operands[index]) if root is not None and index < len(root.operands) else None
        stride = 0
        while at is not None and at.opcode in ("add", "copy"):
            added = [named[name] for name in at.operands if name in named and named[name].opcode == "constant"]
            stride += sum(int(x.operands[0]) for x in added)
            at = next((named[name] for name in at.operands if name in named and named[name] not in added), None)
        return max(stride, 1)


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays that a type or an attribute names: dtype and shape of each."""
    return [(kind, tuple(int(x) for x in dims.split(",") if x)) for kind, dims in _ARRAY.findall(text)]


def bytes_of(text: str) -> float:
    """Bytes of all arrays that a type names."""
    return sum(_BYTES.get(kind, 1) * math.prod(shape) for kind, shape in shapes(text))


def parse(text: str) -> Program:
    """Parses `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        if not name:
            if match := _COMPUTATION.match(line):
                name, lines = match[2], []
                entry = name if match[1] else entry
        elif line == "}":
            computations[name] = tuple(filter(None, map(_instruction, lines)))
            name = ""
        elif line.startswith("  "):
            lines.append(line)
        elif lines:  # an attribute with a line break in it, such as a kernel's metadata
            lines[-1] += line
    if entry not in computations:
        raise ValueError("this is not a compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    inside, depth, end = match[5], 1, 0
    while depth and end < len(inside):
        depth += (inside[end] == "(") - (inside[end] == ")")
        end += 1
    operands = inside[: end - 1]
    names = tuple(re.findall(r"%([\w.-]+)", operands)) or tuple(x.strip() for x in operands.split(","))
    return Instruction(match[2], match[3], match[4], names, inside[end:], bool(match[1]))


@functools.lru_cache(maxsize=1024)
def first_group(groups: str) -> tuple[int, ...]:
    """The devices (by their place in the mesh) of the first group of a collective.

    Args:
      groups: the text after `replica_groups=` or `source_target_pairs=`, in any of XLA's forms:
        `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`, `mesh['a'=2,'b'=2] {'b'}`.
    """
    if match := re.match(r"\{\{([\d,]*)\}", groups):
        return tuple(int(x) for x in match[1].split(",") if x)
    if match := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):
        return tuple(_iota(match[3], match[4]).reshape(int(match[1]), int(match[2]))[0].tolist())
    if match := re.match(r"mesh\[([^\]]*?)(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\] \{([^}]*)\}", groups):
        names = re.findall(r"'([^']+)'=\d+", match[1])
        sizes = [int(x) for x in re.findall(r"'[^']+'=(\d+)", match[1])]
        devices = _iota(match[2] or ",".join(map(str, sizes)), match[3]).reshape(sizes)
        index: list[int | slice] = [0] * len(sizes)
        for axis in re.findall(r"'([^']+)'", match[4]):
            index[names.index(axis)] = slice(None)
        return tuple(np.atleast_1d(devices[tuple(index)]).flatten().tolist())
    return ()


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    shape = [int(x) for x in dims.split(",")]
    order = [int(x) for x in permutation.split(",")] if permutation else list(range(len(shape)))
    return np.arange(math.prod(shape)).reshape(shape).transpose(order)
