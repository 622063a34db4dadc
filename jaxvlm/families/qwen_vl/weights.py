"""Qwen-VL: tensor names of its parts.

Source: HF models/qwen2_vl, qwen2_5_vl and qwen3_vl, modeling_*.py, and the names of the files on the hub.
"""

from __future__ import annotations

import functools

from jaxvlm.families.qwen_vl.config import QwenVLConfig
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.hf.decoder import decoder_rules
from jaxvlm.weights.rules import Rule, prefixed
from jaxvlm.weights.spelling import Known, Spelling

# In memory since transformers 4.52, in files that trainers saved with it, and of Qwen3-VL on the hub.
MEMORY = Spelling(vision="model.visual.", projector="model.visual.", language="model.language_model.", head="lm_head.")
# Of Qwen2-VL and Qwen2.5-VL on the hub.
OLD = Spelling(vision="visual.", projector="visual.", language="model.", head="lm_head.")

_MARK = "patch_embed.proj.weight"  # the merger is in the same module, under other names in each kind
KNOWN: Known = {
    "vision": (("model.visual.", "visual.", ""), _MARK),
    "projector": (("model.visual.", "visual."), _MARK),
    "language": (("model.language_model.", "language_model.model.", "model."), "embed_tokens.weight"),
    "head": (("language_model.lm_head.", "lm_head."), "weight"),
}

# Letters: E embed of the encoder, M its mlp, C queries, keys and values, N heads, H head_dim; of a patch A frames,
# Y rows, X columns, Z colours; I input and O output of a merger's layer. `sizes` of the engine: A, Y, X and Z.
_BLOCK = "blocks.{i}."
_SHARED = (
    Rule("patch_embed.proj.weight", "patch/w", "E Z A Y X -> (A Y X Z) E"),
    Rule(_BLOCK + "norm1.weight", "blocks/attention_norm/scale"),
    Rule(_BLOCK + "attn.qkv.weight", "blocks/attention/qkv/w", "(C N H) E -> E C N H"),
    Rule(_BLOCK + "attn.qkv.bias", "blocks/attention/qkv/bias", "(C N H) -> C N H"),
    Rule(_BLOCK + "attn.proj.weight", "blocks/attention/out/w", "E (N H) -> N H E"),
    Rule(_BLOCK + "attn.proj.bias", "blocks/attention/out/bias"),
    Rule(_BLOCK + "norm2.weight", "blocks/mlp_norm/scale"),
)
_LAYER_NORMS = (
    Rule(_BLOCK + "norm1.bias", "blocks/attention_norm/bias"),
    Rule(_BLOCK + "norm2.bias", "blocks/mlp_norm/bias"),
)


def _linear(hf: str, ours: str, axes: str) -> tuple[Rule, Rule]:
    """The rows of a linear layer with a bias; `axes` are those of our weight."""
    first, second = axes.split()
    return Rule(f"{hf}.weight", f"{ours}/w", f"{second} {first} -> {axes}"), Rule(f"{hf}.bias", f"{ours}/bias")


_VISION = {
    "qwen2_vl": (
        *(*_SHARED, *_LAYER_NORMS),
        *_linear(_BLOCK + "mlp.fc1", "blocks/mlp/up", "E M"),
        *_linear(_BLOCK + "mlp.fc2", "blocks/mlp/down", "M E"),
    ),
    "qwen2_5_vl": (
        *_SHARED,
        *_linear(_BLOCK + "mlp.gate_proj", "blocks/mlp/gate", "E M"),
        *_linear(_BLOCK + "mlp.up_proj", "blocks/mlp/up", "E M"),
        *_linear(_BLOCK + "mlp.down_proj", "blocks/mlp/down", "M E"),
    ),
    "qwen3_vl": (
        *(*_SHARED, *_LAYER_NORMS),
        Rule("patch_embed.proj.bias", "patch/bias"),
        Rule("pos_embed.weight", "positions"),
        *_linear(_BLOCK + "mlp.linear_fc1", "blocks/mlp/up", "E M"),
        *_linear(_BLOCK + "mlp.linear_fc2", "blocks/mlp/down", "M E"),
    ),
}


def _merger(hf: str, ours: str, norm: str, first: str, second: str) -> tuple[Rule, ...]:
    """The rows of a merger; those of a norm's bias too, which RMSNorm does not have."""
    return (
        Rule(f"{hf}{norm}.weight", f"{ours}norm/scale"),
        Rule(f"{hf}{norm}.bias", f"{ours}norm/bias"),
        *_linear(f"{hf}{first}", f"{ours}fc1", "I O"),
        *_linear(f"{hf}{second}", f"{ours}fc2", "I O"),
    )


_OLD_MERGER = _merger("merger.", "merger/", "ln_q", "mlp.0", "mlp.2")
_NEW_NAMES = ("norm", "linear_fc1", "linear_fc2")
_PROJECTOR = {
    "qwen2_vl": _OLD_MERGER,
    "qwen2_5_vl": tuple(rule for rule in _OLD_MERGER if rule.ours != "merger/norm/bias"),
    "qwen3_vl": (
        *_merger("merger.", "merger/", *_NEW_NAMES),
        *_merger("deepstack_merger_list.{i}.", "deepstack/", *_NEW_NAMES),
    ),
}


def qwen_rules(config: QwenVLConfig, spelling: Spelling = MEMORY) -> tuple[Rule, ...]:
    """The table of the parts that `spelling` has, with our paths of the whole model."""
    rules: tuple[Rule, ...] = ()
    if spelling.vision is not None:
        rules += prefixed(_VISION[config.kind], spelling.vision, "vision/")
    if spelling.projector is not None:
        rules += prefixed(_PROJECTOR[config.kind], spelling.projector, "projector/")
    return rules + decoder_rules(config.language, spelling)


def qwen_sizes(config: QwenVLConfig) -> dict[str, int]:
    """The `sizes` of the engine."""
    size = config.vision.patch_size
    return {"A": 2, "Y": size, "X": size, "Z": 3}


def hub_spelling(config: QwenVLConfig) -> Spelling:
    """The names in the kind's files on the hub, which every version of transformers reads."""
    return MEMORY if config.kind == "qwen3_vl" else OLD


def adapter_names(config: QwenVLConfig) -> AdapterNames:
    """Module names of adapters: of transformers' module now and before 4.52, and of the official training code."""
    return AdapterNames(
        MEMORY,
        functools.partial(qwen_rules, config),
        qwen_sizes(config),
        module=r"((?P<vision>(model\.)?visual\.)blocks\.|(model\.|language_model\.)*layers\.)(?P<layer>\d+)\."
        r"(?P<name>.+)",
        known=KNOWN,
        projector=("merger", *(f"deepstack_merger_list.{i}" for i in range(len(config.vision.deepstack_layers)))),
    )
