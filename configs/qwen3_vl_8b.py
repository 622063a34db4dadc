"""Qwen3-VL 8B: merger and decoder train, the encoder is frozen.

    python -m jaxvlm.train --config configs/qwen3_vl_8b.py --config.stage.finetune.data.source=data/mine.json

Rates, adapters and sizes of images: configs/qwen_vl.py.

On v5e-16 by `plan`: 14.7 GiB a chip, 0.30 hours for 100,000 photos of 640 x 480 (docs/performance.md). Nothing was
measured.
"""

from ml_collections import ConfigDict

from configs import qwen_vl


def get_config() -> ConfigDict:
    """The recipe."""
    return qwen_vl.finetune("qwen3_vl_8b")
