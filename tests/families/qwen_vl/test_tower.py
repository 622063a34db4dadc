"""The tower and the mergers against Hugging Face's, block by block, and on meshes that their sizes do not divide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from jaxvlm.config import LoraConfig, MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.tower import Tower, interpolate_positions, window_segments
from jaxvlm.models.layers import add_lora
from jaxvlm.sharding import Rules, make_mesh, named_shardings, placed, to_devices
from jaxvlm.trees import paths
from tests.families.qwen_vl import towers
from tests.families.qwen_vl.towers import CONFIGS, MERGE

pytestmark = pytest.mark.torch

KINDS = list(CONFIGS)
# 2.5 alone has windows.
NEIGHBOURS = ["qwen2_5_vl", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("qwen2_vl", "qwen3_vl"))]
PATCHES = 272  # of a row: more than any row below fills


@pytest.fixture(scope="module")
def rows():
    """Grids that no window divides, a strip two patches high, a video of three frames, and a single token."""
    random = np.random.default_rng(0)
    first = [towers.make_visual(random, 10, 18), towers.make_visual(random, 2, 28)]
    second = [
        towers.make_visual(random, 4, 6, pairs=3),
        towers.make_visual(random, 16, 8),
        towers.make_visual(random, 2, 2),
    ]
    return first, second


@pytest.fixture(scope="module")
def originals():
    return {kind: towers.make_original(kind) for kind in KINDS}


def forward(kind, params, media, *, remat="none", **changes):
    """The patch embedding, the tower's two outputs, and the projector's two."""
    tower, projector = towers.make_parts(kind, remat=remat, **changes)
    tower = towers.bind(tower, params["vision"])
    x, deep = tower(media)
    if changes:
        return tower.embed(media), x, deep, None, None
    return tower.embed(media), x, deep, *towers.bind(projector, params["projector"])(x, deep)


def close(ours, expected, limit=1e-5):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_each_block(rows, originals, kind):
    hf, media = originals[kind], towers.write_rows(kind, rows, PATCHES)
    params, seen = towers.make_params(kind, hf), []
    layers = tuple(range(CONFIGS[kind].num_layers))  # as if DeepStack took them all
    every = jax.jit(lambda params, media: forward(kind, params, media, deepstack_layers=layers))(params, media)
    hooks = [block.register_forward_hook(lambda _, __, y: seen.append(y.detach())) for block in hf.blocks]
    hooks.append(hf.patch_embed.register_forward_hook(lambda _, __, y: seen.append(y.detach())))
    for row, visuals in enumerate(rows):
        seen.clear()
        with torch.no_grad():
            hf(*towers.original_inputs(visuals))
        assert len(seen) == 1 + len(layers)
        n = len(seen[0])
        assert 0 < n < PATCHES
        if kind == "qwen2_vl":  # of the others in another order, or before the positions are added
            close(every[0][row, :n], seen[0])
        for layer in layers:
            close(every[2][layer][row, :n], seen[1 + layer])
        np.testing.assert_array_equal(every[1], every[2][-1])
    for hook in hooks:
        hook.remove()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(every))


@pytest.mark.nightly  # test_each_block has the numbers, test_parity.py the gradients of the whole models
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients(rows, originals, kind):
    """Of the merger, and of DeepStack's; random numbers as the gradient of each feature."""
    hf, media = originals[kind], towers.write_rows(kind, rows, PATCHES)
    params, random = towers.make_params(kind, hf), np.random.default_rng(1)
    K, D = len(CONFIGS[kind].deepstack_layers), towers.EMBED_DIM[kind]
    pull_KBFD = np.zeros((1 + K, len(rows), PATCHES // MERGE**2, D), np.float32)
    hf.zero_grad()
    expected = []
    for row, visuals in enumerate(rows):
        outputs = hf(*towers.original_inputs(visuals))
        features = torch.stack([outputs.pooler_output, *getattr(outputs, "deepstack_features", [])])
        pull = random.standard_normal(features.shape, dtype=np.float32)
        pull_KBFD[:, row, towers.raster_tokens(kind, visuals)] = pull
        (features * torch.from_numpy(pull)).sum().backward()
        expected.append(features.detach())

    def loss(params, remat):
        *_, features_BFD, deep_KBFD = forward(kind, params, media, remat=remat)
        features = features_BFD[None] if deep_KBFD is None else jnp.concatenate([features_BFD[None], deep_KBFD])
        return jnp.sum(features * pull_KBFD), features

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, features_KBFD), gradients = step(params, "full")
    for row, visuals in enumerate(rows):
        close(features_KBFD[:, row, towers.raster_tokens(kind, visuals)], expected[row])
    wanted = paths(towers.convert(kind, {name: weight.grad.numpy() for name, weight in hf.named_parameters()}))
    for path, gradient in paths(gradients).items():
        assert np.linalg.norm(gradient - wanted[path]) < 1e-4 * np.linalg.norm(wanted[path]), path
    (_, features_again), gradients_again = step(params, "none")
    np.testing.assert_allclose(features_again, features_KBFD, rtol=1e-5, atol=1e-5)
    for path, gradient in paths(gradients_again).items():
        close(gradient, paths(gradients)[path])


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_an_image_does_not_see_its_neighbours(rows, kind):
    """Each image alone in a row, and each frame as an image of its own, against all of them in one row."""
    tower, _ = towers.make_parts(kind)
    alone = [[visual[f : f + 2]] for visual in [*rows[0], *rows[1]] for f in range(0, len(visual), 2)]
    media = towers.write_rows(kind, [*rows, *alone], PATCHES)
    x_BPE = jax.jit(lambda media: tower(media)[0])(media)
    counts = np.sum(media.frames > 0, axis=1)
    ends = np.cumsum(counts[2:])
    for n, end, ours in zip(counts[2:], ends, x_BPE[2:], strict=True):
        row, end = (0, end) if end <= counts[0] else (1, end - counts[0])
        close(ours[:n], x_BPE[row, end - n : end])
    assert ends[-1] == counts[0] + counts[1]


@pytest.mark.parametrize(("kind", "lora"), [("qwen2_vl", True), ("qwen3_vl", False)])
def test_an_image_is_a_frame_shown_twice(rows, kind, lora):
    tower, _ = towers.make_parts(kind)
    if lora:
        add_lora(tower, "vision", LoraConfig(rank=5, alpha=1.5, targets="patch"), rngs=nnx.Rngs(1))
        tower.patch.lora.b[...] = jax.random.normal(jax.random.key(2), tower.patch.lora.b.shape)
    once, twice = (towers.write_rows(kind, [rows[0]], PATCHES, frames=n) for n in (1, 2))
    assert (once.pixels.shape[2], twice.pixels.shape[2]) == (1, 2)
    embed = jax.jit(lambda media: tower.embed(media))
    close(embed(once), embed(twice))


@pytest.mark.parametrize("side", [7, 48])
def test_positions_are_interpolated(side):
    """One row or column, fewer and more than the table's, exactly the table's."""
    table = np.random.default_rng(0).standard_normal((side**2, 10)).astype(np.float32)
    grids = [(1, 1), (1, 5), (3, 1), (2, 2), (13, 4), (side, side), (side + 9, 2 * side + 1)]
    thw = torch.tensor([(1, *grid) for grid in grids])
    taps, weights = get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=1, kwargs={}
    )
    expected = (torch.from_numpy(table)[taps] * weights[:, :, None]).sum(1)
    places = np.concatenate([np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2) for rows, columns in grids])
    of_each = np.repeat(grids, [rows * columns for rows, columns in grids], axis=0)
    close(jax.jit(interpolate_positions)(table, places[None], of_each[None])[0], expected)


def test_windows_are_counted():
    frames = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 0, 0], [0] * 10])
    places = np.zeros((2, 10, 2), np.int64)
    places[0, :8] = [(0, 6), (7, 7), (0, 8), (1, 9), (8, 0), (9, 7), (9, 1), (8, 0)]
    np.testing.assert_array_equal(window_segments(frames, places, 8), [[1, 1, 2, 2, 3, 3, 4, 4, 0, 0], [0] * 10])


def on_mesh(kind, params, media, sizes, target):
    """The mean square of all features, its gradients, and the shardings of the weights."""
    mesh = make_mesh(MeshConfig(*sizes))
    variables = {
        name: nnx.to_pure_dict(nnx.state(part), extract_fn=lambda variable: variable)
        for name, part in zip(("vision", "projector"), towers.make_parts(kind), strict=True)
    }
    axes = jax.tree.map(
        lambda variable: tuple(variable.get_metadata("out_sharding")),
        variables,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    shardings = named_shardings(mesh, Rules(), params, axes)

    def loss(params, media):
        with placed(mesh, Rules(), target):
            *_, features, deep = forward(kind, params, media, remat="full")
        real = (media.frames[:, :: MERGE**2] > 0)[:, :, None]
        return sum(jnp.mean(jnp.square(x * real)) for x in (features, deep) if x is not None)

    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, None))
        value, gradients = program(jax.device_put(params, shardings), to_devices(media, mesh, Rules()))
    return float(value), paths(jax.device_get(gradients)), paths(shardings)


@pytest.mark.parametrize(
    ("kind", "sizes", "target"),
    [pytest.param("qwen2_5_vl", (1, 2, 4), "tpu", marks=pytest.mark.nightly), ("qwen3_vl", (1, 8, 1), None)],
)
def test_meshes_that_do_not_divide_the_sizes(originals, kind, sizes, target):
    """2.5 has 2 heads and 30 values in its MLP, on four devices; and eight do not divide 36, the width of 3."""
    random = np.random.default_rng(3)
    rows = [[towers.make_visual(random, 2, 4 + 2 * (i % 3)), towers.make_visual(random, 4, 2)] for i in range(8)]
    params, media = towers.make_params(kind, originals[kind]), towers.write_rows(kind, rows, 32)
    want, want_gradients, _ = on_mesh(kind, params, media, (8, 1, 1), None)
    value, gradients, shardings = on_mesh(kind, params, media, sizes, target)
    assert value == pytest.approx(want, rel=1e-5)
    for path, gradient in gradients.items():
        assert np.linalg.norm(gradient - want_gradients[path]) < 1e-4 * np.linalg.norm(want_gradients[path]), path
    embed = "fsdp" if kind == "qwen2_5_vl" else None
    assert tuple(shardings["vision/blocks/mlp/up/w"].spec) == (None, embed, None if kind == "qwen2_5_vl" else "tensor")
    assert tuple(shardings["vision/blocks/attention/qkv/w"].spec)[3] == (None if kind == "qwen2_5_vl" else "tensor")
    assert tuple(shardings["projector/merger/fc1/w"].spec) == ("fsdp", "tensor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 7}, "embed_dim 24 does not divide into num_heads 7"),
        ({"num_heads": 4}, "embed_dim / num_heads = 6, expected a multiple of 4"),
        ({"activation": "relu"}, 'vision.activation = "relu"; known: quick_gelu, gelu, gelu_tanh, silu'),
        ({"norm": "batch"}, 'vision.norm = "batch"; known: layer, rms'),
        ({"window": 5}, "vision.window = 5, expected a multiple of config.model.projector.merge_size = 2"),
        ({"full_layers": (1,)}, "full_layers = (1,), but window = 0"),
        ({"full_layers": (0, 3), "window": 8}, "full_layers = (0, 3), expected ascending numbers of blocks, 0 to 2"),
        ({"deepstack_layers": (-1,)}, "deepstack_layers = (-1,), expected ascending numbers of blocks, 0 to 2"),
        ({"deepstack_layers": (2, 1)}, "deepstack_layers = (2, 1), expected ascending numbers"),
    ],
)
def test_invalid_settings(changes, message):
    config = dataclasses.replace(CONFIGS["qwen2_vl"], **changes)
    with pytest.raises(UserError) as error:
        Tower(config, MERGE, dtype=jnp.dtype("float32"), remat="none", rngs=nnx.Rngs(0))
    assert message in str(error.value)


def test_invalid_merge_size():
    with pytest.raises(UserError, match="merge_size = 0, expected 1 or more"):
        Tower(CONFIGS["qwen2_vl"], 0, dtype=jnp.dtype("float32"), remat="none", rngs=nnx.Rngs(0))
