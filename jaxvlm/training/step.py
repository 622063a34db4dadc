"""One update of the trained leaves."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvlm.batch import Array, Batch
from jaxvlm.sharding import batch_devices, batch_sharding, placed
from jaxvlm.training.loss import LossSum, batch_loss
from jaxvlm.training.state import Layout, State, merge

Info = dict[str, Array]


def make_train_step(
    layout: Layout, micro_batches: int, *, skip_nonfinite: bool = False
) -> Callable[[State, Batch], tuple[State, Info]]:
    """The pure function (state, batch) -> (state, info).

    There is one denominator, the number of supervised tokens in all micro-batches and on all devices, so 1 x 8, 8 x 1
    and a sharded 8 rows give the same update.

    `info` holds float32 scalars: `loss` (nats a supervised token), `accuracy` (teacher-forced, of supervised tokens),
    `supervised_tokens`, `tokens` (all but padding) and `gradient_norm` (before clipping).
    """
    shards = batch_devices(layout.mesh, layout.rules)

    def share_of_loss(
        trained: dict, frozen: dict, batch: Batch, weight: Array, key: Array | None
    ) -> tuple[Array, LossSum]:
        with placed(layout.mesh, layout.rules):
            sums = batch_loss(layout.model, merge(trained, frozen), batch, shards=shards, dropout_key=key)
        return sums.loss / weight, sums

    gradients_of = jax.grad(share_of_loss, has_aux=True)

    def train_step(state: State, batch: Batch) -> tuple[State, Info]:
        # Known before the first micro-batch, so the division is of a number and not of every gradient. A batch without
        # supervised tokens changes nothing but the moments.
        weight = jnp.maximum(batch.loss_weights.sum(), 1.0)
        key = None
        if layout.model.has_dropout:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if micro_batches == 1:
            gradients, sums = gradients_of(state.trained, state.frozen, batch, weight, key)
        else:

            def add(carry: tuple[dict, LossSum], piece: tuple[Batch, Array]) -> tuple[tuple[dict, LossSum], None]:
                micro_batch, index = piece
                own = None if key is None else jax.random.fold_in(key, index)
                added = gradients_of(state.trained, state.frozen, micro_batch, weight, own)
                # Whole before they are added: XLA for TPUs would move sums over devices behind the scan, and fails.
                return jax.tree.map(jnp.add, carry, jax.lax.optimization_barrier(added)), None

            zero = jnp.zeros((), jnp.float32)
            zeros = (jax.tree.map(jnp.zeros_like, state.trained), LossSum(zero, zero, zero))
            pieces = (_split_rows(batch, micro_batches), jnp.arange(micro_batches))
            (gradients, sums), _ = jax.lax.scan(add, zeros, pieces)
        updates, optimizer = layout.optimizer.update(gradients, state.optimizer, state.trained)
        info = {
            "loss": sums.loss / weight,
            "accuracy": sums.correct / weight,
            "supervised_tokens": sums.weight,
            "tokens": (batch.segments > 0).sum().astype(jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
        }
        trained = optax.apply_updates(state.trained, updates)
        if skip_nonfinite:
            finite = jnp.isfinite(info["loss"]) & jnp.isfinite(info["gradient_norm"])
            trained, optimizer = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (trained, optimizer), (state.trained, state.optimizer)
            )
        return State(state.step + 1, trained, state.frozen, optimizer, state.key), info

    return train_step


def compile_train_step(
    layout: Layout, micro_batches: int, *, skip_nonfinite: bool = False
) -> Callable[[State, Batch], tuple[State, Info]]:
    """The train step under jit: the state is donated and keeps its place."""
    shardings = jax.tree.map(lambda x: x.sharding, layout.state)
    return jax.jit(
        make_train_step(layout, micro_batches, skip_nonfinite=skip_nonfinite),
        in_shardings=(shardings, batch_sharding(layout.mesh, layout.rules)),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=layout.compiler_options,
    )


def compile_eval_step(layout: Layout) -> Callable[[State, Batch], LossSum]:
    """Loss sums of a batch, without an update."""
    shards = batch_devices(layout.mesh, layout.rules)

    def eval_step(state: State, batch: Batch) -> LossSum:
        with placed(layout.mesh, layout.rules):
            return batch_loss(layout.model, merge(state.trained, state.frozen), batch, shards=shards)

    return jax.jit(eval_step, compiler_options=layout.compiler_options)


def _split_rows(batch: Batch, micro_batches: int) -> Batch:
    """[B, ...] -> [M, B/M, ...], each device's own rows dealt over the micro-batches, so that none moves."""

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
