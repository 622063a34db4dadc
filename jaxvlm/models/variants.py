"""Published sizes, for recipes: `c.model.language = ConfigDict(variants.language("llama2_7b"))`.

Each comes from the `config.json` of the Hugging Face repository given next to its name.
"""

from __future__ import annotations

from typing import Any

from jaxvlm.errors import UserError, did_you_mean


def _clip(
    image_size: int, patch_size: int, embed_dim: int, num_layers: int, num_heads: int, activation: str = "quick_gelu"
) -> dict[str, Any]:
    return {
        "class_token": True,
        "pre_norm": True,
        "patch_bias": False,
        "pool": False,
        "activation": activation,
        "image_size": image_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "mlp_dim": 4 * embed_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "norm_epsilon": 1e-5,
        "feature_layer": -2,  # LLaVA's choice
        "image_mean": (0.48145466, 0.4578275, 0.40821073),  # preprocessor_config.json
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    }


def _siglip(
    image_size: int, patch_size: int, embed_dim: int, mlp_dim: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    own = {"mlp_dim": mlp_dim, "norm_epsilon": 1e-6}
    own |= {"class_token": False, "pre_norm": False, "patch_bias": True, "pool": True}
    pixels = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    return _clip(image_size, patch_size, embed_dim, num_layers, num_heads, "gelu_tanh") | own | pixels


def _llama(
    vocab_size: int,
    embed_dim: int,
    mlp_dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    *,
    rope_theta: float,
    norm_epsilon: float = 1e-5,
    stretch: float | None = None,
    tie_embeddings: bool = False,
) -> dict[str, Any]:
    """`stretch` is the factor of Llama 3.1's rotary scaling, whose other numbers all its sizes share."""
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_positions": 8192}
    return {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "mlp_dim": mlp_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": embed_dim // num_heads,
        "norm_epsilon": norm_epsilon,
        "rope_theta": rope_theta,
        "rope_scaling": None if stretch is None else {"factor": stretch} | scaling,
        "tie_embeddings": tie_embeddings,
        "qkv_bias": False,
        "qk_norm": False,
        "architecture": "llama",
    }


def _mistral(vocab_size: int) -> dict[str, Any]:
    return _llama(vocab_size, 4096, 14336, 32, 32, 8, rope_theta=1e6) | {"architecture": "mistral"}


def _qwen25(vocab_size: int, *sizes: int, tie_embeddings: bool) -> dict[str, Any]:
    """`sizes` as those of `_llama` after the vocabulary."""
    llama = _llama(vocab_size, *sizes, rope_theta=1e6, norm_epsilon=1e-6, tie_embeddings=tie_embeddings)
    return llama | {"qkv_bias": True, "architecture": "qwen2"}


def _qwen3(*sizes: int, tie_embeddings: bool) -> dict[str, Any]:
    """`sizes` as those of `_llama` after the vocabulary."""
    llama = _llama(151936, *sizes, rope_theta=1e6, norm_epsilon=1e-6, tie_embeddings=tie_embeddings)
    return llama | {"head_dim": 128, "qk_norm": True, "architecture": "qwen3"}


_SIGLIP_BASE = _siglip(224, 16, 768, 3072, 12, 12)
_SIGLIP_SO400M = _siglip(384, 14, 1152, 4304, 27, 16)

_VISION = {
    "clip_b32": _clip(224, 32, 768, 12, 12),  # openai/clip-vit-base-patch32
    "clip_b16": _clip(224, 16, 768, 12, 12),  # openai/clip-vit-base-patch16
    "clip_l14": _clip(224, 14, 1024, 24, 16),  # openai/clip-vit-large-patch14
    "clip_l14_336": _clip(336, 14, 1024, 24, 16),  # openai/clip-vit-large-patch14-336
    "clip_h14": _clip(224, 14, 1280, 32, 16, "gelu"),  # laion/CLIP-ViT-H-14-laion2B-s32B-b79K
    "siglip_b16": _SIGLIP_BASE,  # google/siglip-base-patch16-224
    "siglip_so400m_384": _SIGLIP_SO400M,  # google/siglip-so400m-patch14-384
    "siglip2_b16": _SIGLIP_BASE,  # google/siglip2-base-patch16-224
    "siglip2_so400m_384": _SIGLIP_SO400M,  # google/siglip2-so400m-patch14-384
}

_LLAMA2_7B = _llama(32000, 4096, 11008, 32, 32, 32, rope_theta=10000.0)
_LLAMA2_13B = _llama(32000, 5120, 13824, 40, 40, 40, rope_theta=10000.0)
_LLAMA32_1B = _llama(128256, 2048, 8192, 16, 32, 8, rope_theta=500000.0, stretch=32.0, tie_embeddings=True)
_SMOLLM2_360M = _llama(49152, 960, 2560, 32, 15, 5, rope_theta=100000.0, tie_embeddings=True)
_SMOLLM2_1_7B = _llama(49152, 2048, 8192, 24, 32, 32, rope_theta=130000.0, tie_embeddings=True)

_LANGUAGE = {
    "llama_7b": _LLAMA2_7B | {"norm_epsilon": 1e-6},  # huggyllama/llama-7b
    "llama2_7b": _LLAMA2_7B,  # meta-llama/Llama-2-7b-hf
    "llama2_13b": _LLAMA2_13B,  # meta-llama/Llama-2-13b-hf
    "vicuna15_7b": _LLAMA2_7B,  # lmsys/vicuna-7b-v1.5
    "vicuna15_13b": _LLAMA2_13B,  # lmsys/vicuna-13b-v1.5
    "llama3_8b": _llama(128256, 4096, 14336, 32, 32, 8, rope_theta=500000.0),  # meta-llama/Meta-Llama-3-8B
    "llama31_8b": _llama(128256, 4096, 14336, 32, 32, 8, rope_theta=500000.0, stretch=8.0),  # meta-llama/Llama-3.1-8B
    "llama32_1b": _LLAMA32_1B,  # meta-llama/Llama-3.2-1B
    "smollm2_135m": _llama(  # HuggingFaceTB/SmolLM2-135M
        49152, 576, 1536, 30, 9, 3, rope_theta=100000.0, tie_embeddings=True
    ),
    "smollm2_360m": _SMOLLM2_360M,  # HuggingFaceTB/SmolLM2-360M
    "smollm2_1_7b": _SMOLLM2_1_7B,  # HuggingFaceTB/SmolLM2-1.7B
    "mistral02_7b": _mistral(32000),  # mistralai/Mistral-7B-Instruct-v0.2
    "mistral03_7b": _mistral(32768),  # mistralai/Mistral-7B-v0.3
    "qwen25_0_5b": _qwen25(151936, 896, 4864, 24, 14, 2, tie_embeddings=True),  # Qwen/Qwen2.5-0.5B
    "qwen25_1_5b": _qwen25(151936, 1536, 8960, 28, 12, 2, tie_embeddings=True),  # Qwen/Qwen2.5-1.5B
    "qwen25_3b": _qwen25(151936, 2048, 11008, 36, 16, 2, tie_embeddings=True),  # Qwen/Qwen2.5-3B
    "qwen25_7b": _qwen25(152064, 3584, 18944, 28, 28, 4, tie_embeddings=False),  # Qwen/Qwen2.5-7B
    "qwen3_0_6b": _qwen3(1024, 3072, 28, 16, 8, tie_embeddings=True),  # Qwen/Qwen3-0.6B
    "qwen3_1_7b": _qwen3(2048, 6144, 28, 16, 8, tie_embeddings=True),  # Qwen/Qwen3-1.7B
    "qwen3_4b": _qwen3(2560, 9728, 36, 32, 8, tie_embeddings=True),  # Qwen/Qwen3-4B
    "qwen3_8b": _qwen3(4096, 12288, 36, 32, 8, tie_embeddings=False),  # Qwen/Qwen3-8B
}


def vision(name: str) -> dict[str, Any]:
    """The keys of `config.model.vision`.

    Raises:
      UserError: no encoder of that name.
    """
    return _find(_VISION, name, "vision encoder")


def language(name: str) -> dict[str, Any]:
    """The keys of `config.model.language`.

    Raises:
      UserError: no decoder of that name.
    """
    return _find(_LANGUAGE, name, "language model")


def _find(table: dict[str, dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    if name not in table:
        raise UserError(f'no {kind} is called "{name}"{did_you_mean(name, table)}; known: {", ".join(table)}')
    return dict(table[name])
