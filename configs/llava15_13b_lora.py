"""LLaVA-1.5 13B, stage 2 with LoRA (arXiv:2310.03744, scripts/v1_5/finetune_lora.sh).

    python -m jaxvlm.train --config configs/llava15_13b_lora.py

It starts from the published encoder and decoder and from the projector of configs/llava15_13b_align.py, in
runs/llava15_13b_align; --config.init.projector=FOLDER takes another, such as one that holds mm_projector.bin and
config.json of the original.
Data as in configs/llava15_13b_finetune.py.

LLaVA's authors state that it fits 8 A100 of 40 GB or 8 A6000 and gives no hours. We have measured neither hours
nor scores on TPUs yet. Published, with greedy decoding:

    VQAv2 80.0, GQA 63.3, VizWiz 58.9, SQA 71.2, TextVQA 60.2, POPE 86.7,
    MME 1541.7, MMB 68.5, MMB-CN 61.5, SEED 61.3, LLaVA-W 69.5, MM-Vet 38.3
"""

from ml_collections import ConfigDict

from configs import llava15


def get_config() -> ConfigDict:
    """The recipe."""
    return llava15.lora("vicuna15_13b", projector="runs/llava15_13b_align")
