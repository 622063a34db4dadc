"""A decoder from a GGUF file, llama.cpp's format: weights under Hugging Face's names, and the config.

Source: the format and its metadata keys, docs/gguf.md of ggml; tensor names and the order of rows, llama.cpp's
convert_hf_to_gguf.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.config import DecoderConfig, RopeScaling
from jaxvlm.errors import UserError
from jaxvlm.gguf_metadata import read_metadata
from jaxvlm.models.decoder import ARCHITECTURES
from jaxvlm.models.layers import yarn_attention_factor
from jaxvlm.weights.tensors import TensorSource, TensorSpec, listed

# GGUF's name of a family -> whether its rows of q and k are in the order of an interleaved rope.
INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}  # Mistral and SmolLM2 are "llama" too

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}  # qwen3
_ROPE_FACTORS = "rope_freqs.weight"  # not a weight: divisors of the rotary frequencies; part of the config

# Keys after the architecture's name that describe another model than ours unless absent or 0.
_OTHER_MODELS = ("expert_count", "attention.sliding_window", "attention.scale", "logit_scale", "embedding_scale")

# The values of Llama 3.1, 3.2 and 3.3, except the factor; a GGUF file has only the resulting divisors.
_LLAMA3 = RopeScaling(factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)


class GGUFSource(TensorSource):
    """The tensors of a GGUF file under Hugging Face's names, dequantised on access.

        GGUFSource("smollm2.gguf")["model.layers.0.self_attn.q_proj.weight"]    float32[576, 576]

    Rows of q and k are in Hugging Face's order.
    """

    def __init__(self, path: str | Path):
        """Reads the header; weights stay on disk.

        Raises:
          UserError: the package gguf is missing; the file is absent, not GGUF, of an unknown architecture, or has
            tensors that its architecture does not have.
        """
        self.path = Path(path)
        self.metadata = read_metadata(self.path)
        self.architecture = str(self.metadata.value("general.architecture"))
        if self.architecture not in INTERLEAVED:
            raise UserError(
                f'{self.path} holds a model of architecture "{self.architecture}"; '
                f"supported are {', '.join(INTERLEAVED)}"
            )
        names = {tensor.name: _hf_name(tensor.name, self.architecture) for tensor in self.metadata.reader.tensors}
        unknown = [name for name, hf in names.items() if hf is None and name != _ROPE_FACTORS]
        if unknown:
            raise UserError(
                f'{self.path} holds {len(unknown)} tensors that a plain "{self.architecture}" decoder does not have: '
                f"{listed(unknown)}"
            )
        tensors = {tensor.name: tensor for tensor in self.metadata.reader.tensors}
        self._tensors = {hf: tensors[name] for name, hf in names.items() if hf is not None}
        super().__init__({hf: _spec(tensor) for hf, tensor in self._tensors.items()})
        self.rope_factors = _dequantise(tensors[_ROPE_FACTORS], self.path) if _ROPE_FACTORS in tensors else None

    def __getitem__(self, name: str) -> np.ndarray:
        """float32, in Hugging Face's shape."""
        array = _dequantise(self._tensors[name], self.path)
        if INTERLEAVED[self.architecture] and (match := re.search(r"\.self_attn\.([qk])_proj\.", name)):
            count = "attention.head_count" if match[1] == "q" else "attention.head_count_kv"
            return unpermute(array, self.number(count))
        return array

    def where(self, name: str) -> str:
        """The file."""
        return str(self.path)

    def number(self, key: str, default: float | None = None) -> Any:
        """A number of the architecture's metadata, `key` without the architecture's name.

        Raises:
          UserError: it is absent and has no default, or is a list of numbers, one for each block.
        """
        if key == "attention.head_count_kv" and default is None:
            default = self.number("attention.head_count")  # llama.cpp writes it for grouped queries only
        return self.metadata.number(f"{self.architecture}.{key}", default)


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in Hugging Face's order, which rotates halves of a head; llama.cpp's "llama" rotates neighbours.

        a head of six rows    file [ 0 3 1 4 2 5 ]    result [ 0 1 2 3 4 5 ]

    Args:
      array: [heads * head_dim, ...], a weight or a bias.
      heads: N of queries, K of keys.

    Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute, whose inverse this is.
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def gguf_decoder_config(source: GGUFSource) -> DecoderConfig:
    """The config of the file's decoder.

    Raises:
      UserError: a number missing from the metadata; or all unsupported metadata, in one message.
    """
    heads, embed_dim = source.number("attention.head_count"), source.number("embedding_length")
    head_dim = source.number("attention.key_length", embed_dim // heads)
    problems = [
        f"{source.architecture}.{key} = {value}, which the decoder does not have"
        for key in _OTHER_MODELS
        if (value := source.number(key, 0))
    ]
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := source.number(key, head_dim)) != head_dim:
            problems.append(f"{source.architecture}.{key} = {size}, expected the head's {head_dim}")
    if "model.embed_tokens.weight" not in source:
        problems.append("there are no weights (token_embd.weight)")
    theta = source.number("rope.freq_base", 10000.0)
    scaling = _rope_scaling(source, head_dim, theta, problems)
    if problems:
        raise UserError(f"{source.path} cannot be a decoder: " + "; ".join(problems))
    parts = ("q_proj.bias", "o_proj.bias", "q_norm.weight")
    choice = tuple(f"model.layers.0.self_attn.{part}" in source for part in parts)
    # A LLaMA with biases at q, k and v alone is a Qwen2.
    fitting = [name for name, choices in ARCHITECTURES.items() if choice in choices]
    architecture = source.architecture if source.architecture in fitting else next(iter(fitting), source.architecture)
    return DecoderConfig(
        vocab_size=source.spec("model.embed_tokens.weight").shape[0],
        embed_dim=embed_dim,
        mlp_dim=source.number("feed_forward_length"),
        num_layers=source.number("block_count"),
        num_heads=heads,
        num_kv_heads=source.number("attention.head_count_kv"),
        head_dim=head_dim,
        norm_epsilon=_shortest(source.number("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(theta),
        rope_scaling=scaling,
        tie_embeddings="lm_head.weight" not in source,
        qkv_bias=choice[0],
        out_bias=choice[1],
        qk_norm=choice[2],
        architecture=architecture,
    )


def _hf_name(name: str, architecture: str) -> str | None:
    """ "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; None for an unknown name."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return None
    block, part, kind = match.groups()
    table = _WHOLE if block is None else _BLOCK | (_QK_NORM if architecture == "qwen3" else {})
    if part not in table:
        return None
    return f"{table[part]}.{kind}" if block is None else f"model.layers.{block}.{table[part]}.{kind}"


def _spec(tensor: Any) -> TensorSpec:
    """The shape of `_dequantise`'s result; the file has the fastest axis first."""
    return TensorSpec(tuple(int(size) for size in reversed(tensor.shape)), np.dtype(np.float32))


def _dequantise(tensor: Any, path: Path) -> np.ndarray:
    import gguf

    try:
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as error:
        raise UserError(
            f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the package gguf cannot read; "
            "take a file of another quantisation, such as Q8_0 or F16"
        ) from error


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _linear(source: GGUFSource, factor: float) -> RopeScaling:
    return RopeScaling(factor, kind="linear")


def _yarn(source: GGUFSource, factor: float) -> RopeScaling:
    """Source: llama.cpp, ggml_rope_yarn_corr_dims and rope_yarn of ggml-cpu/ops.cpp."""
    key = "rope.scaling.original_context_length"
    positions = source.number(key, source.number("context_length", 0)) or source.number(key)  # which names the key
    return RopeScaling(
        factor,
        low_freq_factor=source.number("rope.scaling.yarn_beta_slow", 1.0),
        high_freq_factor=source.number("rope.scaling.yarn_beta_fast", 32.0),
        original_max_positions=int(positions),
        kind="yarn",
        attention_factor=yarn_attention_factor(factor),
    )


_SCALINGS = {"linear": _linear, "yarn": _yarn}
_OTHER_YARN = tuple(f"rope.scaling.{name}" for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"))


def _scaling_of_metadata(source: GGUFSource, problems: list[str]) -> RopeScaling | None:
    """The scaling that the metadata names; appends one that we do not have to `problems`."""
    kind = source.metadata.value(f"{source.architecture}.rope.scaling.type", "linear")  # llama.cpp's default
    factor = source.number("rope.scaling.factor", source.number("rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return None
    others = [f"{key} = {value}" for key in _OTHER_YARN if (value := source.number(key, 1.0)) != 1.0]
    if kind not in _SCALINGS or others:
        problems.append(" with ".join([f'rope scaling "{kind}" by {factor}', *others]))
        return None
    return _SCALINGS[kind](source, factor)


def _rope_scaling(source: GGUFSource, head_dim: int, theta: float, problems: list[str]) -> RopeScaling | None:
    """The scaling of the metadata, or Llama 3's if the file's divisors match it; appends others to `problems`."""
    of_metadata = _scaling_of_metadata(source, problems)
    if source.rope_factors is None or np.all(source.rope_factors == 1.0):
        return of_metadata
    if of_metadata is not None:
        problems.append(f"rope scaling by {of_metadata.factor} and {_ROPE_FACTORS}, expected one of both")
    scaling = dataclasses.replace(_LLAMA3, factor=float(source.rope_factors.max()))
    turns = scaling.original_max_positions * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    expected = 1 / (kept + (1 - kept) / scaling.factor)
    if source.rope_factors.shape != expected.shape or not np.allclose(source.rope_factors, expected, rtol=1e-3):
        problems.append(f"{_ROPE_FACTORS} has other factors than Llama 3's {scaling}")
    return scaling
