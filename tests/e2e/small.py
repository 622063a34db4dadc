"""A recipe of one stage of 20 steps whose sizes four devices divide; small_text.py has its decoder alone."""

import os

from tests import tiny


def get_config():
    stage = tiny.stage_recipe()
    stage.data.source = os.environ["JAXVLM_TEST_DATA"]
    stage.data.heldout = 0.1
    stage.data.system = ""
    stage.data.tokens = 48
    stage.data.media.units = 3
    stage.global_batch_size = 8
    stage.epochs = 100.0
    stage.checkpoint_every = 5
    stage.optimizer.learning_rate = 1e-3
    c = tiny.recipe(only=stage)
    c.model.vision.update({"embed_dim": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2})
    c.model.language.update({"embed_dim": 32, "mlp_dim": 56, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2})
    c.model.language.vocab_size = 4000
    c.tokenizer.vocab_size = 340
    c.steps = 20
    return c
