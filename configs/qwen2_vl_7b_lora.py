"""Qwen2-VL 7B: adapters at the decoder's attention, and the merger.

    python -m jaxvlm.train --config configs/qwen2_vl_7b_lora.py --config.stage.finetune.data.source=data/mine.json

Rates, adapters and sizes of images: configs/qwen_vl.py.

On v5e-8 by `plan`, with micro_batches=4 and model.remat=attention: 7.5 GiB a chip, 0.62 hours for 100,000 photos of
640 x 480; on v6e-8 7.5 GiB and 0.19 hours (docs/performance.md). Nothing was measured.
"""

from ml_collections import ConfigDict

from configs import qwen_vl


def get_config() -> ConfigDict:
    """The recipe."""
    return qwen_vl.lora("qwen2_vl_7b")
