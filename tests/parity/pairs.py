"""The same LLaVA twice: Hugging Face's in torch and ours, with the same random weights; and the same samples for both.

Every weight is random, norms and biases too: Hugging Face starts those at one and zero, which hides mistakes.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxvlm.batch import Batch, Images
from jaxvlm.config import DecoderConfig, ModelConfig, ProjectorConfig, RopeScaling, VisionConfig
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.families.llava.weights import llava_rules, llava_sizes
from jaxvlm.models.vlm import Model
from jaxvlm.weights.rules import import_tensors

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.25)  # of the pixels, for each channel another
SIGLIP = {"class_token": False, "pre_norm": False, "patch_bias": True, "pool": True}
IMAGE_TOKEN = 7  # placeholder id; text never draws it


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model in both frameworks."""

    hf: transformers.LlavaForConditionalGeneration
    model: Model
    params: dict


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


def hf_config(config: ModelConfig, decoder: str = "llama") -> transformers.LlavaConfig:
    """Hugging Face's words for a config; `decoder` is the text model's type."""
    v, t = config.vision, config.language
    rope = {"rope_type": "default", "rope_theta": t.rope_theta}
    if t.rope_scaling is not None:
        s = t.rope_scaling
        low, high = {"yarn": ("beta_slow", "beta_fast")}.get(s.kind, ("low_freq_factor", "high_freq_factor"))
        rope |= {"rope_type": s.kind, "factor": s.factor}
        if s.kind != "linear":
            rope |= {low: s.low_freq_factor, high: s.high_freq_factor}
            rope["original_max_position_embeddings"] = s.original_max_positions
        if s.kind == "yarn":
            rope["attention_factor"] = s.attention_factor
    vision_class = transformers.CLIPVisionConfig if v.class_token else transformers.SiglipVisionConfig
    vision = vision_class(
        hidden_size=v.embed_dim,
        intermediate_size=v.mlp_dim,
        num_hidden_layers=v.num_layers,
        num_attention_heads=v.num_heads,
        image_size=v.image_size,
        patch_size=v.patch_size,
        layer_norm_eps=v.norm_epsilon,
        hidden_act={"gelu_tanh": "gelu_pytorch_tanh"}.get(v.activation, v.activation),
        **({} if v.class_token else {"vision_use_head": v.pool}),
    )
    text_classes = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    text_classes |= {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    text = text_classes[decoder](
        vocab_size=t.vocab_size,
        hidden_size=t.embed_dim,
        intermediate_size=t.mlp_dim,
        num_hidden_layers=t.num_layers,
        num_attention_heads=t.num_heads,
        num_key_value_heads=t.num_kv_heads,
        head_dim=t.head_dim,
        rms_norm_eps=t.norm_epsilon,
        rope_parameters=rope,
        max_position_embeddings=4096,
        tie_word_embeddings=t.tie_embeddings,
        use_cache=False,
        **({"sliding_window": t.window} if decoder == "mistral" else {}),
        **({"attention_bias": True} if t.out_bias else {}),
    )
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=v.feature_layer,
        vision_feature_select_strategy="default" if v.class_token else "full",
        tie_word_embeddings=t.tie_embeddings,
    )


def make_pair(config: ModelConfig, *, decoder: str = "llama", attention: str = "eager", seed: int = 0) -> Pair:
    """A random model in both frameworks; `attention` is Hugging Face's `attn_implementation`."""
    made = hf_config(config, decoder)
    made._attn_implementation = attention
    with torch.device("cpu"):
        hf = transformers.LlavaForConditionalGeneration(made).float().eval()
    hf.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            else:
                weight.copy_(noise / math.sqrt(weight[0].numel()))
    model = build_model(config)
    params = import_tensors(llava_rules(config), hf_tensors(hf), model.abstract, llava_sizes(config))
    return Pair(hf, model, params)


def hf_tensors(hf: transformers.LlavaForConditionalGeneration) -> dict[str, np.ndarray]:
    """The weights of the module in memory, a tied one once."""
    return {name: weight.detach().numpy() for name, weight in hf.named_parameters()}


def hf_gradients(hf: transformers.LlavaForConditionalGeneration) -> dict[str, np.ndarray]:
    """Gradients under the names of the weights; zeros where the loss does not depend on one."""
    return {
        name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).numpy()
        for name, weight in hf.named_parameters()
    }


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


def hf_batch(config: ModelConfig, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Hugging Face's batch: a sample a row, padded on the right, labels -100 where unsupervised."""
    B, T = len(samples), max(len(sample.tokens) for sample in samples)
    ids, labels = np.zeros((B, T), np.int64), np.full((B, T), -100, np.int64)
    mask = np.zeros((B, T), np.int64)
    for b, sample in enumerate(samples):
        n = len(sample.tokens)
        ids[b, :n], mask[b, :n] = sample.tokens, 1
        labels[b, :n] = np.where(sample.supervised, sample.tokens, -100)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if pixels := [image for sample in samples for image in sample.images]:
        batch["pixel_values"] = normalise(config, np.stack(pixels))
    return {name: torch.from_numpy(array) for name, array in batch.items()}


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
