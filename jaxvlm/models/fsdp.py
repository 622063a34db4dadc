"""Products of activations, whose rows are split over devices, and weights that are split over the same devices (FSDP).

By default XLA's partitioner chooses for each product whether it gathers the weight, moves the activation, or adds up
partial results. Here the weight is always gathered, and its gradient summed and scattered once it is made.

Axis letters: as in the equations of `layers.Einsum`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm import tuning
from jaxvlm.batch import Array
from jaxvlm.sharding import Placement, placement


def is_used() -> bool:
    """Whether the program that is traced is for TPUs, or for several GPUs."""
    here = placement()
    return here is not None and (here.platform == "tpu" or (here.is_gpu and here.mesh.size > 1))


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
        for x_piece, y_piece in _pieces(x, of_x, gradient, of_y, of_w[along_dim], here):
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


def _pieces(
    x: Array, of_x: str, gradient: Array, of_y: str, letter: str, here: Placement
) -> Iterator[tuple[Array, Array]]:
    """Both factors of a weight's gradient, cut along `letter`; whole on GPUs, where each sum has a fixed cost."""
    where = of_x.find(letter), of_y.find(letter)
    size = x.shape[where[0]] if where[0] >= 0 else gradient.shape[where[1]]
    piece = size if here.is_gpu else tuning.GRADIENT_PIECE
    for start in range(0, size, piece):
        end = min(size, start + piece)
        yield _cut(x, start, end, where[0]), _cut(gradient, start, end, where[1])


def _cut(x: Array, start: int, end: int, axis: int) -> Array:
    return x if axis < 0 else jax.lax.slice_in_dim(x, start, end, axis=axis)
