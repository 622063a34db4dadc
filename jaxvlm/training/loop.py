"""The train loop of one stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from jaxvlm import processes
from jaxvlm.batch import Array, Batch
from jaxvlm.config import StageConfig
from jaxvlm.sharding import to_devices
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.metrics import Writer
from jaxvlm.training.nonfinite import NonFinite
from jaxvlm.training.preemption import Preemption, StartAgain
from jaxvlm.training.profile import Profile
from jaxvlm.training.state import Layout, State
from jaxvlm.training.step import compile_train_step
from jaxvlm.training.watch import Watch


class Batches(Protocol):
    """Endless batches (NumPy) with a position that can be saved."""

    def __next__(self) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]: ...

    broken: dict[int, str]  # corrupt records of earlier batches: their tokens have no loss

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position of the next batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Services:
    """Services that the train loop calls."""

    checkpoints: Checkpoints
    writer: Writer  # of metrics
    watch: Watch  # of phases and slow steps
    nonfinite: NonFinite
    preemption: Preemption
    profile: Profile


def train(
    layout: Layout,
    stage: StageConfig,
    steps: int,
    state: State,
    batches: Batches,
    evaluations: Sequence[tuple[int, Callable[[State], dict[str, float]]]],
    services: Services,
) -> State:
    """Trains from `state.step` to `steps`; returns and saves the last state.

    Args:
      batches: positioned at the batch of step `state.step`.
      evaluations: every how many steps (0: never), and what computes metrics of a state, such as the held-out ones.

    Raises:
      StartAgain: the run was preempted; the state is saved.
    """
    k, first = services, int(state.step) + 1
    train_step = compile_train_step(layout, stage)
    info: dict[str, Array] = {}  # of the previous step

    def computing() -> bool:
        return any(not value.is_ready() for value in info.values())

    with jax.set_mesh(layout.mesh), k.preemption.held(steps):
        for step in range(first, steps + 1):
            k.profile.before(step)
            with k.watch.phase("data", step, hidden=computing):
                batch = to_devices(next(batches), layout.mesh, layout.rules)
            with (
                k.watch.phase("compile" if step == first else "step", step),
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                state, info = train_step(state, batch)
            k.nonfinite.take(step, info)
            k.profile.after(step, info)
            last, stopping = step == steps, k.preemption.reached(step)
            if step % stage.log_every == 0 or last:
                with k.watch.phase("step", step):
                    k.writer.log(step, info)
                    k.nonfinite.check(before=step)
                k.watch.progressed(step)
            # A preempted run skips the evaluation: its grace period is for the checkpoint.
            for every, evaluate in evaluations:
                if every and (step % every == 0 or last) and (last or not stopping):
                    with k.watch.phase("evaluate", step):
                        k.writer.evaluation(step, functools.partial(evaluate, state))
            if step % stage.checkpoint_every == 0 or last or stopping:
                with k.watch.phase("step", step):
                    sound = k.nonfinite.check(before=step + 1)  # waits for the step
                with k.watch.phase("save", step):
                    if sound:
                        batches.broken |= processes.gather(batches.broken)
                        k.checkpoints.save(state, batches.get_state(), steps, wait=last or stopping)
            if stopping and not last:
                k.writer.flush()
                raise StartAgain
    k.writer.flush()
    return state
