"""Arithmetic in the form that XLA for TPUs compiles well; on other platforms the plain form.

XLA fuses operations around a matrix product into it, on TPUs often at a loss: an operation fused into an operand
runs again for every tile, and a reduction after a product shrinks its tiles. The gain of each function comes from
the compiler's estimate of LLaVA-1.5-7B's step (`python -m jaxvlm.plan`); docs/performance.md has the figures.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.batch import Array
from jaxvlm.sharding import placement


def is_target() -> bool:
    """Whether the program that is traced is for TPUs."""
    here = placement()
    return here is not None and here.platform == "tpu"


def settle(x: Array) -> Array:
    """`x` and its gradient, each written to memory before use."""
    return jax.lax.optimization_barrier(x) if is_target() else x


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, in float32 inside, with one tanh instead of an exponential and a division.

    The backward pass keeps only the arguments, and computes both gradients at once. Source: arXiv:2002.05202.
    """
    g, u = gate.astype(jnp.float32), up.astype(jnp.float32)
    return (g * _sigmoid(g) * u).astype(gate.dtype)


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def _swiglu_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    gate, up = kept
    g, u, d = (x.astype(jnp.float32) for x in (gate, up, gradient))
    s = _sigmoid(g)
    return settle(((d * u * s * (1 + g * (1 - s))).astype(gate.dtype), (d * g * s).astype(up.dtype)))


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


def rotate_halves(x: Array) -> Array:
    """[first, second] -> [-second, first] along the last axis, float32.

    A TPU moves halves of its 128 lanes slowly. A product with zeros and ones moves them exactly, at no cost.
    """
    half = x.shape[-1] // 2
    swap_HH = np.zeros((2 * half, 2 * half), np.float32)
    swap_HH[half:, :half], swap_HH[:half, half:] = -np.eye(half), np.eye(half)
    return jnp.matmul(x, swap_HH.astype(x.dtype), precision="highest", preferred_element_type=jnp.float32)
