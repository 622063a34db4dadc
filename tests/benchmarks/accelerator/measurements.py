"""What is measured: models, batches, and the settings that are tried in turn until one fits into memory."""

from __future__ import annotations

import dataclasses

import numpy as np

from configs import llava15
from jaxvlm.batch import Batch
from jaxvlm.config import Config, ModelConfig
from jaxvlm.data.rows.packing import Piece, expand, fill_row, plan_rows
from jaxvlm.data.sample import Sample
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.families.registry import resolve
from jaxvlm.flops import Work
from jaxvlm.media import Size
from jaxvlm.models import variants
from tests.benchmarks.packing import make_mixture

BOS, IMAGE_TOKEN, FIRST_WORD = 1, 7, 8  # ids; text is random from FIRST_WORD on
SUPERVISED = 0.4  # of the text in full rows
NEW_TOKENS = 128  # that `decode` writes after each prompt
PROMPT_TEXT = 64  # tokens of a prompt beside its image


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a step is made to fit."""

    rows: int  # of a device
    remat: str  # ours, as config.model.remat
    checkpointing: bool  # theirs

    def __str__(self) -> str:
        return f"{self.rows} rows a device" + (", each block computed twice" if self.checkpointing else "")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line or more of the table.

    Attributes:
      kinds: of a training the batches, "full" and "data"; of decoding the numbers of prompts.
      rows: of a device, most first.
      steps: packed batches that "data" has.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    rows: tuple[int, ...] = ()
    steps: int = 4

    @property
    def is_training(self) -> bool:
        """Whether steps are timed, not answers."""
        return self.name != "decode"

    @property
    def settings(self) -> list[Setting]:
        """In the order in which they are tried; each later one needs less memory."""
        return [Setting(rows, remat, remat == "full") for rows in self.rows for remat in ("dots", "full")]


MEASUREMENTS = {
    m.name: m
    for m in (  # the most telling first
        Measurement("lora", "LLaVA-1.5-7B, LoRA of rank 128 and projector", ("full", "data"), rows=(4, 2, 1)),
        Measurement("decode", "LLaVA-1.5-7B, prompts of an image and 64 tokens, answers of 128", ("1", "8", "32")),
        Measurement("finetune", "CLIP-L/336 and Qwen2.5-1.5B, whole decoder", ("full", "data"), rows=(8, 4, 2, 1)),
        Measurement("align", "LLaVA-1.5-7B, projector alone", ("full",), rows=(16, 8, 4, 2, 1)),
    )
}


def make_config(measurement: Measurement, tiny: bool) -> Config:
    """The recipe: configs/llava15.py with another decoder for "finetune"; `tiny` is that of a rehearsal on a CPU."""
    decoder = "vicuna15_7b"
    make = {"align": llava15.align, "finetune": lambda name: llava15.finetune(name, "")}
    c = make.get(measurement.name, lambda name: llava15.lora(name, ""))(decoder)
    if measurement.name == "finetune":
        c.model.language.update(variants.language("qwen25_1_5b"))
    (name,) = c.stages
    stage = c.stage[name]
    stage.optimizer.update(schedule="constant", warmup=0.0)
    if tiny:
        sizes = {"image_size": 42, "embed_dim": 36, "mlp_dim": 44, "num_layers": 3, "num_heads": 3}
        c.model.vision.update(sizes)
        sizes = {"vocab_size": 101, "embed_dim": 48, "mlp_dim": 56, "num_layers": 2, "num_heads": 6, "head_dim": 10}
        c.model.language.update(sizes | {"num_kv_heads": 2 if measurement.name == "finetune" else 6})
        c.model.compute_dtype = stage.frozen_dtype = "float32"  # torch's bfloat16 takes minutes on a CPU
        stage.data.tokens, stage.parts.lora.language.rank = 64, 3
    return resolve(c.to_dict())


def make_samples(config: Config, kind: str, count: int) -> list[Sample]:
    """Samples of random ids, the image behind the first.

    Args:
      kind: "full": each fills a row; "data": lengths, images and supervision like those of LLaVA's mixture of 665k.
    """
    (stage,) = config.stage.values()
    random, tokens = np.random.default_rng(0), stage.data.tokens
    features = config.model.vision.features_per_image
    if kind == "full":
        rest = tokens - features  # every one has an image
        lengths, images = np.full(count, tokens), np.ones(count, int)
        supervised = np.full(count, round(SUPERVISED * rest))
    else:
        mixture = make_mixture(40 * count, 2048, seed=1)
        chosen = random.permutation(len(mixture.lengths))[:count]
        images = mixture.images[chosen]
        text = (mixture.lengths[chosen] - images * 576) * tokens / 2048
        lengths = np.clip(text.astype(int), 4, tokens - images * features) + images * features
        share = mixture.supervised[chosen] / (mixture.lengths[chosen] - images * 576)
        supervised = np.maximum(1, (share * (lengths - images * features)).astype(int))
    samples = []
    for length, has_image, answer in zip(lengths, images, supervised, strict=True):
        text = int(length - has_image * features)
        ids = random.integers(FIRST_WORD, config.model.language.vocab_size, text + has_image, dtype=np.int32)
        ids[0] = BOS
        if has_image:
            ids[1] = IMAGE_TOKEN
        weights = (np.arange(len(ids)) >= len(ids) - min(answer, text - 2)).astype(np.float32)
        samples.append(Sample(ids, weights, ids == IMAGE_TOKEN))
    return samples


def make_pixels(config: ModelConfig, count: int) -> np.ndarray:
    """uint8[count, Y, X, 3]."""
    size = config.vision.image_size
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The same samples for both sides.

    Attributes:
      packed: ours.
      samples: of all batches, in the order of a run.
      pieces: the same, expanded, each with the number of its images.
    """

    packed: list[Batch]
    pieces: list[Piece]
    images: list[int]

    @property
    def tokens(self) -> int:
        """Positions without padding."""
        return sum(len(piece.tokens) for piece in self.pieces)

    def work(self, rows: int) -> Work:
        """The average work of a step of ours, for `planning.flops.model_flops`."""
        steps = len(self.packed)
        supervised = sum(float((piece.loss_weights > 0).sum()) for piece in self.pieces)
        per_row = steps * rows
        return Work(
            rows=rows,
            tokens=self.tokens / per_row,
            samples=len(self.pieces) / per_row,
            units=sum(self.images) / per_row,
            images=sum(self.images) / per_row,
            supervised=supervised / per_row,
        )


def make_batches(measurement: Measurement, config: Config, kind: str, rows: int) -> Batches:
    """Batches of `rows` rows: one of full rows, or `steps` with samples as they come, packed."""
    (stage,) = config.stage.values()
    layout = ImageSlots.of(config.model.vision, stage.data.media.aspect)
    steps = 1 if kind == "full" else measurement.steps
    budget = 1 if kind == "full" else stage.data.media.units
    samples = make_samples(config, kind, steps * rows if kind == "full" else 8 * steps * rows)
    counts = [int(sample.is_image.sum()) for sample in samples]
    pieces = [expand(sample, [Size(1, 1)] * n, layout) for sample, n in zip(samples, counts, strict=True)]
    lengths = np.array([len(piece.tokens) for piece in pieces])
    order = np.arange(len(pieces))
    planned = plan_rows(lengths, np.array(counts), order, tokens=stage.data.tokens, budget=budget, pack=kind != "full")
    planned = planned[: steps * rows]
    assert len(planned) == steps * rows, "too few samples for the rows"
    # As many image slots for both kinds: one program serves them.
    units = stage.data.media.units
    pixels = make_pixels(config.model, max(sum(counts[i] for i in row) for row in planned))
    packed = []
    for start in range(0, len(planned), rows):
        spec = Batch.spec(rows=rows, tokens=stage.data.tokens, media=layout.spec(rows, units))
        batch = Batch.empty(spec)
        for row, members in enumerate(planned[start : start + rows]):
            images = sum(counts[i] for i in members)
            fill_row(batch, row, [pieces[i] for i in members], list(pixels[:images]), layout)
        packed.append(batch)
    used = sorted(i for row in planned for i in row)
    return Batches(packed, [pieces[i] for i in used], [counts[i] for i in used])


def make_prompts(config: Config, rows: int, tiny: bool) -> Batch:
    """Rows of one prompt each: an image and text, without padding."""
    layout = ImageSlots.of(config.model.vision, "pad")
    text = 8 if tiny else PROMPT_TEXT
    random = np.random.default_rng(2)
    spec = Batch.spec(rows=rows, tokens=layout.least_positions + text, media=layout.spec(rows, 1))
    batch, pixels = Batch.empty(spec), make_pixels(config.model, 1)
    for row in range(rows):
        ids = random.integers(FIRST_WORD, config.model.language.vocab_size, text + 1, dtype=np.int32)
        ids[:2] = BOS, IMAGE_TOKEN
        sample = Sample(ids, np.zeros(len(ids), np.float32), ids == IMAGE_TOKEN)
        fill_row(batch, row, [expand(sample, [Size(1, 1)], layout)], list(pixels), layout)
    return batch


def new_tokens(tiny: bool) -> int:
    """Tokens of each answer."""
    return 12 if tiny else NEW_TOKENS


def reads_a_token(config: Config, rows: int, positions: float, itemsize: int) -> float:
    """Bytes that choosing one token for each row must read: all weights of the decoder and the rows' caches."""
    c = config.model.language
    block = c.embed_dim * (2 * (c.num_heads + c.num_kv_heads) * c.head_dim + 3 * c.mlp_dim)
    weights = c.num_layers * block + c.vocab_size * c.embed_dim
    cache = rows * positions * c.num_layers * 2 * c.num_kv_heads * c.head_dim
    return float(itemsize * (weights + cache))
