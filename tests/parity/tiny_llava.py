"""Tiny LLaVAs of which every axis has another size, and samples for them; pairs.py has the same in torch."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxvlm.batch import Batch, Images
from jaxvlm.config import DecoderConfig, ModelConfig, ProjectorConfig, RopeScaling, VisionConfig
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.models.vlm import Model

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.25)  # of the pixels, for each channel another
SIGLIP = {"class_token": False, "pre_norm": False, "patch_bias": True, "pool": True}
IMAGE_TOKEN = 7  # placeholder id; text never draws it


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation: its ids with a placeholder for each image feature, its images, and which ids are supervised."""

    tokens: np.ndarray  # int32[T]
    images: list[np.ndarray]  # uint8[Y, X, 3]
    supervised: np.ndarray  # bool[T]


def tiny_config(**changes) -> ModelConfig:
    """Every axis of another size; images of 23 pixels leave two over behind patches of 7."""
    vision = VisionConfig(23, 7, 40, 44, 4, 5, 1e-5, -2, MEAN, STD, True, True, False, False, "quick_gelu")
    language = DecoderConfig(101, 48, 56, 3, 6, 2, 10, 1e-6, 10000.0, None, False, False, False)
    config = LlavaConfig("llava", language, "float32", "none", vision, ProjectorConfig("mlp2x_gelu"))
    return dataclasses.replace(config, **changes)


def tied_config() -> ModelConfig:
    """The other choices: tied embeddings, Llama 3's frequencies (of which all three ranges occur), another layer."""
    config, scaling = tiny_config(), RopeScaling(8.0, 1.0, 4.0, 64)
    language = dataclasses.replace(config.language, rope_theta=500.0, rope_scaling=scaling, tie_embeddings=True)
    return dataclasses.replace(config, language=language, vision=dataclasses.replace(config.vision, feature_layer=-1))


def linear_rope_config() -> ModelConfig:
    """All rotary frequencies divided by a factor, as Vicuna 1.5 of 16k positions."""
    config = tiny_config()
    scaling = RopeScaling(4.0, kind="linear")
    return dataclasses.replace(config, language=dataclasses.replace(config.language, rope_scaling=scaling))


def yarn_config() -> ModelConfig:
    """YaRN's frequencies (one is kept, one half divided, the others divided), and biases at all of attention."""
    config, scaling = tiny_config(), RopeScaling(4.0, 1.0, 4.0, 64, kind="yarn", attention_factor=1.3)
    changes = {"rope_theta": 500.0, "rope_scaling": scaling, "qkv_bias": True, "out_bias": True}
    return dataclasses.replace(config, language=dataclasses.replace(config.language, **changes))


def siglip_config(**language) -> ModelConfig:
    """SigLIP's encoder before a decoder with other choices."""
    config = tiny_config()
    vision = dataclasses.replace(config.vision, activation="gelu_tanh", norm_epsilon=1e-6, **SIGLIP)
    return dataclasses.replace(config, vision=vision, language=dataclasses.replace(config.language, **language))


def gelu_config() -> ModelConfig:
    """CLIP H/14's exact GELU."""
    config = tiny_config()
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, activation="gelu"))


def make_sample(config: ModelConfig, seed: int, *, images: int, text: int) -> Sample:
    """Random ids with the images after the first one, the last half of the text supervised."""
    random = np.random.default_rng(seed)
    size, features = config.vision.image_size, config.vision.features_per_image
    words = random.integers(IMAGE_TOKEN + 1, config.language.vocab_size, text, dtype=np.int32)
    # Text between the images, so that they do not stand in one run.
    pieces = [words[:1]]
    for i in range(images):
        pieces += [np.full(features, IMAGE_TOKEN, np.int32), words[1 + i : 2 + i]]
    tokens = np.concatenate([*pieces, words[1 + images :]])
    supervised = np.arange(len(tokens)) >= len(tokens) - text // 2
    return Sample(tokens, [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(images)], supervised)


def make_batch(config: ModelConfig, rows: list[list[Sample]], *, tokens: int, images: int) -> Batch:
    """Our batch: the samples of each row behind each other, then padding."""
    B, T, size, P = len(rows), tokens, config.vision.image_size, config.vision.features_per_image
    ints = {name: np.zeros((B, T), np.int32) for name in ("tokens", "targets", "positions", "segments")}
    image_index, loss_weights = np.full((B, T), -1, np.int32), np.zeros((B, T), np.float32)
    pixels = np.zeros((B, images, size, size, 3), np.uint8)
    for b, row in enumerate(rows):
        start = used = 0
        for segment, sample in enumerate(row, 1):
            n = len(sample.tokens)
            here = slice(start, start + n)
            ints["tokens"][b, here] = sample.tokens
            ints["targets"][b, start : start + n - 1] = sample.tokens[1:]
            loss_weights[b, start : start + n - 1] = sample.supervised[1:]
            ints["positions"][b, here] = np.arange(n)
            ints["segments"][b, here] = segment
            places = start + np.flatnonzero(sample.tokens == IMAGE_TOKEN)
            image_index[b, places] = used * P + np.arange(len(places))
            for image in sample.images:
                pixels[b, used] = image
                used += 1
            start += n
    return Batch(media=Images(pixels), image_index=image_index, loss_weights=loss_weights, **ints)


def normalise(config: ModelConfig, pixels: np.ndarray) -> np.ndarray:
    """uint8[B, Y, X, 3] -> float32[B, 3, Y, X], what HF's image processor makes of it."""
    scaled = (pixels.astype(np.float32) / 255 - np.float32(config.vision.image_mean)) / np.float32(
        config.vision.image_std
    )
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def loss_of(model: Model, params: dict, batch: Batch):
    """(mean loss over the supervised tokens, logits), written out plainly."""
    vlm = model.bind(params)
    logits = vlm.logits(vlm.hidden(batch))
    log_z = jnp.log(jnp.sum(jnp.exp(logits - logits.max(-1, keepdims=True)), -1)) + logits.max(-1)
    at_target = jnp.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
    return jnp.sum((log_z - at_target) * batch.loss_weights) / jnp.sum(batch.loss_weights), logits
