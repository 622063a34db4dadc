"""Qwen2.5-VL 7B: merger and decoder train, the encoder is frozen.

    python -m jaxvlm.train --config configs/qwen25_vl_7b.py --config.stage.finetune.data.source=data/mine.json

Rates, adapters and sizes of images: configs/qwen_vl.py.
"""

from ml_collections import ConfigDict

from configs import qwen_vl


def get_config() -> ConfigDict:
    """The recipe."""
    return qwen_vl.finetune("qwen25_vl_7b")
