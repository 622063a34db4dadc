"""Qwen2-VL 2B: adapters at the decoder's attention, and the merger.

    python -m jaxvlm.train --config configs/qwen2_vl_2b_lora.py --config.stage.finetune.data.source=data/mine.json

Rates, adapters and sizes of images: configs/qwen_vl.py.

On v5e-8 by `plan`, with micro_batches=4 and model.remat=attention: 3.3 GiB a chip, 0.21 hours for 100,000 photos of
640 x 480 (docs/performance.md). Nothing was measured.
"""

from ml_collections import ConfigDict

from configs import qwen_vl


def get_config() -> ConfigDict:
    """The recipe."""
    return qwen_vl.lora("qwen2_vl_2b")
