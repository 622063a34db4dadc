"""Tuning, with reasons: remat policies, block sizes, compiler options.

The figures are the TPU compiler's own estimates (`python -m jaxvlm.plan`) of LLaVA-1.5-7B's finetune, on v5e-16 with 4
rows a chip where no other slice is named; docs/performance.md has them in order. A recipe sets the first of the three
in `model.remat`, and more compiler options in a stage's `compiler_options`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import Mesh

from jaxvlm.errors import UserError, did_you_mean

# What the forward pass of a block saves (`config.model.remat`), largest first; the backward pass recomputes the rest.
# On a CPU "dots" is the fastest: storing all results takes longer than recomputing the cheap ones.
POLICIES: dict[str, Callable[..., Any]] = {
    "none": checkpoint_policies.everything_saveable,  # everything but the inside of attention
    # The results of projections (with their adapters', not those inside an adapter) and of attention. A norm's
    # "statistic", its input's mean square, is a number a position, and saves reading the input once more.
    # For a row at a time: LoRA on v5e-8 in 12.5 GiB, a sixth faster than "full" with 8 rows at once in 13.5.
    "dots": checkpoint_policies.save_only_these_names("projection", "attention", "statistic"),
    # What goes into attention, ready for it, and what comes out. 13B on v5e-64, a row a chip: 53 % MFU in 8.6 GiB.
    "attention": checkpoint_policies.save_only_these_names("query", "key", "value", "attention", "statistic"),
    # 13.41 -> 14.72 GiB of 15.75; the values, 2 GiB more, would not fit.
    "query_key": checkpoint_policies.save_only_these_names("query", "key", "statistic"),
    # 11.30 -> 13.33 GiB, and 4,163 -> 4,113 Mcycles.
    "query": checkpoint_policies.save_only_these_names("query", "statistic"),
    "full": checkpoint_policies.nothing_saveable,  # a block's input
    # The same, in the memory of the chip's host: 2 GiB less, and 16 GB/s of the host's bus to wait for.
    "offload": checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def remat_policy(name: str) -> Callable[..., Any]:
    """The policy called `name`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in POLICIES:
        raise UserError(f'config.model.remat = "{name}"{did_you_mean(name, POLICIES)}; known: {", ".join(POLICIES)}')
    return POLICIES[name]


# Queries, and keys, of a block of splash attention. Thousands of cycles of a head with 2,048 positions of 128, forward
# twice and backward once (`python -m tests.benchmarks.kernels`), in blocks of 256, 512 and 1,024:
#   v5e  134.1   80.5   81.1
#   v6e  119.9   58.1   56.5   but on v6e-8 with 1,024 other operations take 23 Mcycles more, and these 13 less
#   v5p  162.3   88.0   82.7   the whole step with 1,024 was not planned
ATTENTION_BLOCK = 512

# Columns of a weight whose gradient is computed and summed over the chips at once; LLaMA's 11,008 in four. The sum that
# comes last in a block has no product left to overlap, so it should be a short one: 62 ms of waiting become 28.
GRADIENT_PIECE = 2816

# Positions of a device's rows for which logits are computed at once: enough for a full matmul, few enough that the last
# chunk is not mostly unsupervised, and that its logits (this times V float32) stay small next to the model.
LOSS_POSITIONS = 256

Options = dict[str, str]

# Of several chips.
COLLECTIVES: Options = {
    # Weights are gathered whole. By default a product becomes a loop over their shards, whose partial sums, as large as
    # the result, are added up sixteen times: half of the step.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Sums of gradients over the chips overlap the products that follow: 415 Mcycles of waiting become 135. The third is
    # the size up to which sums are combined into one; combined sums overlap nothing.
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1000000",
}

# Gathers of weights overlap the products before them. A v5e does so by itself.
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

# Of several NVIDIA GPUs: what NVIDIA's guide for large language models sets (docs.nvidia.com/jax-toolbox, "Tips for
# High-Performance LLMs with JAX and XLA"), XLA does not set by itself, and jaxlib knows from 0.10 to 0.12. The guide's
# options of pipelined collectives are gone in 0.12, and an unknown option ends the run. Not measured by us.
GPUS: Options = {
    # Gathers and sums start early and end late, with products between.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
}

# Sets of options that `plan --search` tries. For several chips:
TRIED_OF_MANY: tuple[Options, ...] = (
    # Gathers of weights and sums of gradients also overlap element-wise operations, which then take longer.
    {"xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": "true"},
)
# For any number: more of the fast memory for the running operation, less for what is fetched ahead.
TRIED_OF_EACH: tuple[Options, ...] = ({"xla_tpu_scoped_vmem_limit_kib": "65536"},)


def parse_options(text: str) -> Options:
    """The options that a recipe names: "NAME=VALUE NAME=VALUE".

    Raises:
      UserError: the text has another form.
    """
    words = text.split()
    if wrong := [word for word in words if not all(word.partition("="))]:
        raise UserError(f'compiler_options = "{text}": {", ".join(wrong)}; expected NAME=VALUE, with spaces between')
    return dict(word.lstrip("-").split("=", 1) for word in words)


_OF_GPUS = "xla_gpu_"  # how names of their options begin


def compiler_options(mesh: Mesh, more: str = "") -> Options:
    """Compiler options for a program on a mesh of TPUs or NVIDIA GPUs; none on a CPU.

    Args:
      more: a stage's `compiler_options`, which go before these. Those of another platform ("xla_gpu_..." on TPUs,
        anything else on GPUs) are left out, so that one recipe serves both.

    Returns:
      libtpu takes "true", XLA for GPUs takes "True" in this place.
    """
    given, device = parse_options(more), mesh.devices.flat[0]
    if device.platform == "tpu":
        own = {name: value for name, value in given.items() if not name.startswith(_OF_GPUS)}
        return (COLLECTIVES if mesh.size > 1 else {}) | CHIPS.get(device.device_kind, {}) | own
    if device.platform in ("gpu", "cuda"):
        own = {name: value for name, value in given.items() if name.startswith(_OF_GPUS)}
        booleans = {"true": "True", "false": "False"}
        return {name: booleans.get(value, value) for name, value in ((GPUS if mesh.size > 1 else {}) | own).items()}
    return {}
