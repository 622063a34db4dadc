"""Fine-tunes the tiny Qwen-VL of the folder JAXVLM_TEST_FOLDER on the file JAXVLM_TEST_DATA."""

import os

from configs import qwen_vl
from jaxvlm.config_reading import to_dict
from jaxvlm.source_model import read_sources


def get_config():
    folder = os.environ["JAXVLM_TEST_FOLDER"]
    found = to_dict(read_sources([folder]).config)
    c = qwen_vl.get_base()
    c.model.update(found["model"])
    c.model.update(compute_dtype="float32", remat="full")
    c.init.model = c.tokenizer.source = folder
    stage = c.stage.sft = qwen_vl.stage()
    media = next(iter(found["stage"].values()))["data"]["media"]
    stage.data.media.update(media | {"units": 240})
    stage.data.update(source=os.environ["JAXVLM_TEST_DATA"], heldout=0.2, tokens=160, workers=0)
    stage.update(epochs=100.0, checkpoint_every=2, global_batch_size=8, micro_batches=2, eval_every=4)
    stage.update(frozen_dtype="float32", eval_records=4)
    stage.optimizer.update(learning_rate=3e-3, warmup=0.0)
    c.stages, c.steps, c.mesh.fsdp = ("sft",), 4, 1
    c.evaluation.update(source=os.environ["JAXVLM_TEST_DATA"], max_new_tokens=3)
    return c
