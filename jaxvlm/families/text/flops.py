"""A decoder alone has only the operations of the decoder; `jaxvlm/planning/flops.py` explains what is counted."""

from __future__ import annotations

from jaxvlm.config import PartsConfig
from jaxvlm.families.text.config import TextConfig
from jaxvlm.flops import Flops, Segments, Work


def media_flops(model: TextConfig, parts: PartsConfig, work: Work) -> list[Flops]:
    """None."""
    return []


def vision_positions(model: TextConfig, work: Work) -> float:
    """None."""
    return 0.0


def vision_segments(model: TextConfig, work: Work) -> list[Segments]:
    """None."""
    return []
