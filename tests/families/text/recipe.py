"""A tiny decoder alone, on conversations without images; JAXVLM_TEST_DATA names the file."""

import os

from configs import base


def get_config():
    c, stage = base.text_config(), base.text_stage()
    sizes = {"vocab_size": 340, "embed_dim": 48, "mlp_dim": 56, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2}
    c.model.language.update(sizes | {"head_dim": 10})
    c.model.compute_dtype, stage.frozen_dtype = "float32", "float32"
    c.tokenizer.vocab_size = 340
    stage.data.update(source=os.environ["JAXVLM_TEST_DATA"], heldout=0.2, system="", tokens=48)
    stage.update(epochs=100.0, checkpoint_every=3, global_batch_size=8, micro_batches=2, eval_every=6)
    stage.optimizer.update(learning_rate=3e-3, warmup=0.0)
    c.stages, c.stage.sft, c.steps = ("sft",), stage, 6
    c.mesh.fsdp = 1
    c.evaluation.update(source=os.environ["JAXVLM_TEST_DATA"], max_new_tokens=3)
    return c
