"""Published peaks of accelerators: what a chip could do if nothing held it up."""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxvlm.planning.slices import V5E, V5P, V6E


class Peak(NamedTuple):
    """Of one device."""

    flops: float  # bfloat16, dense, accumulated in float32, a second
    bandwidth: float  # bytes a second of its memory


# NVIDIA's datasheets of each card, dense rates (half of those "with sparsity"); TPUs: jaxvlm/planning/slices.py. The
# patterns are of jax's `device_kind`, the first match counts.
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"GB200|B200", Peak(2250e12, 8000e9)),
    (r"H200", Peak(989e12, 4800e9)),
    (r"H100.*(PCIe|NVL)", Peak(756e12, 2000e9)),
    (r"H100", Peak(989e12, 3350e9)),
    (r"A100.*80GB", Peak(312e12, 2039e9)),
    (r"A100", Peak(312e12, 1555e9)),
    (r"L40S", Peak(362e12, 864e9)),
    (r"\bL4\b", Peak(121e12, 300e9)),
    (r"\bA10G?\b", Peak(125e12, 600e9)),
    (r"RTX 5090", Peak(209.5e12, 1792e9)),
    (r"RTX 4090", Peak(165.2e12, 1008e9)),
    (r"RTX 3090", Peak(71e12, 936e9)),
    (r"TPU v5 lite", Peak(V5E.flops, V5E.hbm_bandwidth)),
    (r"TPU v6 lite", Peak(V6E.flops, V6E.hbm_bandwidth)),
    (r"TPU v5", Peak(V5P.flops, V5P.hbm_bandwidth)),
)


def find_peak(kind: str) -> Peak | None:
    """The peak of a device, by jax's name of its kind; None if it is not in the table."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, kind)), None)
