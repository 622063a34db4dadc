"""Which axis of a position (time, row, column) turns which rotary frequency."""

from __future__ import annotations

AXES = 3  # of mrope_section


def rope_axes(section: tuple[int, ...], *, interleaved: bool) -> tuple[int, ...]:
    """For each rotary frequency the axis of the position that turns it.

    Args:
      section: how many frequencies time, row and column turn; their sum is half a head.
      interleaved: Qwen3-VL's t h w t h w ... t t t; else Qwen2-VL's chunks t ... h ... w ...

    Source: HF modeling_qwen2_vl.py, `apply_multimodal_rotary_pos_emb`; modeling_qwen3_vl.py, `apply_interleaved_mrope`.
    """
    if not interleaved:
        return tuple(axis for axis, count in enumerate(section) for _ in range(count))
    axes = [0] * sum(section)
    for axis in (1, 2):
        for at in range(axis, AXES * section[axis], AXES):
            axes[at] = axis
    return tuple(axes)


def section_of(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The `mrope_section` of `rope_axes`: how many frequencies each axis turns."""
    return tuple(axes.count(axis) for axis in range(AXES))
