"""The time of a compiled step, from the compiler's own estimates.

The optimised program carries `estimated_cycles` at its fusions. Parts without them are added here, each separately:

  kernels      Pallas kernels (attention), at their floating point operations over the chip's peak; of blocks
               that are skipped at run time, the share that the assumed lengths of segments leave
  other        operations without an estimate (gathers, scatters, sorts), at their bytes over the memory bandwidth
  collectives  at their bytes over the links' bandwidth; of those that overlap computation, only what is longer
               than the computation; transfers to and from host memory in the same way

The result is an estimate for ranking choices.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxvlm.flops import Segments
from jaxvlm.models.block_mask import computed_blocks
from jaxvlm.planning.hlo import Instruction, Program, bytes_of, first_group, parse, shapes
from jaxvlm.planning.slices import Chip

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"copy-start", "copy-done", "slice-start", "slice-done", "optimization-barrier", "domain", "iota"}
_FREE |= {"dynamic-slice-start", "dynamic-slice-done", "dynamic-update-slice-start", "dynamic-update-slice-done"}
_FREE |= {"opt-barrier", "add-dependency", "rng-get-and-update-state"}


@dataclasses.dataclass
class Collective:
    """All collectives of a kind along the same mesh axes, in one step of one chip; or copies "to host", "from host"."""

    kind: str
    axis: str  # mesh axes, joined by "+"
    count: float = 0.0
    bytes: float = 0.0  # that a chip receives
    seconds: float = 0.0  # on the links
    exposed: float = 0.0  # of the seconds: those in which the chip waits

    def add(self, other: Collective, times: float) -> None:
        """Adds `other`, `times` times."""
        for name in ("count", "bytes", "seconds", "exposed"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


class Row(NamedTuple):
    """A row as attention kernels see it."""

    positions: int  # padding included
    is_causal: bool


@dataclasses.dataclass
class Estimate:
    """Seconds of one step on one chip, by where they go."""

    compute: float = 0.0
    operations: dict[str, float] = dataclasses.field(default_factory=dict)  # the compute by the operation's origin
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    kernel_flops: float = 0.0
    other: float = 0.0
    collectives: dict[tuple[str, str], Collective] = dataclasses.field(default_factory=dict)
    guessed_loops: dict[str, int] = dataclasses.field(default_factory=dict)  # loop -> trips that were assumed
    unknown_kernels: Counter = dataclasses.field(default_factory=Counter)  # counted as nothing
    computed_blocks: dict[Row, float] = dataclasses.field(default_factory=dict)  # share of the attention's blocks

    @property
    def exposed(self) -> float:
        """Seconds in which the chip waits for collectives."""
        return sum(x.exposed for x in self.collectives.values())

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute + sum(self.kernels.values()) + self.other + self.exposed

    def add(self, part: Estimate, times: float = 1.0) -> None:
        """Adds `times` times a part of the program."""
        self.compute += times * part.compute
        self.other += times * part.other
        self.kernel_flops += times * part.kernel_flops
        for mine, theirs in ((self.kernels, part.kernels), (self.operations, part.operations)):
            for name, seconds in theirs.items():
                mine[name] = mine.get(name, 0.0) + times * seconds
        for key, found in part.collectives.items():
            self.collectives.setdefault(key, Collective(*key)).add(found, times)
        self.guessed_loops |= part.guessed_loops
        self.unknown_kernels.update(part.unknown_kernels)
        self.computed_blocks |= part.computed_blocks


def estimate_step(
    text: str,
    chip: Chip,
    mesh: Mapping[str, int],
    *,
    between_slices: tuple[str, ...] = (),
    guessed_trips: int = 1,
    segments: Mapping[Row, Sequence[Segments]] | None = None,
) -> Estimate:
    """Estimates a compiled step.

    Args:
      text: `compiled.as_text()`.
      mesh: size of each mesh axis, in order.
      between_slices: the mesh axes that cross from slice to slice.
      guessed_trips: of loops whose length depends on the data (the loss loops over supervised positions only).
      segments: assumed of the rows; attention skips blocks by them. Other rows count as one segment.
    """
    return _Walk(parse(text), chip, dict(mesh), between_slices, guessed_trips, segments or {}).computation(None)


class _Walk:
    """The walk over a program; each computation is estimated once."""

    def __init__(
        self,
        program: Program,
        chip: Chip,
        mesh: dict[str, int],
        between_slices: tuple[str, ...],
        guessed_trips: int,
        segments: Mapping[Row, Sequence[Segments]],
    ):
        self.segments = segments
        self.program, self.chip, self.mesh = program, chip, mesh
        self.between_slices, self.guessed_trips = between_slices, guessed_trips
        self.done: dict[str, Estimate] = {}

    def computation(self, name: str | None) -> Estimate:
        """One run of a computation (None: the entry), its links idle at the start."""
        name = name or self.program.entry
        if name not in self.done:
            self.done[name] = _Timeline(self, self.program.computations.get(name, ())).run()
        return self.done[name]


class _Timeline:
    """One computation in its scheduled order: when the chip computes, and when its links are busy."""

    def __init__(self, walk: _Walk, instructions: tuple[Instruction, ...]):
        self.walk, self.chip, self.instructions = walk, walk.chip, instructions
        self.by_name = {x.name: x for x in instructions}
        self.total = Estimate()
        self.now = 0.0
        self.free_at: dict[str, float] = defaultdict(float)  # links and network: when they are idle again
        self.flying: dict[str, list[tuple[tuple[str, str], float]]] = defaultdict(list)  # key -> (collective, its end)

    def run(self) -> Estimate:
        for x in self.instructions:
            self._step(x)
        return self.total

    def _step(self, x: Instruction) -> None:
        if x.opcode == "while":
            trips = self.walk.program.trip_count(x)
            if trips is None:
                trips = self.total.guessed_loops[x.origin] = self.walk.guessed_trips
            self._nested(x.called("body"), trips)
        elif x.opcode == "call":
            self._nested(x.called("to_apply"), 1)
        elif x.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", x.attributes)
            names = re.findall(r"[\w.-]+", branches[1]) if branches else []
            names += [n for key in ("true_computation", "false_computation") if (n := x.called(key))]
            if names:
                self._nested(max(names, key=lambda n: self.walk.computation(n).seconds), 1)
        elif not self._communicate(x):
            self._compute(x)

    def _nested(self, name: str | None, times: int) -> None:
        part = self.walk.computation(name)
        self.total.add(part, times)
        self.now += times * part.seconds

    def _compute(self, x: Instruction) -> None:
        if x.opcode == "custom-call" and x.attribute("custom_call_target") == "tpu_custom_call":
            flops = self._skipping(x) or kernel_flops(x)
            kernel = re.sub(r"\.\d+$", "", x.name)
            if flops is None:
                self.total.unknown_kernels[kernel] += 1
                return
            seconds = flops / self.chip.flops
            self.total.kernels[kernel] = self.total.kernels.get(kernel, 0.0) + seconds
            self.total.kernel_flops += flops
        elif x.cycles is not None:
            seconds = x.cycles / self.chip.clock
            self.total.compute += seconds
            result = next((f"{kind}{list(shape)}" for kind, shape in shapes(x.type)), "")
            operation = f"{x.origin}  {result}"
            self.total.operations[operation] = self.total.operations.get(operation, 0.0) + seconds
        elif x.opcode in _FREE or x.opcode == "custom-call" or x.bytes < 1024:
            return
        else:
            seconds = 2 * x.bytes / self.chip.hbm_bandwidth  # what it writes, and as much read
            self.total.other += seconds
        self.now += seconds

    def _skipping(self, x: Instruction) -> float | None:
        """Floating point operations of a kernel that skips blocks at run time; None for other kernels."""
        if (found := skipping_kernel(x)) is None:
            return None
        row, block, flops = found
        share = sum(
            of_layers * computed_blocks(lengths, row.positions, block, causal=row.is_causal)
            for of_layers, lengths in self.walk.segments.get(row) or [Segments.equal(row.positions, 1)]
        )
        self.total.computed_blocks[row] = share
        return share * flops

    def _communicate(self, x: Instruction) -> bool:
        """Whether `x` is a collective or a copy to or from the host, or a part of one, and then its time."""
        if re.fullmatch(r"(copy|slice|dynamic-slice|dynamic-update-slice)-(start|done)", x.opcode):
            self._copy(x)
            return True
        if x.opcode in ("send", "recv", "send-done", "recv-done"):
            self._between_slices(x)
            return True
        if x.opcode.endswith("-done") and x.opcode not in ("copy-done", "slice-done"):
            self._wait(self._origin(x))
            return True
        if x.opcode in KINDS:
            self._send(x, x, self.by_name, x.name)
            self._wait(x.name)
            return True
        if x.opcode.removesuffix("-start") in KINDS:
            self._send(x, x, self.by_name, x.name)
            return True
        if x.opcode == "async-update":
            return True
        if x.opcode not in ("fusion", "async-start"):
            return False
        inside = self.walk.program.computations.get(x.called("calls") or "", ())
        sent = [y for y in inside if y.opcode in KINDS]
        if not sent:
            return x.opcode == "async-start"
        if x.opcode == "async-start":
            key, is_start, is_done = x.name, True, False
        else:
            targets = {y.attribute("custom_call_target") for y in inside}
            # A collective in pieces, which run within fusions between a start and a done: they share its channel.
            key = sent[0].attribute("channel_id") or x.name
            is_start, is_done = "AsyncCollectiveStart" in targets, "AsyncCollectiveDone" in targets
            if not is_start and not is_done and (x.called("calls") or "").startswith("async_collective_fusion"):
                return False  # the computation that it overlaps
        if not is_done:
            for y in sent:
                self._send(y, x, {z.name: z for z in inside}, key)
        if not is_start:
            self._wait(key)
            if x.cycles:  # computation in the same fusion
                self._compute(x)
        return True

    def _copy(self, x: Instruction) -> None:
        """A copy between memories; only those of the host, memory space 5, are slow enough to be waited for."""
        if x.opcode.endswith("-done"):
            self._wait(self._origin(x))
            return
        if "S(5)" not in x.type:
            return
        arrays = re.findall(r"[a-z]\w*\[\d[\d,]*\]\{[^}]*\}", x.type)
        if x.opcode == "dynamic-update-slice-start":  # ((buffer, update, indices), buffer, ...)
            moved, kind = arrays[1], "to host"
        elif x.opcode == "copy-start":  # (result, operand, ...)
            moved, kind = arrays[0], "to host" if "S(5)" in arrays[0] else "from host"
        else:  # ((operand, indices), result, ...)
            moved, kind = arrays[-1], "to host" if "S(5)" in arrays[-1] else "from host"
        size = bytes_of(moved)
        self._fly(x.name, kind, "-", size, kind, size / self.chip.host_bandwidth)

    def _between_slices(self, x: Instruction) -> None:
        """A collective over the network: handed to the host by a `send`, and there again with a `recv-done`."""
        if x.opcode == "send" and (kind := x.attribute("_xla_megascale_transfer_type")):
            kind, axes = kind.lower().replace("_", "-"), "+".join(self.walk.between_slices) or "?"
            slices = math.prod(self.walk.mesh[axis] for axis in self.walk.between_slices)
            sent = self.by_name[x.operands[0]].bytes if x.operands[0] in self.by_name else 0.0
            received = _traffic(kind, sent, slices)[0] if kind in KINDS else sent
            key = x.attribute("_xla_host_transfer_rendezvous") or x.name
            self._fly(key, kind, axes, received, "network", received / self.chip.network_bandwidth)
        elif x.opcode == "recv-done" and x.operands and x.operands[0] in self.by_name:
            self._wait(self.by_name[x.operands[0]].attribute("_xla_host_transfer_rendezvous") or "")

    def _origin(self, x: Instruction) -> str:
        """The start that a done belongs to, through updates."""
        while x.operands and x.operands[0] in self.by_name and not x.opcode.endswith("-start"):
            x = self.by_name[x.operands[0]]
        return x.name

    def _send(self, x: Instruction, outer: Instruction, scope: Mapping[str, Instruction], key: str) -> None:
        kind = x.opcode.removesuffix("-start")
        # The compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of it.
        if kind == "all-reduce" and "all-reduce-scatter" in (outer.called("calls") or ""):
            kind = "reduce-scatter"
        operand_bytes = sum(scope[name].bytes for name in x.operands if name in scope)
        groups = re.search(r"(?:replica_groups|source_target_pairs)=(.*)", x.attributes, re.DOTALL)
        group = first_group(groups[1][:20000]) if groups else ()
        axes = _axes_of(group, self.walk.mesh)
        size = max(len(group), 1)
        if kind == "collective-permute":
            size = 2
        if size == 1:
            return
        received, link_bytes = _traffic(kind, operand_bytes, size)
        crosses = any(axis in self.walk.between_slices for axis in axes.split("+"))
        way = "network" if crosses else "links"
        seconds = link_bytes / (self.chip.network_bandwidth if crosses else self.chip.link_bandwidth)
        self._fly(key, kind, axes, received, way, seconds)

    def _fly(self, key: str, kind: str, axes: str, received: float, way: str, seconds: float) -> None:
        """Starts a collective; it runs after those that have started."""
        found = self.total.collectives.setdefault((kind, axes), Collective(kind, axes))
        found.add(Collective(kind, axes, 1, received, seconds), 1)
        end = self.free_at[way] = max(self.now, self.free_at[way]) + seconds
        self.flying[key].append(((kind, axes), end))

    def _wait(self, key: str) -> None:
        for which, end in self.flying.pop(key, []):
            waited = max(0.0, end - self.now)
            self.total.collectives[which].exposed += waited
            self.now += waited


def _traffic(kind: str, operand: float, n: int) -> tuple[float, float]:
    """Bytes that a chip receives, and those that pass its busiest link, in a ring of `n` chips used in both directions.

    Args:
      operand: bytes of the operand on one chip.
    """
    if kind == "collective-permute":
        return operand, operand
    received = {
        "all-gather": operand * (n - 1),
        "reduce-scatter": operand * (n - 1) / n,
        "all-reduce": 2 * operand * (n - 1) / n,  # a reduce-scatter and an all-gather
        "all-to-all": operand * (n - 1) / n,
        "collective-broadcast": operand,
    }[kind]
    # Of an all-to-all each byte passes n / 4 links on its way.
    return received, received / 2 * (max(1.0, n / 4) if kind == "all-to-all" else 1.0)


def _axes_of(group: tuple[int, ...], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the devices of a group differ."""
    if not group or max(group) >= math.prod(mesh.values()):
        return "?"
    places = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
    return "+".join(axis for axis, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1) or "?"


# Matrix products of a queries x keys block, forward and in the two halves of the backward pass.
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def kernel_flops(x: Instruction) -> float | None:
    """Floating point operations of a Pallas kernel: of splash attention by its shapes, of others if they declare them.

    Blocks that a static causal mask leaves out are not counted, since the kernel skips them.
    """
    if match := re.search(r'"flops":"?(\d+)', x.attributes):
        return float(match[1])
    match = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", x.name)
    operands = _operands(x)
    if not match or not operands:
        return None
    full, length = _all_blocks(match[1], operands)
    # Positions of queries are an operand only where the mask is computed from them, as a causal one is; segment ids
    # look alike if the kernel is not batched, but come in pairs.
    lanes = [shape for kind, shape in operands if kind == "s32" and shape in ((length, 128), (8, length))]
    is_causal = len(lanes) % 2 == 1
    blocks = next((shape[-2] for kind, shape in operands if kind == "s8" and len(shape) == 3), 1)
    return full * (blocks + 1) / (2 * blocks) if is_causal else full


def skipping_kernel(x: Instruction) -> tuple[Row, int, float] | None:
    """What is known of a kernel of `models.packed_attention`; None: it is another one.

    Returns:
      The row, the positions of a block, and its operations if it skipped none.
    """
    match, operands = re.search(r"packed_(causal|full)_(fwd|dq|dkv)", x.name), _operands(x)
    if not match or not operands:
        return None
    full, length = _all_blocks(match[2], operands)
    side = min(operands[0][1])  # the order of visits: [blocks of all rows, blocks of a row], or transposed
    return Row(length, match[1] == "causal"), length // side, full


def _operands(x: Instruction) -> list[tuple[str, tuple[int, ...]]]:
    layout = re.search(r"operand_layout_constraints=\{(.*?)\}(?:,\s\w+=|$)", x.attributes, re.DOTALL)
    return shapes(layout[1]) if layout else []


def _all_blocks(kernel: str, operands: list[tuple[str, tuple[int, ...]]]) -> tuple[float, int]:
    """Floating point operations without any mask, and the positions of a row."""
    arrays = [shape for kind, shape in operands if kind in ("bf16", "f32", "f16") and len(shape) >= 3]
    queries, keys = arrays[0], arrays[1]
    return 2.0 * _SPLASH_PRODUCTS[kernel] * math.prod(queries) * keys[-2], queries[-2]
