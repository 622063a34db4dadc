"""Named TPU slices, and the speeds of their chips."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from jaxvlm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import jax

GIB = 2**30
HERE = "here"  # in place of a slice's name: this machine


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation. Bandwidths in bytes a second."""

    name: str
    flops: float  # bfloat16, a second
    hbm_bytes: int  # usable by programs
    hbm_bandwidth: float
    clock: float  # cycles a second of the compiler's estimates
    link_bandwidth: float  # of one link to a neighbouring chip, in one direction
    host_bandwidth: float  # of the bus to the chip's host, in one direction
    network_bandwidth: float  # between slices, a chip's share of its host's network, in one direction


# flops, hbm_bandwidth, link and network: the "Key specifications" of cloud.google.com/tpu/docs/v5e, /v5p, /v6e. A
# link's bandwidth is the chip's bidirectional one over its ports (4, 6, 4) and over 2 directions; the network's is the
# pod's (v5e 6.4, v6e 25.6 Tbit/s) over its 256 chips, and for v5p the 50 Gbit/s that are given of a chip.
# host: 16 GB/s a chip and direction, v6e 32 ("PCIe" in jax-ml.github.io/scaling-book/tpus); Google publishes none.
# hbm_bytes: what libtpu 0.0.42 reports as available when a program does not fit ("exceeds available HBM (15.75G)").
# clock: measured by the cycles that libtpu estimates of matrix products (docs/performance.md).
V5E = Chip("v5e", 197e12, int(15.75 * GIB), 819e9, 1.5e9, 400e9 / 4 / 2, 16e9, 6.4e12 / 256 / 8)
V5P = Chip("v5p", 459e12, int(95.74 * GIB), 2765e9, 1.75e9, 1200e9 / 6 / 2, 16e9, 50e9 / 8)
V6E = Chip("v6e", 918e12, int(31.25 * GIB), 1640e9, 1.75e9, 800e9 / 4 / 2, 32e9, 25.6e12 / 256 / 8)

# By the number in the name: chips of v5e and v6e, cores (two a chip) of v5p; the tables of the same pages.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8", 1024: "8x8x8"}
_LAYOUTS = {"v5e": (V5E, _FLAT), "v5p": (V5P, _CUBIC), "v6e": (V6E, _FLAT)}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice, or several equal ones joined by the data centre's network."""

    name: str  # "v5e-16", "2xv5e-16"
    chip: Chip
    topology: str  # as `jax.experimental.topologies` calls one slice of it
    num_slices: int
    num_chips: int  # of all slices

    def devices(self) -> list[jax.Device]:
        """The slice's devices, to compile for; none is attached."""
        from jax.experimental import topologies  # here: the names of slices are needed without JAX

        options: dict[str, Any] = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.num_chips == self.num_slices:
            options["chips_per_host_bounds"] = (1, 1, 1)  # the default is a host of 2x2
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=self.topology, **options)
        except Exception as error:  # jax passes the plugin's exceptions on
            raise UserError(
                f"the TPU compiler does not describe {self.name}: {error}; "
                "plans need libtpu, which `pip install -e '.[tpu]'` brings on x86-64 Linux"
            ) from error
        return list(described.devices)


def known_slices() -> list[str]:
    """The names of all single slices."""
    return [f"{generation}-{size}" for generation, (_, sizes) in _LAYOUTS.items() for size in sizes]


def find_slice(name: str) -> Slice:
    """The slice called `name`: "v5e-16", "v5p-8" (cores, as Google Cloud counts them), "2xv5e-16".

    Raises:
      UserError: there is none of that name.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(v\w+)-(\d+)", name.lower())
    if not match or f"{match[2]}-{match[3]}" not in known_slices():
        raise UserError(
            f"no slice is called {name}{did_you_mean(name.lower(), known_slices())}; known: "
            f"{', '.join(known_slices())}, and NxSLICE for several, "
            "such as 2xv5e-16"
        )
    chip, sizes = _LAYOUTS[match[2]]
    layout, num_slices = sizes[int(match[3])], int(match[1] or 1)
    chips = num_slices
    for side in layout.split("x"):
        chips *= int(side)
    return Slice(name.lower(), chip, f"{match[2]}:{layout}", num_slices, chips)


def larger_slice(of: Slice) -> str | None:
    """The name of the next larger slice of the same generation; None: there is none, as of this machine."""
    if of.name == HERE:
        return None
    generation, size = of.name.split("x")[-1].split("-") if of.num_slices > 1 else of.name.split("-")
    sizes = list(_LAYOUTS[generation][1])
    at = sizes.index(int(size)) + 1
    prefix = f"{of.num_slices}x" if of.num_slices > 1 else ""
    return f"{prefix}{generation}-{sizes[at]}" if at < len(sizes) else None
