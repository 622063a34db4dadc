"""The vision encoders of CLIP and SigLIP: one table, of which a model uses the rows it has weights for.

Source: HF models/clip/modeling_clip.py, CLIPVisionModel; models/siglip/modeling_siglip.py, SiglipVisionModel (names of
transformers 5; older files have `vision_model.` in front).
"""

from __future__ import annotations

from jaxvlm.weights.rules import Rule

_BLOCK = "encoder.layers.{i}."

# Letters: D embed, F mlp, N heads, H head_dim, Y X C a patch's rows, columns and channels, P positions.
# `sizes` of the engine: Y, X and C; no shape of ours shows them.
RULES = (
    Rule("embeddings.class_embedding", "class_token"),
    Rule("embeddings.patch_embedding.weight", "patch/w", "D C Y X -> (Y X C) D"),
    Rule("embeddings.patch_embedding.bias", "patch/bias"),  # SigLIP
    Rule("embeddings.position_embedding.weight", "positions", "P D -> P D"),
    Rule("pre_layrnorm.weight", "pre_norm/scale"),  # HF's spelling
    Rule("pre_layrnorm.bias", "pre_norm/bias"),
    Rule(_BLOCK + "layer_norm1.weight", "blocks/attention_norm/scale"),
    Rule(_BLOCK + "layer_norm1.bias", "blocks/attention_norm/bias"),
    Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/q/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/q/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/k/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/k/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/v/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/v/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.out_proj.weight", "blocks/attention/out/w", "D (N H) -> N H D"),
    Rule(_BLOCK + "self_attn.out_proj.bias", "blocks/attention/out/bias"),
    Rule(_BLOCK + "layer_norm2.weight", "blocks/mlp_norm/scale"),
    Rule(_BLOCK + "layer_norm2.bias", "blocks/mlp_norm/bias"),
    Rule(_BLOCK + "mlp.fc1.weight", "blocks/mlp/up/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.fc1.bias", "blocks/mlp/up/bias"),
    Rule(_BLOCK + "mlp.fc2.weight", "blocks/mlp/down/w", "D F -> F D"),
    Rule(_BLOCK + "mlp.fc2.bias", "blocks/mlp/down/bias"),
    Rule("post_layernorm.weight", "post_norm/scale"),
    Rule("post_layernorm.bias", "post_norm/bias"),
    # SigLIP's pooling, which LLaVA does not compute; E is queries, keys and values.
    Rule("head.probe", "pool/probe"),
    Rule("head.attention.in_proj_weight", "pool/qkv/w", "E D -> D E"),
    Rule("head.attention.in_proj_bias", "pool/qkv/bias"),
    Rule("head.attention.out_proj.weight", "pool/out/w", "D E -> E D"),
    Rule("head.attention.out_proj.bias", "pool/out/bias"),
    Rule("head.layernorm.weight", "pool/norm/scale"),
    Rule("head.layernorm.bias", "pool/norm/bias"),
    Rule("head.mlp.fc1.weight", "pool/mlp/up/w", "F D -> D F"),
    Rule("head.mlp.fc1.bias", "pool/mlp/up/bias"),
    Rule("head.mlp.fc2.weight", "pool/mlp/down/w", "D F -> F D"),
    Rule("head.mlp.fc2.bias", "pool/mlp/down/bias"),
)
