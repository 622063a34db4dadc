"""LLaVA-1.5 7B, stage 1: captions align the projector (arXiv:2310.03744, scripts/v1_5/pretrain.sh).

    python -m jaxvlm.train --config configs/llava15_7b_align.py

Data, under data/: blip_laion_cc_sbu_558k.json of liuhaotian/LLaVA-Pretrain on the Hugging Face hub, and the images.zip
next to it, unpacked into data/blip_laion_cc_sbu_558k; others with --config.stage.align.data.source and .image_folder.

LLaVA took 3.5 hours on 8 A100. We have measured neither hours nor scores on TPUs yet. No score is published for
this stage; configs/llava15_7b_finetune.py continues from it and lists the scores to expect.
"""

from ml_collections import ConfigDict

from configs import llava15


def get_config() -> ConfigDict:
    """The recipe."""
    return llava15.align("vicuna15_7b")
