"""The decoder of small.py alone; for runs that are killed, stopped and damaged, whatever they train on."""

import os

from configs import base


def get_config():
    c, stage = base.text_config(), base.text_stage()
    stage.data.source = os.environ["JAXVLM_TEST_TEXT"]
    stage.data.heldout = 0.1
    stage.data.system = ""
    stage.data.tokens = 48
    stage.global_batch_size = 8
    stage.epochs = 100.0
    stage.checkpoint_every = 5
    stage.frozen_dtype = "float32"
    stage.optimizer.update({"learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.0})
    c.model.language.update({"embed_dim": 32, "mlp_dim": 56, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2})
    c.model.language.head_dim = 10
    c.model.language.vocab_size = 4000  # an embedding of 512 KB, which the file size limit of test_damage.py is below
    c.model.compute_dtype = "float32"
    c.tokenizer.vocab_size = 340
    c.stages, c.stage.only = ("only",), stage
    c.steps = 20
    return c
