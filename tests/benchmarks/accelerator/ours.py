"""Our side: what `jaxvlm.train` and `jaxvlm.generate` run, with random weights made on the devices."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.config import Config, MeshConfig
from jaxvlm.families.build import build_model, stage_model
from jaxvlm.inference.decoding import decode
from jaxvlm.inference.programs import Programs
from jaxvlm.planning.flops import model_flops, total_flops
from jaxvlm.sharding import Placement, Rules, make_mesh, named_shardings, to_devices
from jaxvlm.training.state import initial_state, state_layout
from jaxvlm.training.step import compile_train_step
from tests.benchmarks.accelerator import measurements
from tests.benchmarks.accelerator.measurements import Measurement, Setting
from tests.benchmarks.accelerator.trace import read_jax_trace, shares

NAME = "jaxvlm"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller setting may work."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def describe() -> dict[str, Any]:
    """The devices and versions."""
    device = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": len(jax.devices()),
        "memory_bytes": stats.get("bytes_limit"),
        "versions": versions,
    }


def matmul_flops() -> float:
    """Operations a second of one large product, for a machine without a published peak."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    run = jax.jit(jnp.matmul)
    run(a, a).block_until_ready()
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        run(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


class _Side:
    """What both kinds of measurement share."""

    def peak_bytes(self) -> float | None:
        """The most memory that a device had in use since the process began."""
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        return max((peak for peak in peaks if peak), default=None)

    def trace(self, kind: str) -> dict[str, float]:
        """Shares of the time by class of operation, of one run."""
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(kind)
            return shares(read_jax_trace(folder))

    def run(self, kind: str) -> dict[str, float]:
        raise NotImplementedError


class Training(_Side):
    """A state, the compiled step that takes it on, and the batches on the devices."""

    def __init__(self, measurement: Measurement, setting: Setting, tiny: bool):
        config = measurements.make_config(measurement, tiny)
        (stage,) = config.stage.values()
        mesh = make_mesh(MeshConfig(1, -1, 1))
        config = _with_remat(config, setting.remat)
        rows = setting.rows * mesh.size
        self.layout = state_layout(stage_model(config, stage), stage, 1000, mesh, Rules())
        self.batches = {kind: measurements.make_batches(measurement, config, kind, rows) for kind in measurement.kinds}
        first = next(iter(self.batches.values())).packed[0]
        with jax.set_mesh(mesh):
            start = time.perf_counter()
            lowered = compile_train_step(self.layout, stage).lower(self.layout.state, to_devices(first, mesh, Rules()))
            self.compiled = lowered.compile()
            self.compile_seconds = time.perf_counter() - start
            self.state = initial_state(self.layout, config.seed)
            self.packed = {
                kind: [to_devices(batch, mesh, Rules()) for batch in made.packed] for kind, made in self.batches.items()
            }
        self.flops = {
            kind: total_flops(model_flops(config.model, stage.parts, self.layout.state.trained, made.work(rows)))
            * len(made.packed)
            for kind, made in self.batches.items()
        }
        memory = self.compiled.memory_analysis()
        self.program_bytes = getattr(memory, "temp_size_in_bytes", None)

    def describe(self) -> dict[str, Any]:
        """What the parent needs for its table."""
        return {
            "compile_seconds": self.compile_seconds,
            "program_bytes": self.program_bytes,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.layout.model.abstract)),
            "trained": sum(leaf.size for leaf in jax.tree.leaves(self.layout.state.trained)),
            "devices": self.layout.mesh.size,
            "kinds": {
                kind: {
                    "tokens": made.tokens,
                    "samples": len(made.pieces),
                    "steps": len(made.packed),
                    "positions": sum(batch.tokens.size for batch in made.packed),
                    "flops": self.flops[kind],
                }
                for kind, made in self.batches.items()
            },
        }

    def run(self, kind: str) -> dict[str, float]:
        """One update with each batch."""
        with jax.set_mesh(self.layout.mesh):
            start = time.perf_counter()
            for batch in self.packed[kind]:
                self.state, info = self.compiled(self.state, batch)
            jax.block_until_ready((self.state, info))
            seconds = time.perf_counter() - start
        return {"seconds": seconds, "loss": float(info["loss"])}


class Decoding(_Side):
    """The engine's programs, and prompts."""

    def __init__(self, measurement: Measurement, setting: Setting | None, tiny: bool):
        config = measurements.make_config(measurement, tiny)
        self.config, self.tiny = config, tiny
        model, mesh, rules = build_model(config.model), make_mesh(MeshConfig(1, -1, 1)), Rules()
        dtype = jnp.dtype(config.model.compute_dtype)
        shardings = named_shardings(mesh, rules, model.abstract, model.axes)

        def make(key: jax.Array) -> dict:
            return jax.tree.map(lambda x: x.astype(dtype), model.init(jax.random.wrap_key_data(key)))

        with jax.set_mesh(mesh):
            params = jax.jit(make, out_shardings=shardings)(jax.random.key_data(jax.random.key(0)))
        self.programs = Programs(model, params, (), Placement(mesh, rules))
        self.itemsize = dtype.itemsize
        self.devices = mesh.size

    def describe(self) -> dict[str, Any]:
        """What the parent needs for its table."""
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.programs.params)),
            "devices": self.devices,
        }

    def run(self, kind: str) -> dict[str, float]:
        """Answers of a batch of `kind` prompts, and what reading the prompts takes of it."""
        rows, count = int(kind), measurements.new_tokens(self.tiny)
        padded = -(-rows // self.devices) * self.devices  # every device has a row
        prompts = measurements.make_prompts(self.config, padded, self.tiny)
        numbers = np.where(np.arange(padded) < rows, np.arange(padded), 0).astype(np.int32)
        read = _seconds(lambda: decode(self.programs, prompts, numbers, 1))
        seconds = _seconds(lambda: decode(self.programs, prompts, numbers, count))
        length = prompts.tokens.shape[1]
        return {
            "seconds": seconds,
            "prompt_seconds": read,
            "tokens": rows * count,
            "bytes": measurements.reads_a_token(self.config, rows, length + count / 2, self.itemsize) * (count - 1),
        }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _with_remat(config: Config, remat: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def prepare() -> None:
    """Before the first use of jax: memory is taken as needed, since the other side is on the same device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is measured
