"""Trains the toy family on pictures of many sizes; JAXVLM_TEST_DATA names the LLaVA file."""

import os

from ml_collections import ConfigDict

from tests import tiny


def get_config():
    stage = tiny.stage_recipe()
    stage.data.update(source=os.environ["JAXVLM_TEST_DATA"], heldout=0.2, system="", tokens=64)
    stage.data.media = ConfigDict({"units": 40})
    stage.data.augment.flip = True
    stage.update(epochs=100.0, checkpoint_every=3, global_batch_size=16, micro_batches=2, eval_every=6)
    stage.optimizer.learning_rate = 3e-3
    c = tiny.recipe(only=stage)
    language = c.model.language
    language.update(vocab_size=340, rope_axes=(0, 1, 2, 1, 0))
    options = {"compute_dtype": "float32", "remat": "full", "encoder_dim": 24}
    c.model = ConfigDict({"family": "tests.toy_family", "language": language} | options)
    c.tokenizer.vocab_size = 340
    c.steps = 6
    c.mesh.data, c.mesh.fsdp = 4, 2
    c.evaluation.update(source=os.environ["JAXVLM_TEST_DATA"], max_new_tokens=3)
    return c
