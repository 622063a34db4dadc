"""Small real files: images, LLaVA records about them, and a tokenizer trained on what they say."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from jaxvlm.config import AugmentConfig, DataConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.data.text.gguf_tokenizer import gguf_tokenizer
from jaxvlm.data.text.tokenizer import train_tokenizer, training_texts
from jaxvlm.families.llava.config import LlavaMedia
from tests.smollm2 import smollm2_file

WORDS = ["what", "is", "the", "red", "circle", "left", "of", "a", "big", "blue", "square", "and", "two", "dots"]


def conversation(*texts):
    """Turns of a LLaVA record, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def data_config(source, **changes):
    values = {
        "source": str(source),
        "mix": (),
        "image_folder": "",
        "allow_outside": False,
        "answers": "all",
        "heldout": 0.0,
        "template": "vicuna_v1",
        "system": "",
        "media": LlavaMedia(units=changes.pop("images", 2), aspect=changes.pop("aspect", "pad")),
        "tokens": 64,
        "pack": True,
        "augment": AugmentConfig(flip=False, shift=0, shuffle_turns=False),
        "on_bad": "fail",
        "workers": 0,
    }
    return DataConfig(**(values | changes))


def write_records(folder, count, rounds=3, seed=0):
    """A LLaVA file of `count` records, one in five without an image, and its images of several sizes."""
    chance = random.Random(seed)

    def log():
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 4)))

    records = []
    for i in range(count):
        texts = [log() for _ in range(2 * chance.randint(1, rounds))]
        record = {"id": f"record-{i}", "conversations": conversation(*texts)}
        if i % 5:
            name = f"{i}.png"
            pixels = np.random.default_rng(i).integers(0, 256, (7 + i % 4, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            record["image"] = name
            record["conversations"][0]["value"] = f"<image>\n{texts[0]}"
        records.append(record)
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="session")
def tokenizer():
    turns = tuple(Turn(("user", "assistant")[i % 2], " ".join(WORDS)) for i in range(4))
    records = [Record("a", turns, (), "a")] * 3
    return train_tokenizer(training_texts(records, "vicuna_v1", ""), 400)


@pytest.fixture(scope="session")
def smollm2():
    """The tokenizer of real weights; byte-level."""
    return gguf_tokenizer(smollm2_file())
