"""A step that trains adapters against a step that trains the whole decoder, on this machine's CPU.

  python -m tests.benchmarks.lora_step
  python -m tests.benchmarks.lora_step --model smollm2_135m --rounds 10 --remat dots --json

Both are what `jaxvlm.train` runs: `compile_train_step` on the same model, start and batch ("full" of step_cpu.py), in
float32, with the vision encoder frozen in bfloat16 and the projector trained. "lora" trains adapters of rank 128 at
every projection of the decoder's blocks, and keeps the decoder in bfloat16 too; "full" trains the decoder. The first
losses must agree to what bfloat16 leaves of the weights, 1e-3, or the program fails.

A step of one and a step of the other take turns; "ratio" is the median over the rounds of (seconds of "full" / seconds
of "lora" in the same round), above 1 where adapters are faster. "program" is what the compiler says of its own memory:
outputs lie in the arguments' place except the "new" ones, so a step takes arguments + new outputs + temporary.
Resident memory is that of a process of its own, less what its imports take (Linux only): "whole run" is the peak of
making the weights, compiling and three steps, "steps" that of two more.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model
from jaxvlm.sharding import Rules, make_mesh, to_devices
from jaxvlm.training.state import initial_state, state_layout
from jaxvlm.training.step import compile_train_step
from jaxvlm.tuning import POLICIES
from tests.benchmarks.step_cpu import SIZES, Size, make_config, make_samples, pack, seconds

VARIANTS = ("lora", "full")  # the decoder's policy; the order of the columns
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")  # "5" sets the peak back to what is resident now


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="small", metavar="small|smollm2_135m")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--remat", choices=POLICIES, default="full", help="config.model.remat (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)  # the process of `resident_bytes`
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    if args.only:
        print(json.dumps(measure_memory(args.only, SIZES[args.model], args.remat)))
        return {}
    result = run(args.model, args.remat, args.rounds)
    print(report(result), flush=True)
    if args.json:
        print(json.dumps(result))
    return result


class Variant:
    """A state and the compiled step that takes it on."""

    def __init__(self, name: str, size: Size, remat: str):
        config = make_config(size)
        model_config = dataclasses.replace(config.model, remat=remat)
        parts = dataclasses.replace(config.stage["only"].parts, vision="frozen", language=name)
        stage = dataclasses.replace(config.stage["only"], parts=parts, frozen_dtype="bfloat16")
        mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        self.batch = pack(model_config, size, make_samples(model_config, size, "full"))
        self.layout = state_layout(build_model(model_config, parts.adapters()), stage, 1, mesh, Rules())
        self.state = initial_state(self.layout, config.seed)
        with jax.set_mesh(mesh):
            step = compile_train_step(self.layout, stage)
            self.compiled = step.lower(self.layout.state, self.batch).compile()

    def step(self) -> float:
        """One update; returns its loss."""
        with jax.set_mesh(self.layout.mesh):
            batch = to_devices(self.batch, self.layout.mesh, self.layout.rules)
            self.state, info = jax.block_until_ready(self.compiled(self.state, batch))
        return float(info["loss"])

    def state_bytes(self) -> dict[str, int]:
        """Of the leaves, by what they are."""
        state = self.layout.state
        kinds = {"trained": state.trained, "frozen": state.frozen, "moments": state.optimizer}
        return {name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for name, tree in kinds.items()}

    def program_bytes(self) -> dict[str, int]:
        """What the compiler says of the step."""
        memory = self.compiled.memory_analysis()
        return {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "new": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        }


def run(model: str, remat: str, rounds: int) -> dict[str, Any]:
    """Measures everything of one model."""
    size, load = SIZES[model], os.getloadavg()[0]
    resident = {name: resident_bytes(name, model, remat) for name in VARIANTS}
    variants = {name: Variant(name, size, remat) for name in VARIANTS}
    losses = {name: variant.step() for name, variant in variants.items()}  # the warm-up
    np.testing.assert_allclose(losses["lora"], losses["full"], rtol=1e-3, err_msg="not the same model or batch")
    timed: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            time.sleep(0.2)  # until the other's threads sleep
            timed[name].append(seconds(variant.step))
    ratios = [full_s / lora_s for full_s, lora_s in zip(timed["full"], timed["lora"], strict=True)]
    return {
        "model": model,
        "remat": remat,
        "batch": list(variants["full"].batch.tokens.shape),
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "load_at_start": load,
        "loss": losses,
        "step_seconds": {name: statistics.median(values) for name, values in timed.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "state_bytes": {name: variant.state_bytes() for name, variant in variants.items()},
        "program_bytes": {name: variant.program_bytes() for name, variant in variants.items()},
        "resident_bytes": resident,
    }


def resident_bytes(name: str, model: str, remat: str) -> dict[str, int]:
    """What `measure_memory` says in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.lora_step"]
    command += ["--only", name, "--model", model, "--remat", remat]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(name: str, size: Size, remat: str) -> dict[str, int]:
    """Bytes by which the run, and then its steps alone, exceed what the imports left."""

    def resident(field: str) -> int:
        return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))

    before, variant = resident("VmRSS"), Variant(name, size, remat)
    for _ in range(3):
        variant.step()
    peak = resident("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler is done with
    CLEAR_REFS.write_text("5")
    for _ in range(2):
        variant.step()
    return {"whole run": peak - before, "steps": resident("VmHWM") - before}


def report(r: dict[str, Any]) -> str:
    """The table of one model."""

    def both(label: str, values: dict[str, float], unit: float, digits: int) -> list[str]:
        return [label, *(f"{values[name] / unit:,.{digits}f}" for name in VARIANTS)]

    rows = [
        ["", *VARIANTS],
        both("step, ms", r["step_seconds"], 1e-3, 1),
        both("loss of the first step", r["loss"], 1, 5),
    ]
    titles = {"state_bytes": "state", "program_bytes": "program", "resident_bytes": "resident"}
    for field, title in titles.items():
        kinds = {name: dict(r[field][name]) for name in VARIANTS}
        if field == "state_bytes":
            kinds = {name: values | {"all": sum(values.values())} for name, values in kinds.items()}
        rows.append(["", "", ""])
        for kind in kinds["full"]:
            rows.append(both(f"{title}: {kind}, MiB", {name: kinds[name][kind] for name in VARIANTS}, 2**20, 1))
    ratio = r["ratio"]
    head = (
        f"{r['model']}, remat {r['remat']}: {' x '.join(map(str, r['batch']))} positions; {r['cpus']} CPUs, "
        f"load {r['load_at_start']:.1f} at the start"
    )
    verdict = (
        f"ratio {ratio['median']:.2f} (time of full / lora; {ratio['min']:.2f} to {ratio['max']:.2f} "
        f"in {r['rounds']} paired rounds)"
    )
    lines = [f"{label:<38}{left:>14}{right:>14}".rstrip() for label, left, right in rows]
    return "\n".join(["", head, "", *lines, "", verdict])


if __name__ == "__main__":
    main(sys.argv[1:])
