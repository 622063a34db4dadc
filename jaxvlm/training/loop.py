"""The train loop of one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from jaxvlm.batch import Batch
from jaxvlm.config import StageConfig
from jaxvlm.sharding import to_devices
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.metrics import Writer
from jaxvlm.training.state import Layout, State
from jaxvlm.training.step import compile_train_step


class Batches(Protocol):
    """Endless batches (NumPy) with a position that can be saved."""

    def __next__(self) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position of the next batch."""
        ...


def train(
    layout: Layout,
    stage: StageConfig,
    steps: int,
    state: State,
    batches: Batches,
    checkpoints: Checkpoints,
    writer: Writer,
    evaluate: Callable[[State], dict[str, float]],
) -> State:
    """Goes from `state.step` to `steps` and returns the last state, which is also saved.

    Args:
      batches: stand at the batch of step `state.step`.
      evaluate: what the held-out data says of a state.
    """
    train_step = compile_train_step(layout, stage.micro_batches)
    with jax.set_mesh(layout.mesh):
        for step in range(int(state.step) + 1, steps + 1):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, info = train_step(state, to_devices(next(batches), layout.mesh, layout.rules))
            if step % stage.log_every == 0 or step == steps:
                writer.log(step, info)
            if stage.eval_every and (step % stage.eval_every == 0 or step == steps):
                writer.evaluation(step, evaluate(state))
            if step % stage.checkpoint_every == 0 or step == steps:
                checkpoints.save(state, batches.get_state(), steps)
    writer.flush()
    checkpoints.wait()
    return state
