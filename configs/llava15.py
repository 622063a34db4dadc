"""What the recipes of LLaVA-1.5 (arXiv:2310.03744) share; each of configs/llava15_*.py is one script of LLaVA.

Source: the original's scripts/v1_5 (pretrain.sh, finetune.sh, finetune_lora.sh) and llava/train/train.py. What
configs/base.py has already (AdamW, cosine to 0, warm-up 0.03, no decay, clipping at 1, bfloat16, seed 42, one epoch,
vicuna_v1, 2048 tokens) is LLaVA's too and not repeated here; tests/test_recipes.py holds all of it against LLaVA's.

Where we differ on purpose:
  rows     LLaVA pads each sample to the longest of its batch and groups samples by length and by whether they have an
           image. Here rows have one size; captions have short rows of their own, conversations share long ones.
  loss     LLaVA takes the mean of each device's supervised tokens, then the mean over devices. Here all supervised
           tokens of a step weigh the same.
  labels   LLaVA drops the labels of a sample whose tokens it counts wrongly ("tokenization mismatch"). Here none is.
  master   LLaVA keeps the base weights in bfloat16 before it trains them. Here trained weights start from the published
           ones, in float32; only frozen ones are bfloat16.
"""

from ml_collections import ConfigDict

from configs import base
from jaxvlm.models import variants

_VISION = "openai/clip-vit-large-patch14-336"
_LANGUAGE = {"vicuna15_7b": "lmsys/vicuna-7b-v1.5", "vicuna15_13b": "lmsys/vicuna-13b-v1.5"}


def align(decoder: str) -> ConfigDict:
    """Stage 1: captions train the projector between a frozen encoder and a frozen decoder.

    Args:
      decoder: "vicuna15_7b" or "vicuna15_13b", a name in jaxvlm/models/variants.py.
    """
    c = _model(decoder)
    c.stages = ("align",)
    stage = c.stage.align = base.stage()
    stage.parts.update(vision="frozen", language="frozen")
    stage.data.update(source="data/blip_laion_cc_sbu_558k.json", image_folder="data/blip_laion_cc_sbu_558k")
    stage.data.update(template="plain", workers=4)
    stage.data.media.aspect = "square"
    # A caption takes <s>, 576 image features and its own text, so 768 leave room for 191 tokens of text; what is longer
    # is truncated, and counted in the ledger. Not packed: a row of 2048 would hold three of them, 683 positions each,
    # so packing could save a ninth of the tokens at most, and a step would not be LLaVA's 256 samples any more.
    stage.data.update(tokens=768, pack=False)
    stage.global_batch_size = 256  # rows, each of one sample: LLaVA's 32 x 8, 2,181 steps
    stage.optimizer.learning_rate = 1e-3
    return c


def finetune(decoder: str, projector: str) -> ConfigDict:
    """Stage 2: conversations train the projector and the whole decoder.

    Args:
      decoder: as in `align`.
      projector: what it starts from: the folder of an align run, or one with LLaVA's mm_projector.bin.
    """
    c = _model(decoder)
    # As LLaVA, which loads Vicuna and mm_projector.bin here. The align run as `init.model` would give the same encoder
    # and decoder, but rounded to bfloat16, in which it has kept them.
    c.init.projector = projector
    c.stages = ("finetune",)
    stage = c.stage.finetune = base.stage()
    stage.parts.vision = "frozen"
    stage.data.update(source="data/llava_v1_5_mix665k.json", image_folder="data", workers=4)
    # An image sample takes 611 positions and its text (35 before the image, 576 for it), so no row holds four of them.
    stage.data.media.units = 3
    # Rows, where LLaVA counts 128 samples. On lengths like those of the 665k mix (python -m tests.benchmarks.packing) a
    # row holds 2.05 samples, so 64 rows are 131 of them and an epoch has 5,066 steps where LLaVA's has 5,198; what your
    # copy of the data makes of it says `inspect_data check`. 88 % of the positions are used, and no packer gets above
    # 89 % with 2,048: three image samples leave 215 tokens for the text of all, two waste the rest. tokens=2304 with 48
    # rows (123 samples) fills 98 %; then text is cut at 2,304, where LLaVA cuts at 2,048. LLaVA's batch exactly is
    # pack=False, media.units=1 and 128 rows, two thirds of whose positions may be padding.
    stage.global_batch_size = 64
    stage.optimizer.learning_rate = 2e-5
    return c


def lora(decoder: str, projector: str) -> ConfigDict:
    """Stage 2 with adapters at every linear layer of the decoder's blocks; the projector trains as in `finetune`."""
    c = finetune(decoder, projector)
    stage = c.stage.finetune
    stage.parts.language = "lora"
    stage.parts.lora.language.update(rank=128, alpha=256.0, dropout=0.05)
    stage.optimizer.learning_rate = 2e-4
    stage.optimizer.groups = (("projector/.*", {"learning_rate": 2e-5}),)  # LLaVA's mm_projector_lr
    return c


def _model(decoder: str) -> ConfigDict:
    c = base.get_config()
    c.model.vision.update(variants.vision("clip_l14_336"))  # its feature layer is -2, LLaVA's choice
    c.model.language.update(variants.language(decoder))
    c.init.vision = _VISION
    c.init.language = c.tokenizer.source = _LANGUAGE[decoder]
    return c
