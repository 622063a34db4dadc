"""The folder of a decoder alone: that of `weights/hf/decoder.py`, with adapters."""

from __future__ import annotations

import dataclasses
import functools

from jaxvlm.families.text.config import TextConfig
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.hf import decoder
from jaxvlm.weights.spelling import Spelling


def _rules(config: TextConfig, spelling: Spelling) -> tuple:
    return decoder.decoder_rules(config.language, spelling)


def adapter_names(config: TextConfig) -> AdapterNames:
    """Module names of adapters of a `...ForCausalLM`."""
    return AdapterNames(
        decoder.ALONE,
        functools.partial(_rules, config),
        {},
        module=r"(?P<vision>(?!))?(model\.|language_model\.)*layers\.(?P<layer>\d+)\.(?P<name>.+)",
        known=decoder.KNOWN,
        projector=(),
    )


CODEC = dataclasses.replace(decoder.CODEC, name="text", adapters=adapter_names)
