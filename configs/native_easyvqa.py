"""A small Qwen2-VL from scratch on easy-VQA, with drawings at random places of canvases of random sizes.

    pip install -e '.[quickstart]'
    python -m jaxvlm.train --config configs/native_easyvqa.py

Each 64 x 64 drawing of easy-VQA is pasted at a random place on a canvas of its background colour, of 64 x 64 to
160 x 96 pixels in any shape between. A model for images of one size would squeeze or pad them; here an image has as
many patches as its size asks for, and several share a row. The recipe writes the canvases, the same ones each time, to
runs/native_easyvqa_data: three of each of the 4,000 drawings to train on, and one of each of the 1,000 of the official
test with its 9,673 questions.

The stages are those of configs/quickstart.py, which says why: first the open questions, then all of them.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from configs import quickstart, qwen_vl
from jaxvlm.data.records import Record
from jaxvlm.data.sources.easy_vqa import EasyVqa
from jaxvlm.families.qwen_vl.hf_config import rope_axes

FOLDER = Path("runs/native_easyvqa_data")
CANVASES = {"train": 3, "test": 1}  # of each drawing: where a shape stands is learned from many places


def paste(drawing: Image.Image, choose: random.Random) -> Image.Image:
    """The drawing on a larger canvas of its background colour, which is that of its corner."""
    width, height = choose.randint(drawing.width, 160), choose.randint(drawing.height, 96)
    canvas = Image.new("RGB", (width, height), drawing.getpixel((0, 0)))
    canvas.paste(drawing, (choose.randint(0, width - drawing.width), choose.randint(0, height - drawing.height)))
    return canvas


def _line(record: Record, image: str) -> str:
    """A record in LLaVA's form."""
    roles = {"user": "human", "assistant": "gpt"}
    turns = [{"from": roles[turn.role], "value": turn.text} for turn in record.turns]
    return json.dumps({"id": f"{image} {record.id}", "image": image, "conversations": turns, "category": record.group})


def write_data() -> None:
    """Writes canvases, train.jsonl, open.jsonl (what shape? what color?) and test.jsonl, if they are not there."""
    done = FOLDER / "done"
    if done.exists() and done.read_text() == str(CANVASES):
        return
    for split, canvases in CANVASES.items():
        (FOLDER / split).mkdir(parents=True, exist_ok=True)
        drawings = EasyVqa(f"easy_vqa:{split}")
        for number, canvas in itertools.product(range(len(drawings)), range(canvases)):
            with Image.open(drawings[number].images[0]) as drawing:
                pasted = paste(drawing.convert("RGB"), random.Random(f"{split}{number}.{canvas}"))
            pasted.save(FOLDER / _name(split, number, canvas))
    _write_lines("train", "train", lambda source, record: [record])
    _write_lines("train:shape+color", "open", lambda source, record: [record])
    _write_lines("test", "test", lambda source, record: source.questions(record))
    done.write_text(str(CANVASES))


def _name(split: str, number: int, canvas: int) -> str:
    return f"{split}/{number}_{canvas}.png"


def _write_lines(spec: str, name: str, ask: Callable[[EasyVqa, Record], Iterable[Record]]) -> None:
    """Writes the records that `ask` makes of each drawing, once for each of its canvases."""
    source, split = EasyVqa(f"easy_vqa:{spec}"), spec.partition(":")[0]
    lines = [
        _line(record, _name(split, number, canvas))
        for number in range(len(source))
        for canvas in range(CANVASES[split])
        for record in ask(source, source[number])
    ]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def get_config() -> ConfigDict:
    """The recipe."""
    write_data()
    c = qwen_vl.get_base()
    small = quickstart.get_config()
    c.model.language.update(small.model.language)
    c.model.language.update(architecture="qwen2", qkv_bias=True, rope_axes=rope_axes((4, 6, 6), interleaved=False))
    c.model.vision.update(embed_dim=96, mlp_dim=384, num_layers=3, num_heads=3, patch_size=8)
    c.model.vision.update(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    c.model.update(compute_dtype="float32", remat="dots")
    c.tokenizer.vocab_size = 512

    c.stages = ("align", "finetune")
    for name in c.stages:
        stage = c.stage[name] = qwen_vl.stage()
        stage.data.update(heldout=0.05, template="chatml", system="", workers=0)
        stage.data.media.update(min_pixels=32**2, max_pixels=160 * 96)
        stage.data.augment.update(flip=True, shuffle_turns=True)
        stage.optimizer.update(learning_rate=1e-3, weight_decay=0.05)
        stage.optimizer.groups = (("vision/.*", {"learning_rate": 3e-4}),)
        stage.update(eval_every=400, eval_records=200)
    align, finetune = c.stage.align, c.stage.finetune
    align.data.update(source=str(FOLDER / "open.jsonl"), tokens=384)
    align.data.media.units = 384
    align.global_batch_size = 4
    align.epochs = 5.0
    finetune.data.update(source=str(FOLDER / "train.jsonl"), tokens=512)
    finetune.data.media.units = 384
    finetune.optimizer.update(learning_rate=8e-4, schedule="wsd")
    finetune.update(global_batch_size=8, epochs=12.0)
    c.evaluation.source = str(FOLDER / "test.jsonl")
    c.evaluation.max_new_tokens = 4
    return c
