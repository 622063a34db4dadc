"""A tiny model in which every axis has another size, so that a transposed weight cannot pass."""

import math

import numpy as np

from configs import base
from jaxvlm.batch import Batch
from jaxvlm.config import Config, StageConfig
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.families.registry import resolve
from jaxvlm.trees import map_paths

LAYOUT = ImageSlots(image_size=21, features=9, pad_colour=(122, 116, 104), aspect="pad")


def recipe(**stages):
    """A ConfigDict of the tiny model with the given stages, `name=ConfigDict`."""
    c = base.get_config()
    vision = {"image_size": 21, "patch_size": 7, "embed_dim": 36, "mlp_dim": 44, "num_layers": 4, "num_heads": 3}
    c.model.vision.update(vision)
    language = {"vocab_size": 101, "embed_dim": 48, "mlp_dim": 56, "num_layers": 3, "num_heads": 6}
    c.model.language.update(language | {"num_kv_heads": 2, "head_dim": 10})
    c.model.compute_dtype = "float32"
    c.stages = tuple(stages)
    for name, stage in stages.items():
        c.stage[name] = stage
    return c


def config(c) -> Config:
    """The frozen dataclass of a recipe."""
    return resolve(c.to_dict())


def stage_recipe():
    """A stage that trains everything at a rate that shows in three steps."""
    stage = base.stage()
    stage.optimizer.learning_rate = 1e-2
    stage.optimizer.weight_decay = 0.1
    stage.optimizer.warmup = 0.0
    stage.frozen_dtype = "float32"
    stage.global_batch_size = 8
    return stage


def stage(**values) -> StageConfig:
    """The dataclass of `stage_recipe` with some values changed."""
    changed = stage_recipe()
    changed.update(values)
    return config(recipe(only=changed)).stage["only"]


def batch_spec(rows=8, tokens=31, images=2) -> Batch:
    """The abstract batch of the tiny model."""
    return Batch.spec(rows=rows, tokens=tokens, media=LAYOUT.spec(rows, images))


def batch(rows=8, tokens=31, images=2, seed=0) -> Batch:
    """A NumPy batch for the tiny model, with rows of different supervision."""
    spec = batch_spec(rows, tokens, images)
    made = Batch.fake(spec, vocab_size=101, features=9 * images, seed=seed)
    for row in range(rows):
        made.loss_weights[row, : 24 + row % 3] = 0.0
    return made


def params(model, seed=0):
    """Random float32 weights of a model, drawn by NumPy: the program of `Model.init` takes seconds to compile."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith("/scale"):
            return np.ones(leaf.shape, np.float32)
        own = leaf.shape["/blocks/" in path :]
        is_split = len(own) == 3 and not path.endswith("/out/w")  # such as q: from embed_dim to heads
        fan_in = own[0] if is_split else math.prod(own[:-1])
        noise = random.standard_normal(leaf.shape, dtype=np.float32) / np.float32(math.sqrt(fan_in))
        return 0 * noise if path.endswith("/bias") else noise

    return map_paths(draw, model.abstract)
