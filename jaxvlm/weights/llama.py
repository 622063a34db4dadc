"""LLaMA, Mistral, SmolLM2, Qwen2 and Qwen3: one table, of which a model uses the rows it has weights for.

Source: HF models/llama/modeling_llama.py, LlamaModel; models/qwen2/modeling_qwen2.py; models/qwen3/modeling_qwen3.py.
"""

from __future__ import annotations

from jaxvlm.weights.rules import Rule

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
    Rule(_BLOCK + "post_attention_layernorm.weight", "blocks/mlp_norm/scale"),
    Rule(_BLOCK + "mlp.gate_proj.weight", "blocks/mlp/gate/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.up_proj.weight", "blocks/mlp/up/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.down_proj.weight", "blocks/mlp/down/w", "D F -> F D"),
    Rule("norm.weight", "norm/scale"),
)

# The output projection; a model with tied embeddings has none, and its HF name is then left out of `hf`.
HEAD = (Rule("weight", "head/w", "V D -> V D"),)
