"""Plans several variants of a recipe, and finds those for which no other is both smaller and faster."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxvlm.config import Config
from jaxvlm.errors import UserError
from jaxvlm.models.packed_kernels import LANES
from jaxvlm.planning.compiler import compile_step
from jaxvlm.planning.program import Step, build_step
from jaxvlm.planning.report import Assumptions, Plan, make_plan, to_json, work_of
from jaxvlm.planning.slices import GIB, Slice
from jaxvlm.tuning import POLICIES, TRIED_OF_EACH, TRIED_OF_MANY, Options, parse_options


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a stage."""

    rows_per_chip: int  # of all micro-batches, on each device that has rows of its own
    micro_batches: int
    remat: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    options: str  # of the compiler, as in a recipe
    units: int  # media units of a row

    @classmethod
    def of(cls, step: Step) -> Candidate:
        """The recipe as it is."""
        stage, mesh = step.stage, step.layout.mesh.shape
        shape = (mesh["data"], mesh["fsdp"], mesh["tensor"])
        units = stage.data.media.units
        return cls(
            step.rows_per_chip, stage.micro_batches, step.config.model.remat, shape, stage.compiler_options, units
        )

    def apply(self, config: Config, stage: str) -> Config:
        """The recipe with this candidate's values."""
        (in_data, fsdp, tensor), data = self.mesh, config.stage[stage].data
        changed = dataclasses.replace(
            config.stage[stage],
            global_batch_size=self.rows_per_chip * in_data * fsdp,
            micro_batches=self.micro_batches,
            compiler_options=self.options,
            data=dataclasses.replace(data, media=dataclasses.replace(data.media, units=self.units)),
        )
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, remat=self.remat),
            mesh=dataclasses.replace(config.mesh, data=in_data, fsdp=fsdp, tensor=tensor),
            stage=config.stage | {stage: changed},
        )

    def overrides(self, config: Config, stage: str) -> str:
        """The flags to append to the command; none for values that the recipe already has."""
        changed, words = self.apply(config, stage), []
        if changed.model.remat != config.model.remat:
            words.append(f"--config.model.remat={changed.model.remat}")
        if changed.mesh.tensor != config.mesh.tensor:
            words += [f"--config.mesh.fsdp={changed.mesh.fsdp}", f"--config.mesh.tensor={changed.mesh.tensor}"]
        for name in ("global_batch_size", "micro_batches", "compiler_options"):
            if (value := getattr(changed.stage[stage], name)) != getattr(config.stage[stage], name):
                words.append(f"--config.stage.{stage}.{name}={shlex.quote(str(value))}")
        if self.units != config.stage[stage].data.media.units:
            words.append(f"--config.stage.{stage}.data.media.units={self.units}")
        return " ".join(words) or "(the recipe)"

    def neighbours(self, kv_heads: int) -> Iterator[Candidate]:
        """Candidates that differ in one setting, the most promising first; and one row at a time with less remat.

        That makes LoRA of the 7B a sixth faster on v5e-8, where several rows at a time would not fit with it.
        """
        change = dataclasses.replace
        yield from self._with_options(TRIED_OF_MANY if math.prod(self.mesh) > 1 else ())
        if self.micro_batches < self.rows_per_chip:
            yield change(self, micro_batches=self.rows_per_chip, remat="dots")
        for remat in POLICIES:
            if remat != self.remat:
                yield change(self, remat=remat)
        for rows in (self.rows_per_chip + self.micro_batches, self.rows_per_chip - self.micro_batches):
            if rows > 0:
                yield change(self, rows_per_chip=rows)
        if self.rows_per_chip % (2 * self.micro_batches) == 0:
            yield change(self, micro_batches=2 * self.micro_batches)
        if self.micro_batches % 2 == 0:
            yield change(self, micro_batches=self.micro_batches // 2)
        data, fsdp, tensor = self.mesh
        if fsdp % 2 == 0 and kv_heads % (2 * tensor) == 0:
            mesh = (data, fsdp // 2, 2 * tensor)
            yield change(self, mesh=mesh, rows_per_chip=2 * self.rows_per_chip)
        if tensor % 2 == 0 and self.rows_per_chip % (2 * self.micro_batches) == 0:
            mesh = (data, 2 * fsdp, tensor // 2)
            yield change(self, mesh=mesh, rows_per_chip=self.rows_per_chip // 2)
        yield from self._with_options(TRIED_OF_EACH)
        for units in (self.units - _step_of_units(self.units), self.units + _step_of_units(self.units)):
            if self.units and units > 0:
                yield change(self, units=units)

    def _with_options(self, sets: tuple[Options, ...]) -> Iterator[Candidate]:
        options = parse_options(self.options)
        for more in sets:
            if not more.items() <= options.items():
                yield dataclasses.replace(self, options=" ".join(f"{k}={v}" for k, v in (options | more).items()))

    def smaller(self) -> Candidate:
        """A candidate with less memory, or itself if there is none."""
        if self.remat != "full":
            return dataclasses.replace(self, remat="full")
        return dataclasses.replace(self, micro_batches=self.rows_per_chip)


@dataclasses.dataclass(frozen=True)
class Found:
    """The plans of a search by candidate; None: not possible."""

    config: Config
    stage: str
    plans: Mapping[Candidate, Plan | None]

    def frontier(self) -> list[tuple[Candidate, Plan]]:
        """The plans that fit and for which no other is at most as large and faster, smallest first."""
        fitting = [(c, p) for c, p in self.plans.items() if p is not None and p.compiled.memory.fits]
        kept: list[tuple[Candidate, Plan]] = []
        for candidate, plan in sorted(fitting, key=lambda x: (x[1].compiled.memory.needed, seconds_per_sample(x[1]))):
            if not kept or seconds_per_sample(plan) < seconds_per_sample(kept[-1][1]):
                kept.append((candidate, plan))
        return kept

    def table(self) -> str:
        """The frontier as text."""
        frontier, rows = self.frontier(), self.config.stage[self.stage].global_batch_size
        if not frontier:
            return f"none of {len(self.plans)} variants fits"
        lines = [
            f"tried {len(self.plans)} variants; those for which no other is smaller and, as estimated, faster:",
            "   GiB  ms a step  chip-ms a sample    MFU  overrides",
        ]
        for candidate, plan in frontier:
            milliseconds = 1e3 * (plan.estimate.seconds if plan.estimate else float("nan"))
            lines.append(
                f"{plan.compiled.memory.needed / GIB:6.2f} {milliseconds:10.1f} {1e3 * seconds_per_sample(plan):17.1f} "
                f"{plan.mfu or 0:6.1%}  {candidate.overrides(self.config, self.stage)}"
            )
        if any(plan.step.stage.global_batch_size != rows for _, plan in frontier):
            lines.append(
                f"a global_batch_size other than the recipe's {rows} is another training, not only another speed"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The frontier, JSON-ready."""
        frontier = [{"overrides": c.overrides(self.config, self.stage)} | to_json(p) for c, p in self.frontier()]
        return {"tried": len(self.plans), "frontier": frontier}


def search(
    config: Config,
    stage: str,
    on: Slice,
    assumed: Assumptions,
    *,
    minutes: float,
    cache: Path | None,
    show: Callable[[str], None],
    plan: Callable[[Config, str, Slice, Assumptions, Path | None], Plan] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Plans the recipe, then always a neighbour of the fastest that fits; starts none after `minutes`.

    Args:
      show: called with a line on each plan.
      plan: makes one plan; None: `plan_once`.
      clock: returns the time in seconds.

    Raises:
      UserError: the recipe's own mesh or batch do not fit the slice.
    """
    end, heads, plan = clock() + 60 * minutes, config.model.language.num_kv_heads, plan or plan_once
    start = build_step(config, stage, on)
    waiting = [Candidate.of(start)]
    plans: dict[Candidate, Plan | None] = {}
    while waiting and (not plans or clock() < end):
        candidate = waiting.pop(0)
        if _is_hopeless(candidate, plans):
            continue
        made: Plan | None = None
        try:
            given = _with_units(assumed, start, candidate.units)
            made = plan(candidate.apply(config, stage), stage, on, given, cache)
        except (UserError, ValueError, RuntimeError) as error:  # the compiler refuses some meshes and options
            show(_line(len(plans) + 1, candidate, f"not possible: {str(error).splitlines()[0][:160]}"))
        else:
            size, fits = f"{made.compiled.memory.needed / GIB:.2f} GiB", made.compiled.memory.fits
            speed = f"{seconds_per_sample(made) * 1e3:.1f} chip-ms a sample" if fits else "does not fit"
            show(_line(len(plans) + 1, candidate, f"{size}, {speed}"))
        plans[candidate] = made
        fitting = [c for c, p in plans.items() if p is not None and p.compiled.memory.fits]
        fitting.sort(key=lambda c: seconds_per_sample(plans[c]))
        # If nothing fits yet, try a smaller one than the last.
        near = [n for c in fitting or [candidate.smaller()] for n in [c, *c.neighbours(heads)]]
        waiting = [c for c in dict.fromkeys(near) if c not in plans]
    return Found(config, stage, plans)


def plan_once(config: Config, stage: str, on: Slice, assumed: Assumptions, cache: Path | None) -> Plan:
    """Makes one plan, compiled or from the cache."""
    step = build_step(config, stage, on)
    return make_plan(step, compile_step(step, cache=cache), assumed)


def seconds_per_sample(plan: Plan | None) -> float:
    """Estimated chip-seconds of a sample, so that batches, meshes and rows of all sizes compare."""
    if plan is None or plan.estimate is None:
        return float("inf")
    samples = plan.step.stage.global_batch_size * plan.work.samples
    return plan.estimate.seconds * plan.step.slice.num_chips / samples


def _step_of_units(units: int) -> int:
    """By how much a search changes them: an eighth; of patches whole lanes of attention."""
    return max(1, units // 8 // LANES * LANES or units // 8)


def _with_units(assumed: Assumptions, recipe: Step, units: int) -> Assumptions:
    """The recipe's assumptions for rows of other units: as many of the same samples as both budgets hold."""
    data, usual = recipe.stage.data, work_of(recipe, assumed)
    if units == data.media.units:
        return assumed
    share = min(data.tokens / usual.tokens, units / (usual.units or 1.0))
    return dataclasses.replace(
        assumed,
        samples_per_row=usual.samples * share,
        units_per_row=usual.units * share,
        filled=usual.tokens * share / data.tokens,
        supervised=usual.supervised * share,
    )


def _is_hopeless(candidate: Candidate, plans: Mapping[Candidate, Plan | None]) -> bool:
    """Whether the same candidate did not fit with at most as many rows at once."""

    def rest(c: Candidate) -> Candidate:
        return dataclasses.replace(c, rows_per_chip=1, micro_batches=1)

    return any(
        plan is not None
        and not plan.compiled.memory.fits
        and rest(c) == rest(candidate)
        and c.rows_per_chip / c.micro_batches <= candidate.rows_per_chip / candidate.micro_batches
        for c, plan in plans.items()
    )


def _line(number: int, c: Candidate, result: str) -> str:
    mesh = " x ".join(map(str, c.mesh))
    what = f"{c.rows_per_chip} rows a chip in {c.micro_batches}, remat {c.remat}, mesh {mesh}"
    what += f", {c.options}" if c.options else ""
    return f"{number:3}  {what}: {result}"
