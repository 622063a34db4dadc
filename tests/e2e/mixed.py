"""A tiny model on three kinds of source: easy-VQA, a Parquet file of LLaMA-Factory's, prepared records."""

import os

from configs import quickstart


def get_config():
    folder = os.environ["JAXVLM_TEST_MIX"]
    c = quickstart.get_config()
    c.model.vision.update(embed_dim=24, mlp_dim=32, num_layers=1, num_heads=2)
    c.model.language.update(embed_dim=32, mlp_dim=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16)
    c.stages = ("finetune",)
    del c.stage["align"]
    data = c.stage.finetune.data
    data.source = ""
    data.mix = (
        ("easy_vqa:train", {"limit": 60}),
        (f"{folder}/dataset_info.json:chats", 2.0),
        (f"{folder}/prepared", {"weight": 0.5}),
    )
    data.heldout = 0.1
    c.stage.finetune.update({"checkpoint_every": 4, "eval_every": 0})
    c.evaluation.source = ""
    c.steps = 12
    return c
