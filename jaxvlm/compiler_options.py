"""Options of the TPU compiler for the train step, each with the reason it is here.

The figures are the compiler's own estimates (`python -m jaxvlm.plan`) of LLaVA-1.5-7B's finetune, on v5e-16 with 4 rows
a chip where no other slice is named; docs/performance.md has them in order. Another value is tried with
`plan --option NAME=VALUE`, or on a TPU with LIBTPU_INIT_ARGS.
"""

from __future__ import annotations

from jax.sharding import Mesh

Options = dict[str, str]

# Of several chips.
COLLECTIVES: Options = {
    # Weights are gathered whole. By default a product becomes a loop over their shards, whose partial sums, as large as
    # the result, are added up sixteen times: half of the step.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Gradients are summed over the chips beside the products that follow: 415 Mcycles of waiting become 135. The third:
    # several sums that are combined into one cannot run beside anything. It is the size up to which they are.
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1000000",
}

# Weights are gathered beside the products that come before. A v5e does so by itself.
_GATHERS: Options = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}

# By `jax.Device.device_kind`.
CHIPS: dict[str, Options] = {
    # More of the 128 MiB of fast memory for the running operation, less for what is fetched ahead: larger tiles where a
    # sum or a norm follows a product; 4,574 -> 4,302 Mcycles. 64 MiB gain 0.4 % more and take twice as long to compile.
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
    # Waiting on v6e-8: 178 of 1,507 ms with 6 rows a chip -> 72 of 1,815 with 8.
    "TPU v6 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"} | _GATHERS,
    # v5p. Waiting on v5p-8: 153 of 3,965 ms with 12 rows a chip -> 73 of 4,836 with 16.
    "TPU v5": _GATHERS,
}


def compiler_options(mesh: Mesh) -> Options:
    """Options for a program on a mesh; none for other platforms."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return {}
    return (COLLECTIVES if mesh.size > 1 else {}) | CHIPS.get(device.device_kind, {})
