"""Engines of tiny models of three families, and what their tests ask them."""

import dataclasses
import io
import json
import threading

import jax
import numpy as np
from PIL import Image

from configs import base
from jaxvlm.config import MeshConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.families.build import build_model
from jaxvlm.families.qwen_vl.config import QwenVLConfig, QwenVLMedia
from jaxvlm.families.qwen_vl.hf_config import HF_KINDS, read_qwen
from jaxvlm.inference.engine import Engine
from jaxvlm.serving.requests import Finished, Piece
from jaxvlm.sharding import Rules, make_mesh
from tests import tiny
from tests.inference import tiny_run

TOKENS = 64
TEXTS = ("what color is it?", "say hello", "is it red?", "red blue green hello", "what? say hello, is it green?")
LONG = "is it red or green or blue? say hello, what color is it?"


def png(number, width=30, height=20):
    """The bytes of a small picture; equal arguments give equal bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def record(text, *images, earlier=()):
    """A question after earlier turns of user and model; the images come first."""
    turns = [Turn(("user", "assistant")[i % 2], said) for i, said in enumerate((*earlier, text))]
    turns[0] = dataclasses.replace(turns[0], text="<image>\n" * len(images) + turns[0].text)
    return Record(text, tuple(turns), images, "request")


def llava(folder, devices=1):
    """Image slots of nine features."""
    config = tiny.config(tiny_run.recipe(tiny_run.write_data(folder)))
    return _engine(config.model, config.stage["finetune"].data, tiny_run.tokenizer(config), devices)


def qwen(folder, devices=1):
    """Patches of images of any size, positions of three axes, and features that are added to blocks."""
    config = tiny.config(tiny_run.recipe(tiny_run.write_data(folder)))
    text = {"vocab_size": tiny_run.VOCAB, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}
    text["rope_parameters"]["mrope_interleaved"] = True
    vision = {"depth": 3, "num_heads": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"hidden_size": 36, "intermediate_size": 44, "out_hidden_size": 48}
    vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
    made = HF_KINDS["qwen3_vl"].config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    found = read_qwen(made.to_dict(), "test", None)
    own = (found.kind, found.vision, found.projector, found.tokens_per_second)
    model = QwenVLConfig("qwen_vl", found.language, "float32", "none", *own)
    data = config.stage["finetune"].data
    data = dataclasses.replace(data, media=QwenVLMedia(units=128, min_pixels=256, max_pixels=1024))
    return _engine(model, data, tiny_run.tokenizer(config), devices)


def text(folder, devices=1):
    """A decoder alone."""
    path = folder / "text.json"
    path.write_text(json.dumps([{"id": "a", "conversations": tiny_run.turns(" ".join(TEXTS), "yes")}]))
    c, stage = base.text_config(), base.text_stage()
    sizes = {"vocab_size": tiny_run.VOCAB, "embed_dim": 48, "mlp_dim": 56, "num_layers": 3, "num_heads": 6}
    c.model.language.update(sizes | {"num_kv_heads": 2, "head_dim": 10})
    c.model.compute_dtype, c.tokenizer.vocab_size = "float32", tiny_run.VOCAB
    stage.data.update(source=str(path), system="")
    c.stages, c.stage.finetune = ("finetune",), stage
    config = tiny.config(c)
    return _engine(config.model, config.stage["finetune"].data, tiny_run.tokenizer(config), devices)


def _engine(config, data, tokenizer, devices):
    model = build_model(config)
    # Larger weights than those of a new model, whose answers would all be the same.
    params = jax.jit(lambda: jax.tree.map(lambda w: 2 * w, model.init(jax.random.key(1))))()
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices, tensor=1), jax.devices()[:devices])
    return Engine(
        model, jax.device_get(params), tokenizer, dataclasses.replace(data, tokens=TOKENS), mesh, Rules()
    )  # fmt: skip


class Heard:
    """The events of one request.

    Attributes:
      first: set with the first event.
      text, tokens: of the pieces so far.
      finished: the last event.
    """

    def __init__(self):
        self.first, self._over = threading.Event(), threading.Event()
        self.text, self.tokens, self.finished = "", [], None

    def __call__(self, event):
        assert self.finished is None, "an event after the last one"
        if isinstance(event, Piece):
            self.text += event.text
            self.tokens += event.tokens
        else:
            assert isinstance(event, Finished)
            self.finished = event
            self._over.set()
        self.first.set()

    def wait(self):
        """Waits for the last event; returns the text and the reason."""
        assert self._over.wait(120), "the answer does not end"
        return self.text, self.finished.reason
