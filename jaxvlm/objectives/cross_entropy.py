"""Cross-entropy over the supervised positions, without ever making the logits of a whole batch.

Axis letters:
  B rows   T token positions   C positions of a row's chunk   N = B * C   D embed   V vocab
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxvlm.batch import Array, Batch
from jaxvlm.models.vlm import VLM
from jaxvlm.sharding import batch_devices, placement
from jaxvlm.tuning import LOSS_POSITIONS


def by_device(function: Callable[..., Any], model: VLM, batch: Batch, *, summed: bool) -> Any:
    """`function(x_BTD, head_VD, targets_BT, weights_BT, chunk)` of each device's own rows.

    Each device runs as many chunks as its own rows need. The head is gathered once, and its gradient, which is as
    large, is summed over the devices once, not after every chunk.

    Args:
      function: such as `cross_entropy`.
      summed: whether its results are scalars, to be summed over the devices; else arrays with rows first.
    """
    x_BTD = model.hidden(batch)
    head_VD = model.head().astype(x_BTD.dtype)
    B, T = batch.tokens.shape
    here = placement()
    shards = 1 if here is None else batch_devices(here.mesh, here.rules)
    chunk = max(1, min(T, LOSS_POSITIONS * shards // B))
    if here is None or here.mesh.size == 1:
        return function(x_BTD, head_VD, batch.targets, batch.loss_weights, chunk)
    axes = here.row_axes(B)
    # Along which of these axes the head's columns are split; a gather's transpose is a sum that scatters.
    split = here.spec(("embed",), head_VD.shape[1:])[0]
    split = split if split in axes else None

    def run(x: Array, head: Array, targets: Array, weights: Array) -> Any:
        if split is not None:
            head = jax.lax.all_gather(head, split, axis=1, tiled=True)
        own = function(x, head, targets, weights, chunk)
        return jax.lax.psum(own, axes) if summed else own

    row = PartitionSpec(axes)
    return jax.shard_map(
        run,
        mesh=here.mesh,
        in_specs=(row, PartitionSpec(None, split), row, row),
        out_specs=PartitionSpec() if summed else row,
        axis_names=set(axes),
        check_vma=False,
    )(x_BTD, head_VD, batch.targets, batch.loss_weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x_BTD: Array, head_VD: Array, targets_BT: Array, weights_BT: Array, chunk: int
) -> tuple[Array, Array]:
    """Weighted sums of the cross-entropy and of the hits (correct predictions).

    Each row's supervised positions are moved to its front and processed `chunk` at a time, for as many chunks as the
    row with the most needs. No logits are computed for unsupervised positions.

    Args:
      x_BTD: float[B, T, D], final hidden states.
      head_VD: float[V, D], output projection in the same dtype.
      targets_BT: int32[B, T].
      weights_BT: float32[B, T].
      chunk: positions of a row in one piece.

    Returns:
      float32[] loss in nats and float32[] hits, both summed with the weights.
    """
    zero = jnp.zeros((), jnp.float32)
    supervised = _Supervised.of(x_BTD, targets_BT, weights_BT, weights_BT > 0, chunk)

    def body(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        loss, hits = _chunk_loss(supervised.x(i), head_VD, supervised.targets(i), supervised.weights(i))
        return sums[0] + loss, sums[1] + hits

    return jax.lax.fori_loop(0, supervised.num_chunks, body, (zero, zero))


def _forward(x_BTD: Array, head_VD: Array, targets_BT: Array, weights_BT: Array, chunk: int) -> tuple:
    """The sums and, in the same pass over the chunks, their gradients: the logits are computed once."""
    supervised = _Supervised.of(x_BTD, targets_BT, weights_BT, weights_BT > 0, chunk)
    loss, hits, x_grad, head_grad = _with_gradients(supervised, head_VD, x_BTD.shape[1])
    return (loss, hits), (x_grad, head_grad, jnp.zeros((), head_VD.dtype))


def _backward(chunk: int, residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
    x_grad, head_grad, like_head = residuals
    scale = cotangents[0]
    return (x_grad * scale.astype(x_grad.dtype), (head_grad * scale).astype(like_head.dtype), None, None)


cross_entropy.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_log_probs(x_BTD: Array, head_VD: Array, targets_BT: Array, is_supervised_BT: Array, chunk: int) -> Array:
    """Log-probability of each supervised target, in the chunks of `cross_entropy`.

    The backward pass computes the logits again, with a cotangent for each token, since the use of the values
    is unknown in the forward pass. A loss that is their weighted sum is cheaper as `cross_entropy`.

    Args:
      is_supervised_BT: bool[B, T].

    Returns:
      float32[B, T], 0 where nothing is supervised.
    """
    supervised = _Supervised.of(x_BTD, targets_BT, is_supervised_BT.astype(jnp.float32), is_supervised_BT, chunk)

    def body(i: Array, log_probs: Array) -> Array:
        nats_BC, _ = _chunk_nats(supervised.x(i), head_VD, supervised.targets(i))
        return jax.lax.dynamic_update_slice_in_dim(log_probs, -nats_BC * supervised.weights(i), i * chunk, axis=1)

    log_probs = jnp.zeros(supervised.targets_sorted.shape, jnp.float32)
    log_probs = jax.lax.fori_loop(0, supervised.num_chunks, body, log_probs)
    return supervised.scatter(log_probs[..., None], x_BTD.shape[1])[..., 0]


def _log_probs_forward(*arguments: Any) -> tuple:
    return token_log_probs(*arguments), arguments[:4]


def _log_probs_backward(chunk: int, residuals: tuple, cotangent_BT: Array) -> tuple:
    x_BTD, head_VD, targets_BT, is_supervised_BT = residuals
    weights_BT = jnp.where(is_supervised_BT, -cotangent_BT, 0)
    supervised = _Supervised.of(x_BTD, targets_BT, weights_BT, is_supervised_BT, chunk)
    _, _, x_grad, head_grad = _with_gradients(supervised, head_VD, x_BTD.shape[1])
    return x_grad, head_grad.astype(head_VD.dtype), None, None


token_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def row_scores(
    x_BTD: Array, head_VD: Array, targets_BT: Array, weights_BT: Array, chunk: int
) -> tuple[Array, Array, Array]:
    """Sums over each row's supervised positions, in the chunks of `cross_entropy`; not differentiable.

    Returns:
      float32[B] log-probabilities of the targets (natural logarithm), int32[B] positions, and int32[B] hits: positions
      whose target has the highest logit, or shares it.
    """
    supervised = _Supervised.of(x_BTD, targets_BT, weights_BT, weights_BT > 0, chunk)

    def body(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        nats_BC, is_hit_BC = _chunk_nats(supervised.x(i), head_VD, supervised.targets(i))
        is_own_BC = supervised.weights(i) > 0
        log_probs_B = sums[0] - jnp.where(is_own_BC, nats_BC, 0).sum(axis=1)
        return log_probs_B, sums[1] + (is_own_BC & is_hit_BC).sum(axis=1, dtype=jnp.int32)

    zeros_B = jnp.zeros(x_BTD.shape[0], jnp.float32)
    init = zeros_B, zeros_B.astype(jnp.int32)
    log_probs_B, hits_B = jax.lax.fori_loop(0, supervised.num_chunks, body, init)
    return log_probs_B, (weights_BT > 0).sum(axis=1, dtype=jnp.int32), hits_B


def _with_gradients(supervised: _Supervised, head_VD: Array, length: int) -> tuple[Array, Array, Array, Array]:
    """Sums of loss and hits, and the gradients of the loss: [B, T, D], and float32[V, D]."""
    zero, chunk = jnp.zeros((), jnp.float32), supervised.chunk

    def body(i: Array, carry: tuple) -> tuple:
        loss, hits, x_grad, head_grad = carry
        x_BCD, targets_BC, weights_BC = supervised.x(i), supervised.targets(i), supervised.weights(i)
        value, pullback, chunk_hits = jax.vjp(
            lambda x, w: _chunk_loss(x, w, targets_BC, weights_BC), x_BCD, head_VD, has_aux=True
        )
        x_part, head_part = pullback(jnp.ones((), jnp.float32))
        x_grad = jax.lax.dynamic_update_slice_in_dim(x_grad, x_part, i * chunk, axis=1)
        return loss + value, hits + chunk_hits, x_grad, head_grad + head_part

    init = (zero, zero, jnp.zeros_like(supervised.x_sorted), jnp.zeros(head_VD.shape, jnp.float32))
    loss, hits, x_grad, head_grad = jax.lax.fori_loop(0, supervised.num_chunks, body, init)
    return loss, hits, supervised.scatter(x_grad, length), head_grad


@dataclasses.dataclass(frozen=True)
class _Supervised:
    """The rows with their supervised positions first, padded to whole chunks."""

    x_sorted: Array  # float[B, T + padding, D]
    targets_sorted: Array  # int32[B, T + padding]
    weights_sorted: Array  # float32[B, T + padding]
    order: Array  # int32[B, T], where each sorted position comes from
    num_chunks: Array
    chunk: int

    @classmethod
    def of(cls, x_BTD: Array, targets_BT: Array, weights_BT: Array, is_supervised_BT: Array, chunk: int) -> _Supervised:
        order_BT = jnp.argsort(~is_supervised_BT, axis=1, stable=True)
        pad = ((0, 0), (0, -order_BT.shape[1] % chunk))
        count = is_supervised_BT.sum(axis=1).max()
        return cls(
            x_sorted=jnp.pad(jnp.take_along_axis(x_BTD, order_BT[..., None], axis=1), (*pad, (0, 0))),
            targets_sorted=jnp.pad(jnp.take_along_axis(targets_BT, order_BT, axis=1), pad),
            weights_sorted=jnp.pad(jnp.take_along_axis(weights_BT, order_BT, axis=1), pad),
            order=order_BT,
            num_chunks=(count + chunk - 1) // chunk,
            chunk=chunk,
        )

    def _slice(self, array: Array, i: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, i * self.chunk, self.chunk, axis=1)

    def x(self, i: Array) -> Array:
        return self._slice(self.x_sorted, i)

    def targets(self, i: Array) -> Array:
        return self._slice(self.targets_sorted, i)

    def weights(self, i: Array) -> Array:
        return self._slice(self.weights_sorted, i)

    def scatter(self, sorted_BTD: Array, length: int) -> Array:
        """Moves rows back to the order of the sequence; a gather by the inverse permutation."""
        inverse_BT = jnp.argsort(self.order, axis=1)
        return jnp.take_along_axis(sorted_BTD[:, :length], inverse_BT[..., None], axis=1)


def _chunk_loss(x_BCD: Array, head_VD: Array, targets_BC: Array, weights_BC: Array) -> tuple[Array, Array]:
    """Weighted sums of loss and hits of a chunk."""
    nats_BC, is_hit_BC = _chunk_nats(x_BCD, head_VD, targets_BC)
    return (nats_BC * weights_BC).sum(), (is_hit_BC * weights_BC).sum()


def _chunk_nats(x_BCD: Array, head_VD: Array, targets_BC: Array) -> tuple[Array, Array]:
    """Cross-entropy of each position, and whether its target has the highest logit.

    Logits are float32, since their exponentials are summed over V.
    """
    B, C, D = x_BCD.shape
    logits = jnp.einsum("ND,VD->NV", x_BCD.reshape(B * C, D), head_VD, preferred_element_type=jnp.float32).reshape(
        B, C, -1
    )
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets_BC[..., None], axis=-1)[..., 0]
    return log_z - at_target, at_target >= logits.max(axis=-1)
