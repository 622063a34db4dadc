"""A plan: the compiled step and its estimate, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from jaxvlm.batch import Batch
from jaxvlm.config import StageConfig
from jaxvlm.families.registry import family_file
from jaxvlm.flops import Segments
from jaxvlm.media import MediaExtent, Size
from jaxvlm.models.packed_kernels import LANES
from jaxvlm.planning.compiler import Compiled
from jaxvlm.planning.estimate import Estimate, Row, estimate_step
from jaxvlm.planning.flops import Flops, Work, model_flops, total_flops
from jaxvlm.planning.program import Step
from jaxvlm.planning.slices import GIB, HERE, larger_slice
from jaxvlm.tuning import LOSS_POSITIONS

# Records of the published data sets that the recipes name (arXiv:2310.03744, and the files' own names).
KNOWN_RECORDS = {"blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_344}

USUAL_IMAGE = Size(480, 640)  # of COCO, for families in which the size of an image decides what it takes


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Properties of the data that a plan assumes; None: the default of `work_of`."""

    records: int | None = None
    samples_per_row: float | None = None
    units_per_row: float | None = None
    filled: float = 1.0  # share of a row's positions without padding
    supervised: float | None = None  # positions of a row
    price_per_chip_hour: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled step with its memory, time and operations."""

    step: Step
    compiled: Compiled
    work: Work
    flops: tuple[Flops, ...]
    estimate: Estimate | None
    assumptions: Assumptions

    @property
    def mfu(self) -> float | None:
        """Model flops divided by the peak of all chips in the estimated time."""
        if self.estimate is None:
            return None
        on = self.step.slice
        return total_flops(list(self.flops)) / (self.estimate.seconds * on.num_chips * on.chip.flops)


def make_plan(step: Step, compiled: Compiled, assumptions: Assumptions) -> Plan:
    """Estimates a compiled step."""
    work, layout = work_of(step, assumptions), step.layout
    estimate = None
    if compiled.text is not None:
        supervised = work.supervised * step.rows_per_chip / step.stage.micro_batches
        estimate = estimate_step(
            compiled.text,
            step.slice.chip,
            dict(layout.mesh.shape),
            between_slices=("data",) if step.slice.num_slices > 1 else (),
            guessed_trips=max(1, math.ceil(supervised / LOSS_POSITIONS)),
            segments=segments_of(step, work),
        )
    flops = model_flops(step.config.model, step.stage.parts, layout.state.trained, work)
    if layout.reference is not None:
        flops += [Flops(f"reference: {x.name}", x.forward, 0.0, x.how) for x in flops if "adapters" not in x.name]
    return Plan(step, compiled, work, tuple(flops), estimate, assumptions)


def work_of(step: Step, given: Assumptions) -> Work:
    """The work of a step: as assumed, else rows full of samples of one usual image, with every media unit used.

    A quarter of the text is supervised, as in `Batch.fake`.
    """
    data = step.stage.data
    units = data.media.units if given.units_per_row is None else given.units_per_row
    image = step.media.measure(USUAL_IMAGE) if data.media.units else MediaExtent(0, 1)
    images = max(1.0, units / image.units)
    samples = given.samples_per_row or (max(1, data.media.units // image.units) if data.pack else 1)
    tokens = data.tokens * given.filled
    text = max(0.0, tokens - units * image.positions / image.units)
    supervised = text / 4 if given.supervised is None else given.supervised
    return Work(step.stage.global_batch_size, tokens, samples, units, images, supervised)


def segments_of(step: Step, work: Work) -> dict[Row, list[Segments]]:
    """Segments of the rows of decoder and encoder.

    All samples are assumed to be of the same length, and all images of the same size. Of unequal ones the kernels
    compute more blocks.
    """
    data, family = step.stage.data, family_file(step.config.model.family, "flops")
    found = {(data.tokens, True): [Segments.equal(work.tokens, work.samples)]}
    if work.units:
        found[data.media.units, False] = family.vision_segments(step.config.model, work)
    return {Row(length + -length % LANES, is_causal): segments for (length, is_causal), segments in found.items()}


def records_of(stage: StageConfig, given: Assumptions) -> int | None:
    """Number of records of the stage's data, if it is given or known."""
    return given.records or KNOWN_RECORDS.get(PurePath(stage.data.source).name)


def to_json(plan: Plan) -> dict[str, Any]:
    """All numbers of a plan; bytes and flops are of one chip unless the name differs."""
    step, memory, on = plan.step, plan.compiled.memory, plan.step.slice
    result: dict[str, Any] = {
        "stage": step.stage_name,
        "slice": {"name": on.name, "topology": on.topology, "chips": on.num_chips, "slices": on.num_slices},
        "mesh": dict(step.layout.mesh.shape),
        "rows": step.stage.global_batch_size,
        "rows_per_chip": step.rows_per_chip,
        "micro_batches": step.stage.micro_batches,
        "remat": step.config.model.remat,
        "batch": _shapes(step.batch),
        "fits": memory.fits,
        "memory_bytes": {k: v for k, v in dataclasses.asdict(memory).items() if v is not None}
        | {"free": memory.limit - memory.needed},
        "work_per_step": dataclasses.asdict(plan.work),
        "model_flops_per_step": total_flops(list(plan.flops)),
        "model_flops": [dataclasses.asdict(x) | {"total": x.total} for x in plan.flops],
        "compile_seconds": round(plan.compiled.seconds, 1),
        "cached": plan.compiled.cached,
    }
    if plan.compiled.largest:
        result["largest_temporaries"] = list(plan.compiled.largest)
    if not memory.fits:
        result["what_would_help"] = what_would_help(plan)
    if plan.estimate is not None:
        result |= {"estimate": _estimate(plan, plan.estimate), "run": _run(plan, plan.estimate)}
    return result


def _shapes(batch: Batch) -> dict[str, str]:
    shown = {name: leaf for name, leaf in batch.to_arrays().items() if name == "tokens" or name.startswith("media/")}
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in shown.items()}


def _name(row: Row) -> str:
    return f"{row.positions:,} {'causal' if row.is_causal else 'unordered'}"


def _estimate(plan: Plan, estimate: Estimate) -> dict[str, Any]:
    return {
        "step_seconds": estimate.seconds,
        "step_megacycles": estimate.seconds * plan.step.slice.chip.clock / 1e6,
        "compute_seconds": estimate.compute,
        "kernel_seconds": dict(estimate.kernels),
        "computed_attention_blocks": {_name(row): share for row, share in estimate.computed_blocks.items()},
        "other_seconds": estimate.other,
        "exposed_collective_seconds": estimate.exposed,
        "collectives": [dataclasses.asdict(x) for x in estimate.collectives.values()],
        "mfu": plan.mfu,
        "guessed_loops": dict(estimate.guessed_loops),
        "unknown_kernels": dict(estimate.unknown_kernels),
    }


def _run(plan: Plan, estimate: Estimate) -> dict[str, Any]:
    work, step = plan.work, plan.step
    samples = work.rows * work.samples
    result: dict[str, Any] = {
        "tokens_per_second": work.rows * work.tokens / estimate.seconds,
        "samples_per_second": samples / estimate.seconds,
    }
    if records := records_of(step.stage, plan.assumptions):
        steps = math.ceil(records * step.stage.epochs / samples)
        steps = min(steps, step.config.steps or steps)
        hours = steps * estimate.seconds / 3600
        result |= {"records": records, "steps": steps, "hours": hours, "chip_hours": hours * step.slice.num_chips}
        if (price := plan.assumptions.price_per_chip_hour) is not None:
            result["cost"] = hours * step.slice.num_chips * price
    return result


def what_would_help(plan: Plan) -> list[str]:
    """Ways to need less memory, each with its saving where that is known."""
    step, memory = plan.step, plan.compiled.memory
    name, stage, on = step.stage_name, step.stage, step.slice
    ways = []
    if step.rows_per_chip > stage.micro_batches:
        pieces = next(n for n in range(stage.micro_batches + 1, step.rows_per_chip + 1) if step.rows_per_chip % n == 0)
        fewer = stage.global_batch_size * (step.rows_per_chip - 1) // step.rows_per_chip
        ways.append(
            f"fewer rows at once: --config.stage.{name}.micro_batches={pieces} keeps the batch, "
            f"--config.stage.{name}.global_batch_size={fewer} is one row a chip less"
        )
    if step.config.model.remat != "full":
        ways.append('more recomputation: --config.model.remat=full (now "' + step.config.model.remat + '")')
    if stage.parts.language == "full":
        saved = (memory.trained + memory.optimizer - memory.trained / 2) / GIB
        ways.append(
            f"adapters: --config.stage.{name}.parts.language=lora keeps the decoder in "
            f"{stage.frozen_dtype} without gradients and moments, about {saved:.2f} GiB a chip less"
        )
    if larger := larger_slice(on):
        state = memory.trained + memory.frozen + memory.optimizer
        ways.append(
            f"more chips: --topology {larger}, over which weights and optimizer are split, up to {state / 2 / GIB:.2f} "
            "GiB a chip less"
        )
    return ways


def table(plan: Plan, *, operations: int = 0) -> str:
    """The plan as text, with the `operations` that take the most of the compiler's cycles."""
    lines = list(_lines(plan))
    if operations and plan.estimate is not None:
        seconds = sorted(plan.estimate.operations.items(), key=lambda x: -x[1])[:operations]
        lines += ["", "operations that take longest, in ms"]
        lines += [f"  {x * 1e3:9.2f}  {100 * x / plan.estimate.seconds:4.1f} %  {name}" for name, x in seconds]
    return "\n".join(lines)


def _lines(plan: Plan) -> Iterator[str]:
    step, memory, on = plan.step, plan.compiled.memory, plan.step.slice
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.layout.mesh.shape.items() if size > 1) or "one chip"
    yield f"stage {step.stage_name} on {on.name}: {on.num_chips} chips of {on.chip.name}, {mesh}"
    micro = f", {step.stage.micro_batches} micro-batches" if step.stage.micro_batches > 1 else ""
    data = step.stage.data
    yield (
        f"a step: {step.stage.global_batch_size} rows ({step.rows_per_chip} a chip{micro}) of {data.tokens} tokens and "
        f'{data.media.units} {step.media.unit}, remat "{step.config.model.remat}"'
    )
    how = "from the cache" if plan.compiled.cached else f"compiled in {plan.compiled.seconds:.0f} s"
    yield f"({how})"
    yield ""
    yield from _memory_lines(plan)
    if plan.estimate is None:
        if memory.fits:
            if on.name == HERE:
                yield "no estimate of the time on this machine: a run shows it after its first steps"
            else:
                yield "no estimate of the time: the compiler cannot print this program"
        return
    yield ""
    yield from _time_lines(plan, plan.estimate)
    yield ""
    yield from _flops_lines(plan, plan.estimate)
    yield ""
    yield from _run_lines(plan, plan.estimate)


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory = plan.compiled.memory
    kinds = {
        "trained weights": memory.trained,
        "frozen weights": memory.frozen,
        "reference": memory.reference or None,
        "optimizer": memory.optimizer,
        "batch": memory.batch,
        "padding of these": memory.padding,
        "temporaries" if memory.code is not None else "program": memory.temporaries,
        "program code": memory.code,
    }
    unit, name_of_unit = (GIB, "GiB") if memory.needed > GIB / 2 else (2**20, "MiB")
    yield f"memory a chip          {name_of_unit}"
    for name, size in kinds.items():
        if size is not None:
            yield f"  {name:16} {size / unit:8.2f}"
    free = memory.limit - memory.needed
    verdict = f"fits, {free / GIB:.2f} GiB free" if memory.fits else f"does NOT fit, by {-free / GIB:.2f} GiB"
    yield f"  {'needed':16} {memory.needed / unit:8.2f}  of {memory.limit / GIB:.2f} GiB: {verdict}"
    if not memory.is_exact:
        yield "  (the compiler gave no report of what it allocates: the temporaries may be less)"
    if plan.compiled.largest:
        yield "  largest temporaries:"
        yield from (f"    {line}" for line in plan.compiled.largest)
    if not memory.fits:
        yield "  what would help:"
        yield from (f"    {way}" for way in what_would_help(plan))


def _time_lines(plan: Plan, e: Estimate) -> Iterator[str]:
    clock = plan.step.slice.chip.clock

    def line(name: str, seconds: float, remark: str = "") -> str:
        return f"  {name:40} {seconds * 1e3:10.2f} {seconds * clock / 1e6:10.1f}  {remark}".rstrip()

    yield f"time of a step, an estimate                         ms    Mcycles  at {clock / 1e9:g} GHz"
    yield line("operations", e.compute, "the compiler's estimated cycles, loops by their trips")
    for name, seconds in sorted(e.kernels.items()):
        yield line(name[:40], seconds, "kernel, at its flops over the peak")
    segments = segments_of(plan.step, plan.work)
    for row, share in e.computed_blocks.items():
        lengths = [f"{given.lengths[0]:,.0f}" for given in segments.get(row, [])]
        how = f"segments of {' and '.join(lengths)}" if lengths else "one segment, for want of an assumption"
        yield f"  attention skips blocks: of {_name(row)} positions, {share:.0%} are computed, assuming {how}"
    yield line("operations without an estimate", e.other, "at their bytes over the memory bandwidth")
    link = f"{plan.step.slice.chip.link_bandwidth / 1e9:g} GB/s a link and direction"
    yield line("exposed collectives", e.exposed, f"at their bytes over the links, as rings both ways, {link}")
    yield line("step", e.seconds)
    for name, trips in e.guessed_loops.items():
        yield f"  the length of a loop depends on the data, {trips} trips are assumed: {name}"
    for name, count in e.unknown_kernels.items():
        yield f"  kernel {name} ({count} times) has no known flops and counts as nothing"
    yield ""
    if e.collectives:
        yield "communication of a chip             axis            count     GiB        ms  exposed ms"
    for x in sorted(e.collectives.values(), key=lambda x: -x.seconds):
        kind = "exposed" if x.exposed > 0.99 * x.seconds else "overlapped" if x.exposed < 0.01 * x.seconds else "partly"
        yield (
            f"  {x.kind:20} {kind:12} {x.axis:14} {x.count:6.0f} {x.bytes / GIB:7.2f} {x.seconds * 1e3:9.1f} "
            f"{x.exposed * 1e3:11.1f}"
        )
    if not e.collectives:
        yield "no communication"


def _flops_lines(plan: Plan, e: Estimate) -> Iterator[str]:
    total = total_flops(list(plan.flops))
    unit, name_of_unit = (1e12, "TFLOP") if total > 1e12 else (1e9, "GFLOP")
    yield f"model flops of a step        {name_of_unit}  backward  counted"
    for x in plan.flops:
        yield f"  {x.name:22} {x.total / unit:10,.1f}  {f'{x.backward:g} x' if x.backward else 'none':>8}  {x.how}"
    mfu = plan.mfu or 0.0
    peak = plan.step.slice.chip.flops
    yield f"  {'all':22} {total / unit:10,.1f}  estimated MFU {mfu:.1%} of {peak / 1e12:g} TFLOP/s a chip"
    if (dtype := plan.step.config.model.compute_dtype) != "bfloat16":
        yield f"  (the peak is bfloat16's; this recipe computes in {dtype})"


def _run_lines(plan: Plan, e: Estimate) -> Iterator[str]:
    run, w = _run(plan, e), plan.work
    yield f"estimated: {run['tokens_per_second']:,.0f} tokens/s, {run['samples_per_second']:,.1f} samples/s"
    yield (
        f"assumed of a row: {w.tokens:,.0f} positions without padding, {w.samples:g} samples, "
        f"{w.units:g} {plan.step.media.unit}, "
        f"{w.supervised:,.0f} supervised positions (--filled, --samples-per-row, --units-per-row, --supervised)"
    )
    if "hours" in run:
        cost = f", {run['cost']:,.2f} at the price given" if "cost" in run else ""
        yield (
            f"{run['records']:,} records, {plan.step.stage.epochs:g} epochs: {run['steps']:,} steps, "
            f"{run['hours']:,.3g} hours, {run['chip_hours']:,.4g} chip-hours{cost}"
        )
    else:
        yield "pass --records N for the hours of the whole run"
