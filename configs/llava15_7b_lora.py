"""LLaVA-1.5 7B, stage 2 with LoRA (arXiv:2310.03744, scripts/v1_5/finetune_lora.sh).

    python -m jaxvlm.train --config configs/llava15_7b_lora.py

It starts from the published encoder and decoder and from the projector of configs/llava15_7b_align.py, in
runs/llava15_7b_align; --config.init.projector=FOLDER takes another, such as one that holds mm_projector.bin and
config.json of the original.
Data as in configs/llava15_7b_finetune.py.

Add --config.stage.finetune.micro_batches=8 --config.model.remat=dots on v5e-8 (16 on v5e-4): a row at a time, as
docs/performance.md has it, in less memory and a sixth less time by the compiler's estimate.

LLaVA's authors state that it fits 8 RTX 3090 and gives no hours. We have measured neither hours nor scores on TPUs yet.
Published, with greedy decoding:

    VQAv2 79.1, GQA 63.0, VizWiz 47.8, SQA 68.4, TextVQA 58.2, POPE 86.4,
    MME 1476.9, MMB 66.1, MMB-CN 58.9, SEED 60.1, LLaVA-W 67.9, MM-Vet 30.2
"""

from ml_collections import ConfigDict

from configs import llava15


def get_config() -> ConfigDict:
    """The recipe."""
    return llava15.lora("vicuna15_7b", projector="runs/llava15_7b_align")
