"""LLaMA, Mistral, SmolLM2, Qwen2 and Qwen3: tensor names and config.json.

Source: HF models/llama/modeling_llama.py, LlamaModel; models/{mistral,qwen2,qwen3}/; all configuration_*.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.config import DecoderConfig, RopeScaling
from jaxvlm.errors import UserError
from jaxvlm.models.decoder import ARCHITECTURES, check_architecture
from jaxvlm.models.layers import yarn_attention_factor
from jaxvlm.weights.codec import Codec, Export, Reference
from jaxvlm.weights.gguf_file import GGUFSource, gguf_decoder_config
from jaxvlm.weights.hf.strict import CONFIG_FILE, Report, check_fields, fill, make, read_config, unknown
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.rules import Rule, prefixed
from jaxvlm.weights.saved_tokenizer import write_text_files
from jaxvlm.weights.source import WeightSource, part_source
from jaxvlm.weights.spelling import Known, Spelling


@dataclasses.dataclass(frozen=True)
class Decoder:
    """One architecture; `jaxvlm.models.decoder.ARCHITECTURES` has its biases and norms."""

    config: type  # transformers' config class
    model: str  # transformers' model class
    has_window: bool = False  # whether all layers have one attention window, which may be null


DECODERS = {
    "llama": Decoder(transformers.LlamaConfig, "LlamaForCausalLM"),
    # A null is written too: without it transformers would take a window of 4,096 tokens.
    "mistral": Decoder(transformers.MistralConfig, "MistralForCausalLM", has_window=True),
    "qwen2": Decoder(transformers.Qwen2Config, "Qwen2ForCausalLM"),
    "qwen3": Decoder(transformers.Qwen3Config, "Qwen3ForCausalLM"),
}
MODEL_TYPES = tuple(DECODERS)

# Ours on the left, Hugging Face's on the right.
_FIELDS = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_ROPE_FIELDS = {  # for each rope_type
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_positions": "original_max_position_embeddings",
    },
    "yarn": {
        "factor": "factor",
        "low_freq_factor": "beta_slow",
        "high_freq_factor": "beta_fast",
        "original_max_positions": "original_max_position_embeddings",
        "attention_factor": "attention_factor",
    },
}

# Required values of fields, each with the reason; a field absent from file and class passes.
_REQUIRED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the gate of the MLP"),
    "attention_bias": (False, "biases as the architecture has them"),
    "mlp_bias": (False, "no biases in the MLP"),
    "sliding_window": (None, "full attention"),
    "rope_interleaved": (False, "halves are rotated, not pairs"),
    "use_mrope": (False, "one position for each token"),
    "is_decoder": (False, ""),
    "add_cross_attention": (False, ""),
    "pruned_heads": ({}, ""),
}

IGNORED = (r".*rotary_emb\.inv_freq",)  # a buffer that old versions of transformers saved
ALONE = Spelling(language="model.", head="lm_head.")
KNOWN: Known = {
    "language": (("model.language_model.", "language_model.model.", "model.", ""), "embed_tokens.weight"),
    "head": (("language_model.lm_head.", "lm_head."), "weight"),
}

_BLOCK = "layers.{i}."

# Letters: V vocab, D embed, F mlp, N heads, K key/value heads, H head_dim.
RULES = (
    Rule("embed_tokens.weight", "embed/w", "V D -> V D"),
    Rule(_BLOCK + "input_layernorm.weight", "blocks/attention_norm/scale"),
    Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/q/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/k/w", "(K H) D -> D K H"),
    Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/v/w", "(K H) D -> D K H"),
    Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/q/bias", "(N H) -> N H"),  # Qwen2
    Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/k/bias", "(K H) -> K H"),
    Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/v/bias", "(K H) -> K H"),
    Rule(_BLOCK + "self_attn.q_norm.weight", "blocks/attention/q_norm/scale"),  # Qwen3
    Rule(_BLOCK + "self_attn.k_norm.weight", "blocks/attention/k_norm/scale"),
    Rule(_BLOCK + "self_attn.o_proj.weight", "blocks/attention/out/w", "D (N H) -> N H D"),
    Rule(_BLOCK + "self_attn.o_proj.bias", "blocks/attention/out/bias"),  # LLaMA and Qwen3 with attention_bias
    Rule(_BLOCK + "post_attention_layernorm.weight", "blocks/mlp_norm/scale"),
    Rule(_BLOCK + "mlp.gate_proj.weight", "blocks/mlp/gate/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.up_proj.weight", "blocks/mlp/up/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.down_proj.weight", "blocks/mlp/down/w", "D F -> F D"),
    Rule("norm.weight", "norm/scale"),
)

# The output projection; a model with tied embeddings has none, and its HF name is then left out of `hf`.
HEAD = (Rule("weight", "head/w", "V D -> V D"),)


def decoder_rules(config: DecoderConfig, spelling: Spelling) -> tuple[Rule, ...]:
    """The decoder's rules with paths of the whole model, for the parts that the files have."""
    rules: tuple[Rule, ...] = ()
    if spelling.language is not None:
        rules += prefixed(RULES, spelling.language, "language/")
    if spelling.head is not None and not config.tie_embeddings:
        rules += prefixed(HEAD, spelling.head, "language/")
    return rules


def read_language(folder: str | Path) -> DecoderConfig:
    """The decoder of a folder of LLaMA, Mistral, Qwen2 or Qwen3 (SmolLM2 and Vicuna are LLaMAs).

    Raises:
      UserError: no config.json, another model, or unsupported fields, all in one message.
    """
    values = read_config(folder)
    report = Report(str(Path(folder) / CONFIG_FILE))
    return report.finish(decoder_config(decoder_kind(values, report.where), values, "", report))


def decoder_kind(values: Mapping[str, Any], where: str) -> str:
    """The row of `DECODERS` for a `model_type`.

    Raises:
      UserError: another model.
    """
    kind = values.get("model_type")
    if kind not in DECODERS:
        raise unknown(kind, DECODERS, where)
    return str(kind)


def decoder_config(architecture: str, values: Mapping[str, Any], prefix: str, report: Report) -> DecoderConfig | None:
    """The decoder that a file describes; None, and a problem, if transformers refuses it."""
    cls = DECODERS[architecture].config
    filled = fill(cls, values, prefix, report)
    if filled is None:
        return None
    rope = {"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"}
    mapped = {*_FIELDS.values(), "layer_types"} | rope
    usual, *with_biases = ARCHITECTURES[architecture]
    if with_biases:
        mapped.add("attention_bias")
    if DECODERS[architecture].has_window:
        mapped.add("sliding_window")
    # Qwen2 and Qwen3 write a window that they do not use; the class has replaced it by None.
    check_fields(cls, values, filled, prefix, report, mapped=mapped, required=_REQUIRED, irrelevant=frozenset())
    kinds = sorted(set(filled.get("layer_types") or ["full_attention"]))
    if kinds != ["full_attention"]:
        report.add(f"{prefix}layer_types", kinds, '"full_attention" in every layer')
    theta, scaling = _rope(filled.get("rope_parameters") or {}, prefix, report)
    # Qwen2's class has no field for it.
    filled["head_dim"] = filled.get("head_dim") or filled["hidden_size"] // filled["num_attention_heads"]
    fields = {ours: filled[theirs] for ours, theirs in _FIELDS.items()}
    qkv_bias, out_bias, qk_norm = with_biases[0] if with_biases and filled.get("attention_bias") else usual
    return DecoderConfig(
        **fields | {"norm_epsilon": float(fields["norm_epsilon"])},
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm=qk_norm,
        architecture=architecture,
        window=filled["sliding_window"] if DECODERS[architecture].has_window else None,
    )


def _rope(rope: Mapping[str, Any], prefix: str, report: Report) -> tuple[float, RopeScaling | None]:
    """Reads `rope_parameters`; the class also puts the older `rope_theta` and `rope_scaling` there."""
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    fields = _ROPE_FIELDS.get(kind)
    if fields is None:
        report.add(f"{prefix}rope_type", kind, ", ".join(_ROPE_FIELDS))
        return 0.0, None
    if "attention_factor" in fields:
        rope = _with_yarn_defaults(rope)
        known |= {"mscale", "mscale_all_dim", "truncate"}
        if rope.get("truncate") is False:
            report.add(f"{prefix}truncate", False, "true (the range of frequencies is rounded outwards)")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        report.add(f"{prefix}partial_rotary_factor", rope["partial_rotary_factor"], "1.0 (all of a head is rotated)")
    for name in sorted(set(rope) - known - set(fields.values())):
        if rope[name] is not None:
            report.log(f"{prefix}rope_parameters.{name} = {json.dumps(rope[name])}, an unknown field")
    missing = [name for name in (*fields.values(), "rope_theta") if rope.get(name) is None]
    if missing:
        report.log(f"{prefix}rope_parameters lacks {', '.join(missing)}")
        return 0.0, None
    if not fields:
        return float(theta), None  # type: ignore[arg-type]
    numbers: dict[str, Any] = {ours: float(rope[theirs]) for ours, theirs in fields.items()}
    if "original_max_positions" in numbers:
        numbers["original_max_positions"] = int(numbers["original_max_positions"])
    return float(theta), RopeScaling(kind=kind, **numbers)  # type: ignore[arg-type]


def _with_yarn_defaults(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a file may leave out, as transformers infers them (modeling_rope_utils.py)."""
    found = {name: value for name, value in rope.items() if value is not None}
    if "attention_factor" not in found and "factor" in found:
        factor = found["factor"]
        found["attention_factor"] = yarn_attention_factor(factor)
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            numerator, denominator = (
                yarn_attention_factor(factor, rope[name]) for name in ("mscale", "mscale_all_dim")
            )
            found["attention_factor"] = numerator / denominator
    # Zero too: transformers reads them with `or`.
    return found | {"beta_fast": found.get("beta_fast") or 32.0, "beta_slow": found.get("beta_slow") or 1.0}


def hf_language_config(config: DecoderConfig, tokenizer: Any, *, dtype: str, max_positions: int) -> dict[str, Any]:
    """config.json of a decoder alone, as the class of its `architecture`.

    Args:
      config: of a decoder.
      tokenizer: of transformers; its BOS, EOS and padding ids are written.
      dtype: of the weights in the same folder: "float32", "bfloat16" or "float16".
      max_positions: maximum sequence length for servers; the weights do not depend on it.

    Raises:
      UserError: the architecture has other biases or norms, positions have several axes, or transformers refuses the
        sizes.
    """
    check_architecture(config)
    if config.rope_axes:
        raise UserError(
            f"config.model.language.rope_axes = {config.rope_axes}: a decoder of transformers without an encoder has "
            "one position for each token"
        )
    decoder = DECODERS[config.architecture]
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        fields = _ROPE_FIELDS[scaling.kind]
        rope = {theirs: getattr(scaling, ours) for ours, theirs in fields.items()} | {"rope_type": scaling.kind}
    made = make(
        decoder.config,
        architectures=[decoder.model],
        dtype=dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        rope_parameters=rope | {"rope_theta": config.rope_theta},
        max_position_embeddings=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Transformers 4 does not know `rope_parameters` and would silently use 10,000.
    old = {"rope_theta": config.rope_theta, "rope_scaling": None if scaling is None else rope}
    if config.out_bias:
        made["attention_bias"] = True
    return made | old | ({"sliding_window": config.window} if decoder.has_window else {})


def open_gguf(spec: str, path: Path) -> WeightSource:
    """Opens a GGUF file.

    Raises:
      UserError: it is not a GGUF file, or not of a supported decoder.
    """
    file = GGUFSource(path)
    return part_source(CODEC, spec, path, file, {"language": gguf_decoder_config(file)})


def _open(spec: str, path: Path) -> WeightSource:
    return part_source(CODEC, spec, path, open_tensors(path), {"language": read_language(path)})


def _write(folder: Path, export: Export) -> tuple[dict[str, Any], list[str]]:
    write_text_files(folder, export)
    config, tokenizer = export.config.language, export.tokenizer
    return hf_language_config(config, tokenizer, dtype=export.dtype, max_positions=export.max_positions), []


def _inputs(tokenizer: Any, text: str, images: list[Path]) -> Mapping[str, Any]:
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)


CODEC = Codec(
    name="language",
    open=_open,
    hub=ALONE,
    known=KNOWN,
    rules=lambda config, spelling: decoder_rules(config.language, spelling),
    sizes=lambda config: {},
    ignored=IGNORED,
    write=_write,
    reference=Reference(transformers.AutoModelForCausalLM, transformers.AutoTokenizer, _inputs),
    has_processor=False,
)
