"""Placement of arrays: the mesh, the rules from logical to mesh axes, and batches on devices."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvlm.batch import Array
from jaxvlm.config import MeshConfig
from jaxvlm.errors import UserError

Tree = TypeVar("Tree")

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes over which each logical axis is split; None keeps it whole."""

    batch: str | tuple[str, ...] | None = ("data", "fsdp")
    seq: str | tuple[str, ...] | None = None
    embed: str | tuple[str, ...] | None = "fsdp"
    heads: str | tuple[str, ...] | None = "tensor"
    kv_heads: str | tuple[str, ...] | None = "tensor"
    head_dim: str | tuple[str, ...] | None = None
    mlp: str | tuple[str, ...] | None = "tensor"
    vocab: str | tuple[str, ...] | None = "tensor"
    layers: str | tuple[str, ...] | None = None
    patches: str | tuple[str, ...] | None = None

    def partition(self, axes: tuple[str | None, ...], where: str) -> PartitionSpec:
        """The partition of an array whose logical axes are `axes`; `where` is the parameter's path, for messages.

        Raises:
          ValueError: an axis without a rule, or two axes of the array on one mesh axis.
        """
        parts = []
        for axis in axes:
            if axis is not None and axis not in _AXES:
                raise ValueError(
                    f'no rule for logical axis "{axis}" (param {where}); sharding.Rules has {", ".join(_AXES)}'
                )
            parts.append(None if axis is None else getattr(self, axis))
        used = [name for part in parts for name in _names(part)]
        if len(used) != len(set(used)):
            raise ValueError(f"two axes of {where} {axes} share a mesh axis: {parts}; change sharding.Rules")
        return PartitionSpec(*parts)


_AXES = tuple(field.name for field in dataclasses.fields(Rules))


def available_devices() -> list[jax.Device]:
    """The devices of a run, those of all its processes."""
    return jax.devices()


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over `devices` (default: all) with axes data, fsdp, tensor.

    With several TPU slices `data` is split between them, over the slow network, and within each if it is larger.

    Raises:
      UserError: the axes do not multiply to the number of devices, more than one is -1, or `data` is no multiple of the
        number of slices.
    """
    devices = available_devices() if devices is None else devices
    slices = _slices(devices)
    if len(slices) > 1:
        if config.data != -1 and config.data % len(slices):
            raise UserError(
                f"config.mesh.data = {config.data}, but there are {len(slices)} slices, over which data is split; pass "
                f"--config.mesh.data={len(slices)}, or a multiple"
            )
        inner = dataclasses.replace(config, data=config.data if config.data == -1 else config.data // len(slices))
        each = [make_mesh(inner, part) for part in slices]
        return Mesh(np.concatenate([mesh.devices for mesh in each]), MESH_AXES, axis_types=each[0].axis_types)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise UserError(f"config.mesh = {sizes}: axes are positive, at most one of them -1 (all remaining devices)")
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"config.mesh = {dict(zip(MESH_AXES, sizes, strict=True))} is {known} devices, {len(devices)} are here; "
            "set one axis to -1 to use all remaining ones"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def _slices(devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each TPU slice; all in one on other platforms."""
    if devices[0].platform != "tpu":
        return [devices]
    numbers = [getattr(device, "slice_index", 0) for device in devices]
    return [[d for d, n in zip(devices, numbers, strict=True) if n == number] for number in sorted(set(numbers))]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh and rules of a program while it is traced."""

    mesh: Mesh
    rules: Rules
    target: str | None = None  # platform that the program is written for; None: that of the mesh

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu": the platform of the program; its devices need not be attached."""
        return self.target or self.mesh.devices.flat[0].platform

    @property
    def is_gpu(self) -> bool:
        """Whether `platform` is NVIDIA's: jax calls its devices "gpu" and the platform of a lowering "cuda"."""
        return self.platform in ("gpu", "cuda")

    @property
    def is_interpreted(self) -> bool:
        """Whether kernels for `platform` are run on another one, for tests."""
        return self.platform != self.mesh.devices.flat[0].platform

    def row_axes(self, rows: int) -> tuple[str, ...]:
        """The mesh axes over which that many rows are split; () if they do not divide."""
        return _names(self.spec(("batch",), (rows,))[0])

    def spec(self, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """Partition of an activation; an axis that does not divide stays whole."""
        return _dividing(self.mesh, shape, self.rules.partition(axes, "an activation"))


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Rules, target: str | None = None) -> Iterator[None]:
    """Sets the placement for code traced within it; see `Placement` for the arguments."""
    token = _placement.set(Placement(mesh, rules, target))
    try:
        yield
    finally:
        _placement.reset(token)


def placement() -> Placement | None:
    """The placement set by `placed`; None outside of it."""
    return _placement.get()


def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """`x` with the sharding that its logical axes have within `placed`; unchanged outside of it."""
    here = placement()
    if here is None or here.mesh.size == 1:
        return x
    sharding = NamedSharding(here.mesh, here.spec(axes, x.shape))
    return jax.lax.with_sharding_constraint(x, sharding)


def named_shardings(mesh: Mesh, rules: Rules, abstract: Any, axes: Any) -> Any:
    """Shardings of a nested dict of arrays.

    A logical axis whose size its mesh axes do not divide stays whole: small weights (a norm's scale) are not worth an
    error, and large weights have powers of two in their sizes.

    Args:
      abstract: nested dict of `jax.ShapeDtypeStruct`.
      axes: the same dict with a tuple of logical axis names at each leaf.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> NamedSharding:
        partition = rules.partition(names, "/".join(key.key for key in path))
        return NamedSharding(mesh, _dividing(mesh, leaf.shape, partition))

    return jax.tree.map_with_path(sharding, abstract, axes)


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """Sharding of every field of a batch: rows over the devices, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(rules.batch))


def batch_devices(mesh: Mesh, rules: Rules) -> int:
    """The number of devices over which the rows of a batch are split."""
    return _devices_along(mesh, rules.batch)


def own_rows(mesh: Mesh, rules: Rules, rows: int) -> tuple[int, int]:
    """The index of this process's share of a batch's rows, and the number of shares.

    There are as many shares as processes, or fewer if a row is split over the devices of several, which then read the
    same.

    Raises:
      UserError: the processes would have unequal shares.
    """
    held: dict[int, set[int]] = {}  # process -> rows
    places: dict[Any, Any] = dict(batch_sharding(mesh, rules).devices_indices_map((rows,)))
    for device, where in places.items():
        held.setdefault(device.process_index, set()).update(range(*where[0].indices(rows)))
    shares = sorted({min(mine) for mine in held.values()})
    own = held[jax.process_index()]
    if len(own) * len(shares) != rows or any(len(mine) != len(own) for mine in held.values()):
        raise UserError(
            f"config.mesh = {dict(mesh.shape)} gives the {len(held)} processes unequal shares of the rows; let tensor "
            "divide the devices of a process, or be a multiple of them"
        )
    return shares.index(min(own)), len(shares)


def rows_of_this_host(mesh: Mesh, rules: Rules, rows: int) -> list[int]:
    """The rows of a global batch that are on the devices of this host."""
    places = batch_sharding(mesh, rules).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in places if index for row in range(*index[0].indices(rows))})


def to_devices(rows: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """Puts this host's rows (a `Batch`, or any tree of NumPy arrays with rows first) on the devices.

    Returns the global batch.
    """
    sharding = batch_sharding(mesh, rules)

    def place(x: Array) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, rows)


def _dividing(mesh: Mesh, shape: tuple[int, ...], partition: PartitionSpec) -> PartitionSpec:
    """The partition without the parts that do not divide their axis."""
    sizes = zip(shape, partition, strict=True)
    return PartitionSpec(*(part if size % _devices_along(mesh, part) == 0 else None for size, part in sizes))


def _devices_along(mesh: Mesh, part: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[name] for name in _names(part))


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a partition."""
    return (part,) if isinstance(part, str) else tuple(part or ())
