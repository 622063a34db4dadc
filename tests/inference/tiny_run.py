"""A run's folder as `train` leaves it, with random weights, and a little data set to ask it about."""

import json

import jax
import numpy as np
from PIL import Image

from jaxvlm.config import TokenizerConfig
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.text.tokenizer import load_tokenizer, training_texts
from jaxvlm.families.build import build_model
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.state import initial_state, state_layout
from tests import tiny

VOCAB = 331  # 256 bytes and special tokens need room
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210)}


def write_data(folder):
    """data.json of three records, five questions, one of them without an image; returns its path."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (30, 20), colour).save(folder / f"{name}.png")
    records = []
    for name in ("green", "blue"):
        said = turns("<image>\nwhat color is it?", name, "is it red?", "no")
        records.append({"id": name, "image": f"{name}.png", "conversations": said})
    records.append({"id": "text", "conversations": turns("say hello", "hello")})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def recipe(data, **values):
    """ConfigDict of the run: one stage, "finetune"."""
    stage = tiny.stage_recipe()
    stage.data.source = str(data)
    stage.data.tokens = 96
    stage.data.system = ""
    c = tiny.recipe(finetune=stage)
    c.model.language.vocab_size = c.tokenizer.vocab_size = VOCAB
    c.evaluation.source = str(data)
    c.evaluation.max_new_tokens = 4
    c.update(values)
    return c


def make_run(folder, config):
    """Writes the folder: config.json, tokenizer/ and a checkpoint of step 0 of the only stage."""
    (name,) = config.stages
    stage = config.stage[name]
    folder.mkdir(parents=True)
    RunFolder(folder).save_config(config)
    tokenizer(config).save_pretrained(folder / "tokenizer")
    model = build_model(config.model)
    layout = state_layout(model, stage, 1, make_mesh(config.mesh), Rules())
    state = initial_state(layout, 0, tiny.params(model))
    # Larger weights than those of a new model, whose answers would all be the same.
    state = jax.tree.map(lambda x: x * 2 if x.ndim > 1 and x.dtype == np.float32 else x, state)
    checkpoints = Checkpoints(RunFolder(folder).checkpoints(name))
    checkpoints.save(state, {}, 1)
    checkpoints.close()
    return folder


def tokenizer(config):
    data = config.stage[config.stages[0]].data
    source = load_source(data.source)
    texts = training_texts([source[i] for i in range(len(source))], data.template, data.system)
    return load_tokenizer(TokenizerConfig("train", VOCAB), list(texts))
