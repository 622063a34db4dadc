"""LLaVA-1.5 7B, stage 2: projector and decoder learn to converse (arXiv:2310.03744, scripts/v1_5/finetune.sh).

    python -m jaxvlm.train --config configs/llava15_7b_finetune.py

It starts from the published encoder and decoder and from the projector of configs/llava15_7b_align.py, in
runs/llava15_7b_align; --config.init.projector=FOLDER takes another, such as one that holds mm_projector.bin and
config.json of the original.

Data, under data/: llava_v1_5_mix665k.json of liuhaotian/LLaVA-Instruct-150K on the Hugging Face hub, and its images in
the folders that it names: coco/train2017, gqa/images, ocr_vqa/images (all as .jpg), textvqa/train_images, vg/VG_100K
and vg/VG_100K_2; LLaVA's README has the place of each. Records whose image is missing stop the run, which names them;
with --config.stage.finetune.data.on_bad=skip it counts them and continues.

Add --config.model.remat=query_key on v5e-16, as docs/performance.md has it: 14.7 of 15.75 GiB, and 64 % MFU by the
compiler's estimate, which counts attention at the chip's peak; its kernels really take 1.8 times that, so expect less.

LLaVA took about 10 hours on 8 A100 of 40 GB. We have measured neither hours nor scores on TPUs yet.
Published, with greedy decoding:

    VQAv2 78.5, GQA 62.0, VizWiz 50.0, SQA 66.8, TextVQA 58.2, POPE 85.9,
    MME 1510.7, MMB 64.3, MMB-CN 58.3, SEED 58.6, LLaVA-W 65.4, MM-Vet 31.1
"""

from ml_collections import ConfigDict

from configs import llava15


def get_config() -> ConfigDict:
    """The recipe."""
    return llava15.finetune("vicuna15_7b", projector="runs/llava15_7b_align")
