"""How long the splash attention kernels take with blocks of different sizes, by what the TPU compiler schedules.

  python -m tests.benchmarks.kernels
  python -m tests.benchmarks.kernels --positions 4096 --samples 5
  python -m tests.benchmarks.kernels --chip v6e-1 --positions 640 --head-dim 64 --full

No TPU is needed. A kernel is compiled to bundles of instructions, of which a core begins one in each cycle unless it
waits for memory; so bundles of a block, times the blocks that are computed, are the cycles of a head. "peak" is the
share of them that the kernel's products alone would take. Plans (`python -m jaxvlm.plan`) count the products only.

Computed are the blocks that a causal mask leaves and, with `--samples`, those within that many equal samples. They are
known only at run time: the schedule is that of one computed block, and visits to skipped ones count as nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of matrices, in each kernel


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e-1", help="a slice, of which one chip counts (default: %(default)s)")
    parser.add_argument("--positions", type=int, default=2048, metavar="T", help="of a row (default: %(default)s)")
    parser.add_argument("--head-dim", type=int, default=128, metavar="H", help="default: %(default)s")
    parser.add_argument("--full", action="store_true", help="all pairs, as in an encoder, in place of causal ones")
    parser.add_argument("--samples", type=int, metavar="N", help="that share a row: skip blocks between them")
    parser.add_argument("--blocks", type=int, nargs="+", metavar="SIZE", help="default: all from 256 that divide T")
    parser.add_argument("--json", action="store_true", help="print one machine-readable last line")
    args = parser.parse_args(argv)
    T = args.positions
    sizes = args.blocks or [size for size in range(256, T + 1, 128) if T % size == 0]
    if wrong := [size for size in sizes if T % size or size % 128]:
        parser.error(f"--blocks {wrong}: multiples of 128 that divide {T}")
    results = []
    print(f"{args.chip}, {T} positions, heads of {args.head_dim}: thousands of cycles of a head, and share of the peak")
    print("queries x keys          fwd           dq          dkv   forward twice, backward once")
    with tempfile.TemporaryDirectory() as dump:
        what = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{what} --xla_jf_dump_llo_pass_label_regex=final_bundles"
        for size in sizes:
            result = measure(args.chip, T, args.head_dim, not args.full, size, Path(dump), args.samples)
            results.append(result)
            cells = [f"{result['cycles'][k] / 1e3:6.1f} {result['share_of_peak'][k]:5.0%}" for k in PRODUCTS]
            print(f"{size:7} x {size:<4} {'  '.join(cells)}  {result['cycles_of_a_step'] / 1e3:8.1f}", flush=True)
    if args.json:
        print(json.dumps(results))
    return results


def measure(
    chip: str, T: int, H: int, causal: bool, size: int, dump: Path, samples: int | None = None
) -> dict[str, Any]:
    """Compiles the three kernels with square blocks of `size` for one head of one row.

    Args:
      samples: of equal length in the row, between which blocks are skipped; None: the kernels with a static mask.
    """
    import jax  # libtpu reads its arguments when it is loaded
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    from jaxvlm.models.attention import splash_kernel
    from jaxvlm.models.block_mask import computed_blocks
    from jaxvlm.models.packed_attention import attend_blocks
    from jaxvlm.planning.compiler import use_tpu_compiler
    from jaxvlm.planning.slices import find_slice

    use_tpu_compiler()
    on = find_slice(chip)
    place = jax.sharding.SingleDeviceSharding(on.devices()[0])
    kernel = splash_kernel(1, T, causal, False, size)
    x = jax.ShapeDtypeStruct((1, T, H), jnp.bfloat16, sharding=place)
    ids = jax.ShapeDtypeStruct((T,), jnp.int32, sharding=place)

    def total(q, k, v, ids):
        if samples:
            y = attend_blocks(q[None], k[None], v[None], ids[None], causal, size, False)
        else:
            y = kernel(q, k, v, SegmentIds(ids, ids))
        return y.astype(jnp.float32).sum()

    for file in dump.rglob("*bundles*"):
        file.unlink()
    jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x, ids).compile()
    bundles = {}
    for file in dump.glob("*schedule-analysis_final_bundles.txt"):
        if name := re.search(r"(?:splash|packed)_[a-z]+_(fwd|dq|dkv)", file.name):
            count = re.search(r"total scheduled bundles:\s+(\d+)", file.read_text())
            assert count, file
            bundles[name[1]] = int(count[1])
    samples = samples or 1
    blocks = round(computed_blocks([T / samples] * samples, T, size, causal=causal) * (T // size) ** 2)
    cycles = {name: bundles[name] * blocks for name in PRODUCTS}
    flops = 2 * T**2 * H * (0.5 if causal else 1) / samples
    peak = on.chip.flops / on.chip.clock
    return {
        "block": size,
        "blocks": blocks,
        "cycles": cycles,
        "share_of_peak": {name: n * flops / peak / cycles[name] for name, n in PRODUCTS.items()},
        "cycles_of_a_step": cycles["fwd"] + sum(cycles.values()),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
