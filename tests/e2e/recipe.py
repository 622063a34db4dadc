"""A recipe of two stages over a LLaVA file of coloured squares, small enough to run in seconds."""

import os

from tests import tiny


def get_config():
    align, finetune = tiny.stage_recipe(), tiny.stage_recipe()
    for stage in (align, finetune):
        stage.data.source = os.environ["JAXVLM_TEST_DATA"]
        stage.data.heldout = 0.2
        stage.data.system = ""
        stage.data.tokens = 48
        stage.data.media.units = 3
        stage.data.augment.update(flip=True, shift=2, shuffle_turns=True)
        stage.global_batch_size = 8
        stage.micro_batches = 4
        stage.epochs = 2.0
        stage.eval_every = 8
        stage.checkpoint_every = 6
    finetune.parts.vision = "frozen"
    c = tiny.recipe(align=align, finetune=finetune)
    c.model.language.vocab_size = 340
    c.tokenizer.vocab_size = 340
    c.mesh.fsdp = 1
    c.evaluation.source = os.environ["JAXVLM_TEST_DATA"]
    c.evaluation.max_new_tokens = 3
    return c
