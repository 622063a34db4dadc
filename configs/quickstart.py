"""A small LLaVA from scratch on easy-VQA: 4,000 drawings of one shape, 38,575 questions about its kind and colour.

    pip install -e '.[quickstart]'
    python -m jaxvlm.train --config configs/quickstart.py

What the stages train, and why. LLaVA aligns a trained encoder with a trained decoder through the projector alone. Here
nothing is trained yet: a projector between random features and a random decoder would learn nothing, so every part
trains in both stages, the encoder at a lower rate.

  align     only the open questions ("what shape is present?"), the nearest thing to LLaVA's captions: the answers name
            what is seen, so the encoder learns shapes and colours. With yes/no questions among them from the start, two
            thirds of the loss is lowered by guessing the more frequent answer, and shapes take several times as long.
  finetune  each drawing with all its questions as one conversation, two conversations to a row: now "is there not a
            red shape?" can be learned, which takes what is seen and what is asked together.

Expect more than 99 % exact match on the 9,673 official test questions, each asked alone, after some 8 minutes of
training on two CPU cores. docs/quickstart.md has the curve, and what did not help.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The recipe."""
    c = base.get_config()
    c.model.vision.update(image_size=64, patch_size=8, embed_dim=96, mlp_dim=384, num_layers=3, num_heads=3)
    c.model.vision.feature_layer = -1  # no block is wasted: there is no contrastive head for the last one to serve
    # CLIP's mean would do, but the model learns grey and black sooner when the mean lies between them.
    c.model.vision.update(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    c.model.language.update(vocab_size=512, embed_dim=96, mlp_dim=256, num_layers=3, num_heads=3)
    # Tied: "red" as an answer about an image and "red" in a question are one vector, which helps to compare them.
    c.model.language.update(num_kv_heads=3, head_dim=32, tie_embeddings=True)
    c.model.compute_dtype = "float32"  # a CPU gains nothing from bfloat16
    c.model.remat = "dots"  # on a CPU also faster than keeping everything: 110 against 134 ms a step
    c.tokenizer.vocab_size = 512

    c.stages = ("align", "finetune")
    align, finetune = c.stage.align, c.stage.finetune = base.stage(), base.stage()
    for stage in (align, finetune):
        stage.data.heldout = 0.05
        stage.data.system = ""  # the template's 35 tokens would be a fifth of a conversation
        stage.data.augment.update(flip=True, shift=4, shuffle_turns=True)
        stage.optimizer.update(learning_rate=1e-3, weight_decay=0.05)
        stage.optimizer.groups = (("vision/.*", {"learning_rate": 3e-4}),)
        stage.eval_every = 400
        stage.eval_records = 200

    align.data.update(source="easy_vqa:train:shape+color", tokens=96, pack=False)
    align.global_batch_size = 16
    align.epochs = 5.0

    finetune.data.update(source="easy_vqa:train", tokens=336)  # 97 % full, two drawings to a row
    finetune.data.media.units = 2
    # Faster, or with b2 = 0.95, and some runs never learn to compare what is asked with what is seen.
    finetune.optimizer.learning_rate = 8e-4
    finetune.optimizer.schedule = "wsd"  # colours are learned late, by when a cosine has fallen too far
    finetune.global_batch_size = 8
    finetune.epochs = 12.0

    c.evaluation.source = "easy_vqa:test"
    c.evaluation.max_new_tokens = 4  # an answer is one token, and its end
    return c
