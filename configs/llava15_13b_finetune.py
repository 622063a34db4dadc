"""LLaVA-1.5 13B, stage 2: projector and decoder learn to converse (arXiv:2310.03744, scripts/v1_5/finetune.sh).

    python -m jaxvlm.train --config configs/llava15_13b_finetune.py

It starts from the published encoder and decoder and from the projector of configs/llava15_13b_align.py, in
runs/llava15_13b_align; --config.init.projector=FOLDER takes another, such as one that holds mm_projector.bin and
config.json of the original.

Data, under data/: llava_v1_5_mix665k.json of liuhaotian/LLaVA-Instruct-150K on the Hugging Face hub, and its images in
the folders that it names: coco/train2017, gqa/images, ocr_vqa/images (all as .jpg), textvqa/train_images, vg/VG_100K
and vg/VG_100K_2; LLaVA's README has the place of each. Records whose image is missing stop the run, which names them;
with --config.stage.finetune.data.on_bad=skip it counts them and continues.

LLaVA took about 20 hours on 8 A100 of 80 GB. We have measured neither hours nor scores on TPUs yet.
Published, with greedy decoding:

    VQAv2 80.0, GQA 63.3, VizWiz 53.6, SQA 71.6, TextVQA 61.3, POPE 85.9,
    MME 1531.3, MMB 67.7, MMB-CN 63.6, SEED 61.6, LLaVA-W 72.5, MM-Vet 36.1
"""

from ml_collections import ConfigDict

from configs import llava15


def get_config() -> ConfigDict:
    """The recipe."""
    return llava15.finetune("vicuna15_13b", projector="runs/llava15_13b_align")
