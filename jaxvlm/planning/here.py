"""A plan for this machine: its memory, by the compiler of its own devices; its time only a run can tell."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax

from jaxvlm.config import Config
from jaxvlm.planning.compiler import compile_step
from jaxvlm.planning.program import build_step
from jaxvlm.planning.report import Assumptions, Plan, make_plan
from jaxvlm.planning.slices import HERE, Chip, Slice

_MEMINFO = Path("/proc/meminfo")


class ThisMachine(Slice):
    """The devices of this process, as a slice."""

    def devices(self) -> list[jax.Device]:
        """All of them."""
        return jax.devices()


def this_machine() -> ThisMachine:
    """The devices of this process, and the memory that each may use now.

    Devices of a CPU share the machine's available memory.
    """
    devices = jax.devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    memory = min((limit for limit in limits if limit), default=available_memory() // len(devices))
    kind = f"{devices[0].platform} ({devices[0].device_kind})"
    # No speeds: nothing is estimated with them.
    chip = Chip(kind, 0.0, memory, 0.0, 1.0, 0.0, 0.0, 0.0)
    return ThisMachine(HERE, chip, HERE, 1, len(devices))


def available_memory() -> int:
    """Bytes of memory that programs can still take without swapping (Linux); elsewhere those of the machine."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def plan_here(config: Config, stage: str, assumptions: Assumptions) -> Plan:
    """Compiles a stage's step for this machine.

    Raises:
      UserError: as `build_step`.
    """
    step = build_step(config, stage, this_machine())
    compiled = compile_step(step, compiler=lambda lowered, _: lowered.compile())
    # The estimate of time is made for TPU programs.
    return make_plan(step, dataclasses.replace(compiled, text=None), assumptions)
