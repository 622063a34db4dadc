"""Qwen2.5-VL 7B: merger and decoder train, the encoder is frozen.

    python -m jaxvlm.train --config configs/qwen25_vl_7b.py --config.stage.finetune.data.source=data/mine.json

Rates, adapters and sizes of images: configs/qwen_vl.py.

On v5e-16 by `plan`: 13.1 GiB a chip, 0.36 hours for 100,000 photos of 640 x 480 (docs/performance.md). Nothing was
measured.
"""

from ml_collections import ConfigDict

from configs import qwen_vl


def get_config() -> ConfigDict:
    """The recipe."""
    return qwen_vl.finetune("qwen25_vl_7b")
