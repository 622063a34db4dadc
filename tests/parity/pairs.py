"""The LLaVAs of tiny_llava.py twice: Hugging Face's in torch and ours, with the same random weights and samples.

Every weight is random, norms and biases too: Hugging Face starts those at one and zero, which hides mistakes.
"""

import dataclasses
import math

import numpy as np
import torch
import transformers

from jaxvlm.config import ModelConfig
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.weights import llava_rules, llava_sizes
from jaxvlm.models.vlm import Model
from jaxvlm.weights.rules import import_tensors
from tests.parity.tiny_llava import IMAGE_TOKEN, Sample, normalise


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model in both frameworks."""

    hf: transformers.LlavaForConditionalGeneration
    model: Model
    params: dict


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
