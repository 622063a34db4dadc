"""Tiny towers of each kind in both frameworks, with the same random weights, and rows of patches for them.

Every weight is random, norms and biases too: Hugging Face starts those at one and zero, which hides mistakes.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from flax import nnx
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from jaxvlm.families.qwen_vl.config import MergerConfig, TowerConfig
from jaxvlm.families.qwen_vl.merger import Projector
from jaxvlm.families.qwen_vl.patches import Patches
from jaxvlm.families.qwen_vl.tower import Tower
from jaxvlm.trees import paths

MERGE = 2
SIZE = 4  # pixels along each side of a patch
MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
PIXELS = {"patch_size": SIZE, "image_mean": MEAN, "image_std": STD, "norm_epsilon": 1e-6}

CONFIGS = {
    "qwen2_vl": TowerConfig(
        24, 72, 3, 3, activation="quick_gelu", is_gated=False, norm="layer", patch_bias=False, **PIXELS
    ),
    "qwen2_5_vl": TowerConfig(
        40, 30, 4, 2, activation="silu", is_gated=True, norm="rms", patch_bias=False, window=8, full_layers=(1, 3),
        **PIXELS,
    ),
    "qwen3_vl": TowerConfig(
        36, 44, 5, 3, activation="gelu_tanh", is_gated=False, norm="layer", patch_bias=True, position_rows=7,
        deepstack_layers=(0, 3), **PIXELS,
    ),
}  # fmt: skip
EMBED_DIM = {"qwen2_vl": 20, "qwen2_5_vl": 28, "qwen3_vl": 52}  # of the decoder


def make_original(kind, seed=0):
    """Hugging Face's tower with random weights, float32."""
    c, D = CONFIGS[kind], EMBED_DIM[kind]
    sizes = {"depth": c.num_layers, "num_heads": c.num_heads, "patch_size": SIZE, "spatial_merge_size": MERGE}
    if kind == "qwen2_vl":
        config = Qwen2VLVisionConfig(
            embed_dim=c.embed_dim, mlp_ratio=c.mlp_dim // c.embed_dim, hidden_size=D, hidden_act="quick_gelu", **sizes
        )
        hf = Qwen2VisionTransformerPretrainedModel._from_config(config)
    elif kind == "qwen2_5_vl":
        config = Qwen2_5_VLVisionConfig(
            hidden_size=c.embed_dim, intermediate_size=c.mlp_dim, out_hidden_size=D, window_size=c.window * SIZE,
            fullatt_block_indexes=c.full_layers, **sizes,
        )  # fmt: skip
        hf = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    else:
        config = Qwen3VLVisionConfig(
            hidden_size=c.embed_dim, intermediate_size=c.mlp_dim, out_hidden_size=D,
            num_position_embeddings=c.position_rows**2, deepstack_visual_indexes=c.deepstack_layers, **sizes,
        )  # fmt: skip
        hf = Qwen3VLVisionModel._from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                is_scale = name.endswith("weight")
                weight.copy_(0.3 * noise + is_scale)
            else:
                weight.copy_(noise / math.sqrt(weight[0].numel()))
    return hf.float().eval()


def convert(kind, tensors):
    """Our nested dict of vision and projector from tensors, or gradients, under Hugging Face's names."""
    c = CONFIGS[kind]
    left = dict(tensors)
    N = c.num_heads

    def linear(name, form="O I -> I O", **sizes):
        return {"w": rearrange(left.pop(f"{name}.weight"), form, **sizes), "bias": left.pop(f"{name}.bias")}

    def norm(name):
        scale = {"scale": left.pop(f"{name}.weight")}
        return scale if c.norm == "rms" else scale | {"bias": left.pop(f"{name}.bias")}

    def block(at):
        parts = {"qkv": linear(f"{at}.attn.qkv", "(K N H) E -> E K N H", K=3, N=N)}
        parts["qkv"]["bias"] = rearrange(parts["qkv"]["bias"], "(K N H) -> K N H", K=3, N=N)
        parts["out"] = linear(f"{at}.attn.proj", "E (N H) -> N H E", N=N)
        mlp = {"qwen2_vl": {"up": "fc1", "down": "fc2"}, "qwen3_vl": {"up": "linear_fc1", "down": "linear_fc2"}}
        names = mlp.get(kind, {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
        return {
            "attention_norm": norm(f"{at}.norm1"),
            "attention": parts,
            "mlp_norm": norm(f"{at}.norm2"),
            "mlp": {ours: linear(f"{at}.mlp.{theirs}") for ours, theirs in names.items()},
        }

    def merger(at):
        names = ("norm", "linear_fc1", "linear_fc2") if kind == "qwen3_vl" else ("ln_q", "mlp.0", "mlp.2")
        first, *rest = (f"{at}.{name}" for name in names)
        return {"norm": norm(first), "fc1": linear(rest[0]), "fc2": linear(rest[1])}

    vision = {"patch": {"w": rearrange(left.pop("patch_embed.proj.weight"), "E C F Y X -> (F Y X C) E")}}
    if c.patch_bias:
        vision["patch"]["bias"] = left.pop("patch_embed.proj.bias")
    if c.position_rows:
        vision["positions"] = left.pop("pos_embed.weight")
    vision["blocks"] = stack([block(f"blocks.{i}") for i in range(c.num_layers)])
    projector = {"merger": merger("merger")}
    if K := len(c.deepstack_layers):
        projector["deepstack"] = stack([merger(f"deepstack_merger_list.{i}") for i in range(K)])
    assert not left, list(left)
    return {"vision": vision, "projector": projector}


def stack(trees):
    """Dicts of arrays as one, whose arrays have a new leading axis."""
    if isinstance(trees[0], dict):
        return {name: stack([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)


def make_params(kind, hf):
    return convert(kind, {name: weight.detach().numpy() for name, weight in hf.named_parameters()})


def make_parts(kind, *, remat="none", **changes):
    """Our tower and projector, with random weights; `changes` are of its config."""
    c, options = dataclasses.replace(CONFIGS[kind], **changes), {"dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
    tower = Tower(c, MERGE, remat=remat, **options)
    return tower, Projector(c, MergerConfig(MERGE), EMBED_DIM[kind], remat=remat, **options)


def bind(module, params):
    """`module` with other weights, which must be all of its own."""
    graph, state = nnx.split(module)
    assert list(paths(nnx.to_pure_dict(state))) == list(paths(params))
    return nnx.merge(graph, nnx.State(params))


def make_visual(random, rows, columns, pairs=0):
    """uint8[frames, Y, X, 3] of that many patches; an image is one frame, a video `pairs` of two."""
    return random.integers(0, 256, (2 * pairs or 1, rows * SIZE, columns * SIZE, 3), dtype=np.uint8)


def order(rows, columns, window):
    """int[rows * columns, 2], row and column of each patch: windows, tokens and patches in raster order each."""
    places = np.stack(np.mgrid[:rows, :columns], axis=-1).reshape(-1, 2)
    row, column = places.T
    keys = [column % MERGE, row % MERGE, column // MERGE, row // MERGE]
    return places[np.lexsort([*keys, column // window, row // window] if window else keys)]


def cut(visual, window):
    """The patches of an image or video, uint8[pairs, n, 2, Y, X, 3], and their places, int[n, 2]."""
    if len(visual) == 1:
        visual = np.repeat(visual, 2, axis=0)
    grid = rearrange(visual, "(T F) (R Y) (C X) D -> T R C F Y X D", F=2, Y=SIZE, X=SIZE)
    places = order(*grid.shape[1:3], window)
    return grid[:, places[:, 0], places[:, 1]], places


def write_rows(kind, rows, num_patches, frames=2):
    """The `Patches` of rows of images and videos; with frames = 1 only the first of each pair is written."""
    shape = (len(rows), num_patches)
    media = Patches(
        np.zeros((*shape, frames, SIZE, SIZE, 3), np.uint8),
        np.zeros((*shape, 2), np.int32),
        np.zeros(shape, np.int32),
        np.zeros((*shape, 2), np.int32),
    )
    for row, visuals in enumerate(rows):
        at, frame = 0, 0
        for visual in visuals:
            pairs, places = cut(visual, CONFIGS[kind].window)
            for patches in pairs:
                here, frame = (row, slice(at, at + len(places))), frame + 1
                media.pixels[here], media.places[here] = patches[:, :frames], places
                media.frames[here], media.grids[here] = frame, places.max(axis=0) + 1
                at += len(places)
    return media


def raster_tokens(kind, visuals):
    """int[n], where in a row of `write_rows` the tokens of its visuals are, in raster order frame by frame."""
    index, at = [], 0
    for visual in visuals:
        pairs, places = cut(visual, CONFIGS[kind].window)
        tokens = places[:: MERGE**2] // MERGE
        for _ in pairs:
            index += [at + np.lexsort(tokens.T[::-1])]
            at += len(tokens)
    return np.concatenate(index)


def original_inputs(visuals):
    """Hugging Face's pixel rows (channels, frames, rows, columns) in merge order, and the grids."""
    pixels, grids = [], []
    for visual in visuals:
        pairs, places = cut(visual, 0)
        values = (pairs.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        pixels.append(rearrange(values, "T P F Y X C -> (T P) (C F Y X)"))
        grids.append((len(pairs), *(places.max(axis=0) + 1)))
    return torch.from_numpy(np.concatenate(pixels)), torch.tensor(grids)
