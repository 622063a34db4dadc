"""How fast Hugging Face's weights are read into ours, beside `cp` of the same files, and how much memory it takes.

  python -m tests.benchmarks.import_weights
  python -m tests.benchmarks.import_weights --gib 6 --rounds 3

Makes a LLaVA of about `--gib` GiB in a temporary folder: real widths (CLIP L/14 at 336, LLaMA 2 7B), fewer layers,
random bfloat16, four shards. The files are warm. In each round `cp` copies them to another temporary folder and
`import_tensors` reads them onto a mesh of one CPU device; they take turns. "ratio" is the median over the rounds of
(seconds of cp / seconds of the import in the same round): above 0.5 the import has at least half the speed of `cp`.

The peak is measured in a process of its own: the highest RssAnon + RssFile + RssShmem of /proc/self/status (Linux
only), sampled about each millisecond, less what it was before the import and less the bytes of the placed arrays. Its
bound is twice the largest weight (a stack of layers is one weight).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from configs import base
from jaxvlm.config import MeshConfig, ModelConfig
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.weights import HUB, llava_rules, llava_sizes
from jaxvlm.families.registry import resolve
from jaxvlm.models import variants
from jaxvlm.sharding import Rules, make_mesh, named_shardings
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.rules import export_tensors, import_tensors
from jaxvlm.weights.tensors import TensorSource
from jaxvlm.weights.writing import write_tensors

SHARDS = 4
TINY_VISION = {"image_size": 21, "patch_size": 7, "embed_dim": 36, "mlp_dim": 44, "num_layers": 3, "num_heads": 3}
TINY_LANGUAGE = {"vocab_size": 101, "embed_dim": 48, "mlp_dim": 56, "num_heads": 6, "num_kv_heads": 2, "head_dim": 10}


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint; 0: a tiny model")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # the process of `peak_bytes`
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    config = make_config(args.gib)
    if args.only:
        print(measure_memory(config, args.only))
        return {}
    with tempfile.TemporaryDirectory() as folder:
        result = run(config, args.gib, args.rounds, Path(folder))
    print(report(result))
    if args.json:
        print(json.dumps(result))
    return result


def make_config(gib: float) -> ModelConfig:
    """As many decoder layers as make about `gib` GiB of bfloat16; 0: the tiny model."""
    c = base.get_config()
    c.model.vision.update(variants.vision("clip_l14_336") if gib else TINY_VISION)
    c.model.language.update(variants.language("llama2_7b") if gib else TINY_LANGUAGE)
    layers = [c.model.language.update(num_layers=n) or resolve(c.to_dict()).model for n in (1, 2)]
    one, two = (sum(2 * leaf.size for leaf in jax.tree.leaves(build_model(config).abstract)) for config in layers)
    num_layers = max(1, round(1 + (gib * 2**30 - one) / (two - one))) if gib else 3
    return dataclasses.replace(layers[0], language=dataclasses.replace(layers[0].language, num_layers=num_layers))


def make_checkpoint(config: ModelConfig, folder: Path) -> None:
    """Random weights in `SHARDS` files."""
    random = np.random.default_rng(0)

    def noise(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        # Random bits of floats between 1 and 2: quicker than normal numbers, and just as little to compress.
        return (random.integers(0, 128, leaf.shape, np.uint8) | np.uint16(0x3F80)).view(ml_dtypes.bfloat16)

    params = jax.tree.map(noise, build_model(config).abstract)
    tensors = export_tensors(llava_rules(config, HUB), params, llava_sizes(config))
    largest = max(tensors.spec(name).nbytes for name in tensors)
    total = sum(tensors.spec(name).nbytes for name in tensors)
    write_tensors(folder, tensors, shard_bytes=max(largest, math.ceil(total / SHARDS) + largest // 2))


def placed(config: ModelConfig) -> Any:
    """The abstract model in bfloat16 on one device."""
    model = build_model(config)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    shardings = paths(named_shardings(mesh, Rules(), model.abstract, model.axes))
    return from_paths(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, ml_dtypes.bfloat16, sharding=shardings[path])
            for path, leaf in paths(model.abstract).items()
        }
    )


def load(config: ModelConfig, folder: Path) -> Any:
    """What is timed and measured."""
    rules, sizes = llava_rules(config, HUB), llava_sizes(config)
    return import_tensors(rules, open_tensors(folder), placed(config), sizes, progress=False)


def run(config: ModelConfig, gib: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Measures everything."""
    source, copy = folder / "source", folder / "copy"
    source.mkdir()
    make_checkpoint(config, source)
    files = sorted(str(path) for path in source.glob("*.safetensors"))
    weights = [math.prod(leaf.shape) * 2 for leaf in jax.tree.leaves(placed(config))]
    peak = peak_bytes(gib, source)
    load_average = os.getloadavg()[0]
    check(load(config, source), open_tensors(source), config)  # and the warm-up
    seconds: dict[str, list[float]] = {"cp": [], "import": []}
    for _ in range(rounds):
        copy.mkdir()
        start = time.perf_counter()
        subprocess.run(["cp", *files, str(copy)], check=True)
        seconds["cp"].append(time.perf_counter() - start)
        shutil.rmtree(copy)
        os.sync()  # what is still to be written would slow the next one
        start = time.perf_counter()
        load(config, source)
        seconds["import"].append(time.perf_counter() - start)
    ratios = [cp / ours for cp, ours in zip(seconds["cp"], seconds["import"], strict=True)]
    return {
        "bytes": sum(Path(file).stat().st_size for file in files),
        "files": len(files),
        "parameters": sum(weights) // 2,
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "load_at_start": load_average,
        "seconds": {side: statistics.median(times) for side, times in seconds.items()},
        "range": {side: [min(times), max(times)] for side, times in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_bytes": peak,
        "bound_bytes": 2 * max(weights),
    }


def check(params: Any, source: TensorSource, config: ModelConfig) -> None:
    """The imported weights, exported again, are the files."""
    back = export_tensors(llava_rules(config, HUB), params, llava_sizes(config))
    for name in back:
        np.testing.assert_array_equal(back[name].view(np.uint16), source[name].view(np.uint16), err_msg=name)


def peak_bytes(gib: float, folder: Path) -> int:
    """What `measure_memory` says in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.import_weights", "--gib", str(gib), "--only", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def measure_memory(config: ModelConfig, folder: Path) -> int:
    """Bytes by which the import exceeds, at its highest, what was there before and what it places."""
    jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))  # the backend's own memory
    highest, done = 0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            time.sleep(0.001)

    before = resident()
    thread = threading.Thread(target=sample)
    thread.start()
    params = load(config, folder)
    done.set()
    thread.join()
    return highest - before - sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def resident() -> int:
    """Bytes of this process in memory: anonymous, of mapped files, and shared."""
    with open("/proc/self/status") as status:
        return 1024 * sum(
            int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssFile", "RssShmem"))
        )


def report(r: dict[str, Any]) -> str:
    """The table."""
    lines = [f"{'':<10}{'seconds':>10}{'GB/s':>10}{'range, seconds':>20}"]
    for side, name in (("cp", "cp"), ("import", "import")):
        low, high = r["range"][side]
        seconds = r["seconds"][side]
        lines.append(f"{name:<10}{seconds:>10.3f}{r['bytes'] / seconds / 1e9:>10.2f}{f'{low:.3f} to {high:.3f}':>20}")
    ratio = r["ratio"]
    return "\n".join(
        [
            f"{r['parameters']:,} parameters, {r['bytes'] / 2**30:.2f} GiB in {r['files']} files; "
            f"{r['cpus']} CPUs, load {r['load_at_start']:.1f} at the start",
            "",
            *lines,
            "",
            f"ratio {ratio['median']:.2f} (time of cp / of the import; {ratio['min']:.2f} to {ratio['max']:.2f} "
            f"in {r['rounds']} paired rounds)",
            f"peak memory beyond the placed arrays {r['peak_bytes'] / 2**20:,.0f} MiB, "
            f"bound {r['bound_bytes'] / 2**20:,.0f} MiB (twice the largest weight)",
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
