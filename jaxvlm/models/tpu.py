"""Arithmetic in the form that XLA for TPUs compiles well; on other platforms the plain form.

XLA fuses operations around a matrix product into it, on TPUs often at a loss: an operation fused into an operand
runs again for every tile, and a reduction after a product shrinks its tiles. The gain of each function comes from
the compiler's estimate of LLaVA-1.5-7B's step (`python -m jaxvlm.plan`); docs/performance.md has the figures.

Axis letters: as in the equations of `layers.Einsum`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm import tuning
from jaxvlm.batch import Array
from jaxvlm.sharding import Placement, placement


def is_target() -> bool:
    """Whether the program that is traced is for TPUs."""
    here = placement()
    return here is not None and here.platform == "tpu"


def settle(x: Array) -> Array:
    """`x` and its gradient, each written to memory before use."""
    return jax.lax.optimization_barrier(x) if is_target() else x


def project(equation: str, x: Array, w: Array, axes: tuple[str | None, ...]) -> Array:
    """`einsum(equation, x, w)` of an activation, whose rows are split over devices, and a weight.

    The weight is gathered along the devices that share the rows, in its own dtype. Its gradient is summed over them as
    soon as it is made, so that this overlaps the products that follow.

    Args:
      equation: as in `layers.Einsum`.
      axes: logical axes of `w`.
    """
    here = placement()
    if here is None or here.mesh.size == 1:
        return jnp.einsum(equation, x, w)
    return _project(equation, axes, here, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _project(equation: str, axes: tuple[str | None, ...], here: Placement, x: Array, w: Array) -> Array:
    return jnp.einsum(equation, x, _gather(w, axes, here))


def _gather(w: Array, axes: tuple[str | None, ...], here: Placement) -> Array:
    along = here.row_axes(here.mesh.size)
    kept = [None if part in along else part for part in here.spec(axes, w.shape)]
    return jax.lax.with_sharding_constraint(w, NamedSharding(here.mesh, PartitionSpec(*kept)))


def _project_forward(
    equation: str, axes: tuple[str | None, ...], here: Placement, x: Array, w: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _project(equation, axes, here, x, w), (x, w)


def _project_backward(
    equation: str, axes: tuple[str | None, ...], here: Placement, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = kept
    operands, of_y = equation.split("->")
    of_x, of_w = operands.split(",")
    x_gradient = jnp.einsum(f"{of_y},{of_w}->{of_x}", gradient, _gather(w, axes, here))
    along = here.row_axes(x.shape[0])
    split = [part if part in along else None for part in here.spec(axes, w.shape)]
    rest = tuple(axis for axis in along if axis not in split)
    along_dim = max((dim for dim, axis in enumerate(split) if axis is None), key=lambda dim: w.shape[dim])

    def own(x: Array, gradient: Array) -> Array:
        pieces = []
        for x_piece, y_piece in _pieces(x, of_x, gradient, of_y, of_w[along_dim]):
            piece = jnp.einsum(f"{of_x},{of_y}->{of_w}", x_piece, y_piece)
            for dim, axis in enumerate(split):
                if axis is not None:
                    piece = jax.lax.psum_scatter(piece, axis, scatter_dimension=dim, tiled=True)
            pieces.append(jax.lax.psum(piece, rest) if rest else piece)
        return jnp.concatenate(pieces, axis=along_dim)

    w_gradient = jax.shard_map(
        own,
        mesh=here.mesh,
        in_specs=PartitionSpec(along),
        out_specs=PartitionSpec(*split),
        axis_names=set(along),
        check_vma=False,
    )(x, gradient)
    return x_gradient, w_gradient


_project.defvjp(_project_forward, _project_backward)


def _pieces(x: Array, of_x: str, gradient: Array, of_y: str, letter: str) -> Iterator[tuple[Array, Array]]:
    """Both factors of a weight's gradient, cut along `letter`."""
    where = of_x.find(letter), of_y.find(letter)
    size = x.shape[where[0]] if where[0] >= 0 else gradient.shape[where[1]]
    for start in range(0, size, tuning.GRADIENT_PIECE):
        end = min(size, start + tuning.GRADIENT_PIECE)
        yield _cut(x, start, end, where[0]), _cut(gradient, start, end, where[1])


def _cut(x: Array, start: int, end: int, axis: int) -> Array:
    return x if axis < 0 else jax.lax.slice_in_dim(x, start, end, axis=axis)


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
