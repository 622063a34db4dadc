"""One update of the trained leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvlm.batch import Array, Batch
from jaxvlm.config import StageConfig
from jaxvlm.objectives.objective import Sums
from jaxvlm.sharding import batch_sharding, placed
from jaxvlm.training.state import Layout, State, merge

Info = dict[str, Array]


def make_train_step(layout: Layout, stage: StageConfig) -> Callable[[State, Batch], tuple[State, Info]]:
    """Makes the pure function (state, batch) -> (state, info) of a stage.

    The one denominator is the objective's weight of all micro-batches and devices, so 1 x 8, 8 x 1 and a sharded 8 rows
    give the same update.

    `info` holds float32 scalars: the objective's (of `sft`: `loss`, nats a supervised token, and `accuracy`),
    `supervised_tokens`, `tokens` (all but padding) and `gradient_norm` (before clipping).
    """
    objective, micro_batches = layout.objective, stage.micro_batches

    def share_of_loss(
        trained: dict, others: tuple[dict, dict], batch: Batch, weight: Array, key: Array | None
    ) -> tuple[Array, Sums]:
        sums = _sums(layout, trained, *others, batch, key)
        return sums["loss"][0] / weight, sums

    gradients_of = jax.grad(share_of_loss, has_aux=True)

    def train_step(state: State, batch: Batch) -> tuple[State, Info]:
        # Compute the weight of the whole batch first: the loss is divided once, not each gradient. A batch without
        # supervised tokens changes only the optimizer's moments.
        weight = jnp.maximum(objective.weight(batch), 1.0)
        others = (state.frozen, state.reference)
        key = None
        if layout.model.has_dropout:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if micro_batches == 1:
            gradients, sums = gradients_of(state.trained, others, batch, weight, key)
        else:

            def add(carry: tuple[dict, Sums], piece: tuple[Batch, Array]) -> tuple[tuple[dict, Sums], None]:
                micro_batch, index = piece
                own = None if key is None else jax.random.fold_in(key, index)
                added = gradients_of(state.trained, others, micro_batch, weight, own)
                # The barrier keeps XLA for TPUs from moving sums over devices out of the scan, where it fails.
                return jax.tree.map(jnp.add, carry, jax.lax.optimization_barrier(added)), None

            zero = jnp.zeros((), jnp.float32)
            zeros = (jax.tree.map(jnp.zeros_like, state.trained), {name: (zero, zero) for name in objective.names})
            pieces = (_split_rows(batch, micro_batches), jnp.arange(micro_batches))
            (gradients, sums), _ = jax.lax.scan(add, zeros, pieces)
        updates, optimizer = layout.optimizer.update(gradients, state.optimizer, state.trained)
        info = {name: total / jnp.maximum(own, 1.0) for name, (total, own) in sums.items()} | {
            "loss": sums["loss"][0] / weight,
            "supervised_tokens": batch.loss_weights.sum(),
            "tokens": (batch.segments > 0).sum().astype(jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
        }
        trained = optax.apply_updates(state.trained, updates)
        if stage.on_nonfinite == "skip":
            finite = jnp.isfinite(info["loss"]) & jnp.isfinite(info["gradient_norm"])
            trained, optimizer = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (trained, optimizer), (state.trained, state.optimizer)
            )
        return State(state.step + 1, trained, state.frozen, optimizer, state.key, state.reference), info

    return train_step


def compile_train_step(layout: Layout, stage: StageConfig) -> Any:
    """The jitted train step, for runs and plans; the state is donated and keeps its sharding."""
    shardings = jax.tree.map(lambda x: x.sharding, layout.state)
    return jax.jit(
        make_train_step(layout, stage),
        in_shardings=(shardings, batch_sharding(layout.mesh, layout.rules)),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=layout.compiler_options,
    )


def compile_eval_step(layout: Layout) -> Callable[[State, Batch], Sums]:
    """The objective's sums of a batch, without an update."""

    def eval_step(state: State, batch: Batch) -> Sums:
        return _sums(layout, state.trained, state.frozen, state.reference, batch, None)

    return jax.jit(eval_step, compiler_options=layout.compiler_options)


def evaluate_batches(
    eval_step: Callable[[State, Batch], Sums], state: State, batches: Iterable[Batch]
) -> dict[str, float]:
    """The objective's metrics over all rows of `batches` (on the devices)."""
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, sums in jax.device_get(eval_step(state, batch)).items():
            totals[name] = totals.get(name, np.zeros(2)) + np.array(sums, np.float64)
    return {name: float(total / max(weight, 1.0)) for name, (total, weight) in totals.items()}


def _sums(layout: Layout, trained: dict, frozen: dict, reference: dict, batch: Batch, key: Array | None) -> Sums:
    """The objective's sums of a batch; `key` is that of dropout."""
    with placed(layout.mesh, layout.rules):
        model = layout.model.bind(merge(trained, frozen), key)
        if layout.reference is None:
            return layout.objective.loss(model, batch, None)
        return layout.objective.loss(model, batch, layout.reference.bind(merge(reference, frozen)))


def _split_rows(batch: Batch, micro_batches: int) -> Batch:
    """[B, ...] -> [M, B/M, ...], each device's own rows split over the micro-batches, so that none moves."""

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
