"""What must hold of the model whatever its weights are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.sharding import Rules, make_mesh, named_shardings
from jaxvlm.trees import paths
from jaxvlm.tuning import POLICIES
from tests.parity import tiny_llava

CONFIG = tiny_llava.tiny_config()


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """Random weights, norms and biases too."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        fan_in = leaf.size // leaf.shape[0] // leaf.shape[-1] if leaf.ndim > 2 else leaf.shape[0]
        noise = random.standard_normal(leaf.shape).astype(np.float32) / np.sqrt(fan_in)
        return jnp.asarray(noise + (path[-1].key == "scale"))

    return jax.tree.map_with_path(draw, model.abstract)


@pytest.fixture(scope="module")
def samples():
    return [
        tiny_llava.make_sample(CONFIG, i, images=n, text=text) for i, (n, text) in enumerate([(1, 8), (2, 9), (0, 10)])
    ]


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda params, batch: tiny_llava.loss_of(model, params, batch))


def test_axes_have_a_name_for_each_dimension_and_a_rule(model):
    shapes, axes = paths(model.abstract), paths(model.axes)
    assert list(shapes) == list(axes)
    for path, names in axes.items():
        assert isinstance(names, tuple) and len(names) == len(shapes[path].shape), path
        assert shapes[path].dtype == jnp.float32
        assert (names[0] == "layers") == ("/blocks/" in path), path
        Rules().partition(names, path)


def test_paths(model):
    found = set(paths(model.abstract))
    assert {path.split("/")[0] for path in found} == {"vision", "projector", "language"}
    assert {"language/blocks/attention/q/w", "language/embed/w", "language/head/w", "projector/fc2/bias"} <= found
    assert {path.split("/")[-1] for path in found} == {"w", "bias", "scale", "class_token", "positions"}
    assert "language/head/w" not in paths(build_model(tiny_llava.tied_config()).abstract)


def test_init_fills_the_abstract_tree_on_a_mesh(model):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = named_shardings(mesh, Rules(), model.abstract, model.axes)
    with jax.set_mesh(mesh):
        made = jax.jit(model.init, out_shardings=shardings)(jax.random.key(3))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.abstract
    )
    flat = paths(made)
    assert np.std(flat["language/blocks/mlp/up/w"]) == pytest.approx(48**-0.5, rel=0.05)
    assert np.std(flat["language/blocks/mlp/down/w"]) == pytest.approx((56 * 2 * 3) ** -0.5, rel=0.05)
    assert not np.array_equal(flat["language/blocks/mlp/up/w"][0], flat["language/blocks/mlp/up/w"][1])
    assert not np.array_equal(flat["language/blocks/mlp/up/w"], flat["language/blocks/mlp/gate/w"])


def test_padding_and_packing_change_nothing(forward, params, samples):
    rows = [[samples[0], samples[2]], [samples[1]]]
    short = tiny_llava.make_batch(CONFIG, rows, tokens=27, images=2)
    padded = tiny_llava.make_batch(CONFIG, [*rows, []], tokens=40, images=3)
    padded.tokens[:, 27:] = 5  # whatever stands there
    loss, logits = forward(params, short)
    padded_loss, padded_logits = forward(params, padded)
    assert float(loss) == pytest.approx(float(padded_loss), rel=1e-6)
    np.testing.assert_allclose(logits, padded_logits[:2, :27], atol=1e-5)
    assert np.isfinite(padded_logits).all()


def test_no_position_attends_across_segments(forward, params, samples):
    rows = [[samples[0], samples[2]], [samples[1]]]
    batch = tiny_llava.make_batch(CONFIG, rows, tokens=40, images=2)
    other = tiny_llava.make_batch(CONFIG, rows, tokens=40, images=2)
    first = len(samples[0].tokens)
    other.tokens[0, first : first + 4] = [9, 8, 9, 8]  # of the second sample
    other.media.pixels[1, 0] = 0  # the first image of the other row
    before, after = np.asarray(forward(params, batch)[1]), np.asarray(forward(params, other)[1])
    assert np.array_equal(before[0, :first], after[0, :first])
    assert not np.array_equal(before[0, first:], after[0, first:])
    assert np.array_equal(before[1, :1], after[1, :1])  # text in front of the image
    assert not np.array_equal(before[1, 1:27], after[1, 1:27])
    other = tiny_llava.make_batch(CONFIG, rows, tokens=40, images=2)
    other.tokens[0, :1] = 9  # of the first sample
    other.media.pixels[0, 0] = 0
    after = np.asarray(forward(params, other)[1])
    second = slice(first, first + len(samples[2].tokens))
    assert np.array_equal(before[0, second], after[0, second])
    assert not np.array_equal(before[0, :first], after[0, :first])


def test_cached_decoding_equals_the_full_forward(model, params, samples, forward):
    """Three prompts of different lengths and a row of padding, four more tokens each, under one while loop."""
    steps, T = 4, 27
    more = np.random.default_rng(2).integers(8, 101, (4, steps), dtype=np.int32)
    prompts = tiny_llava.make_batch(CONFIG, [*([sample] for sample in samples), []], tokens=T, images=2)
    lengths = np.array([len(sample.tokens) for sample in samples] + [0])

    @jax.jit
    def decode(params, batch, more, lengths):
        vlm = model.bind(params)
        first, cache = vlm.prefill(batch, vlm.encode(batch.media), T + steps)

        def body(carry):
            t, cache, logits = carry
            here, cache = vlm.extend(jax.lax.dynamic_slice_in_dim(more, t, 1, axis=1), (lengths + t)[:, None], cache)
            return t + 1, cache, logits.at[t + 1].set(here)

        logits = jnp.zeros((steps + 1, *first.shape)).at[0].set(first)
        return jax.lax.while_loop(lambda carry: carry[0] < steps, body, (0, cache, logits))

    _, cache, logits = decode(params, prompts, more, lengths)
    assert int(cache.next) == T + steps and cache.keys.shape == (3, 4, T + steps, 2, 10)
    longer = [np.concatenate([sample.tokens, more[b]]) for b, sample in enumerate(samples)]
    longer = [tiny_llava.Sample(tokens, samples[b].images, tokens > 0) for b, tokens in enumerate(longer)]
    _, want = forward(params, tiny_llava.make_batch(CONFIG, [[sample] for sample in longer], tokens=40, images=2))
    for b, n in enumerate(lengths[:3]):
        np.testing.assert_allclose(logits[:, b], want[b, n - 1 : n + steps], atol=1e-5)
    assert np.isfinite(logits).all()


def test_a_prompt_read_in_parts_is_the_prompt_read_at_once(model, params, samples):
    """Rows whose caches have lengths of their own: the parts end in padding, and tokens follow each row's last."""
    T, S = 27, 40
    prompts = tiny_llava.make_batch(CONFIG, [[sample] for sample in samples], tokens=T, images=2)
    lengths = np.array([len(sample.tokens) for sample in samples])
    parts = np.array([[5, 7, 27], [1, 8, 27], [3, 4, 27]])  # ends of the parts of each row
    more = np.random.default_rng(2).integers(8, 101, (3, 3), dtype=np.int32)

    def part(batch, begins, ends):
        """The tokens of each row from `begins` to `ends`."""
        at = begins[:, None] + np.arange(T)
        here = (at < np.minimum(ends, lengths)[:, None]).astype(np.int32)

        def row(x, rest=0):
            return np.where(here, np.take_along_axis(x, np.minimum(at, T - 1), 1), rest)

        made = batch._replace(media=None, targets=None, loss_weights=None)
        index = row(batch.image_index, -1)
        return made._replace(tokens=row(batch.tokens), positions=row(batch.positions), segments=here, image_index=index)

    @jax.jit
    def whole(params, batch):
        vlm = model.bind(params)
        logits, cache = vlm.prefill(batch, vlm.encode(batch.media), S)
        found = [logits]
        for t in range(3):
            logits, cache = vlm.extend(more[:, t : t + 1], lengths[:, None] + t, cache)
            found.append(logits)
        return jnp.stack(found)

    @jax.jit
    def in_parts(params, media, first, second, third):
        vlm = model.bind(params)
        features = vlm.encode(media)
        _, cache = vlm.prefill(first, features, S)
        cache = dataclasses.replace(cache, next=jnp.sum(first.segments, axis=1))
        _, cache = vlm.prefill_more(second, features, cache)
        logits, cache = vlm.prefill_more(third, features, cache)
        found, live = [logits], jnp.array([[1], [1], [1]])
        for t in range(3):
            logits, cache = vlm.extend(more[:, t : t + 1], lengths[:, None] + t, cache, live, 32)
            found.append(logits)
            _, cache = vlm.extend(more[:, t : t + 1], lengths[:, None] + t, cache, 0 * live)  # changes nothing
        return jnp.stack(found), cache

    cut = [part(prompts, b, e) for b, e in zip(np.stack([0 * parts[:, 0], *parts.T[:2]]), parts.T, strict=True)]
    want = np.asarray(whole(params, prompts))
    have, cache = in_parts(params, prompts.media, *cut)
    np.testing.assert_allclose(have, want, atol=1e-5)
    np.testing.assert_array_equal(cache.next, lengths + 3)
    np.testing.assert_array_equal(np.sum(cache.segments, axis=1), lengths + 3)


def test_a_cache_must_hold_the_prompt(model, params, samples):
    batch = tiny_llava.make_batch(CONFIG, [[samples[2]]], tokens=27, images=1)
    with pytest.raises(ValueError, match="max_length 20 is less than the 27 tokens"):
        jax.eval_shape(lambda p: model.bind(p).prefill(batch, None, 20), params)


def test_bfloat16_is_close(forward, params, samples):
    half = build_model(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    batch = tiny_llava.make_batch(CONFIG, [[samples[0], samples[2]], [samples[1]]], tokens=40, images=2)
    loss, logits = forward(params, batch)
    half_loss, half_logits = jax.jit(lambda p, b: tiny_llava.loss_of(half, p, b))(params, batch)
    assert half_logits.dtype == jnp.float32
    assert jax.eval_shape(lambda p: half.bind(p).hidden(batch), params).dtype == jnp.bfloat16
    assert float(half_loss) == pytest.approx(float(loss), rel=0.02)
    assert np.std(half_logits - logits) < 0.03 * np.std(logits)


@pytest.mark.parametrize("names", [("none", "full"), pytest.param(tuple(POLICIES), marks=pytest.mark.nightly)])
def test_remat_policies_give_the_same_gradients(params, samples, names):
    batch = tiny_llava.make_batch(CONFIG, [[samples[0], samples[2]]], tokens=28, images=1)
    gradients = {}
    for name in names:
        model = build_model(dataclasses.replace(CONFIG, remat=name))
        gradients[name] = jax.jit(jax.grad(lambda p, m=model: tiny_llava.loss_of(m, p, batch)[0]))(params)
    for name in names:
        for path, want in paths(gradients["none"]).items():
            np.testing.assert_allclose(paths(gradients[name])[path], want, atol=1e-6, err_msg=path)
    # Blocks behind the feature layer, which are not computed, have gradients of zero.
    for path, gradient in paths(gradients["full"]["vision"]["blocks"]).items():
        assert gradient[:3].any(axis=tuple(range(1, gradient.ndim))).all(), path
        assert not gradient[3].any(), path


@pytest.mark.parametrize("layer", [-1, -3])
def test_feature_layer(params, samples, layer):
    """The feature behind a block does not depend on the blocks after it."""
    model = build_model(dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, feature_layer=layer)))
    shortened = jax.tree.map(lambda w: w[: 5 + layer], params["vision"]["blocks"])
    vision = dataclasses.replace(CONFIG.vision, num_layers=5 + layer, feature_layer=-1)
    short = build_model(dataclasses.replace(CONFIG, vision=vision))
    pixels = np.stack(samples[1].images)
    want = short.bind({**params, "vision": params["vision"] | {"blocks": shortened}}).vision(pixels)
    np.testing.assert_allclose(model.bind(params).vision(pixels), want, atol=1e-6)


def test_a_batch_without_image_slots(forward, params, samples):
    _, want = forward(params, tiny_llava.make_batch(CONFIG, [[samples[2]]], tokens=12, images=1))
    _, have = forward(params, tiny_llava.make_batch(CONFIG, [[samples[2]]], tokens=12, images=0))
    assert np.array_equal(want, have)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            None,
            {"remat": "ful"},
            'remat = "ful" (did you mean "full"?); known: none, dots, attention, query_key, query, full, offload',
        ),
        (None, {"compute_dtype": "float16"}, 'compute_dtype = "float16", expected'),
        ("projector", {"kind": "mlp0x_gelu"}, 'projector.kind = "mlp0x_gelu", expected "linear"'),
        ("vision", {"feature_layer": -5}, "feature_layer = -5, expected -4"),
        ("vision", {"num_heads": 3}, "embed_dim 40 does not divide into 3 heads"),
        ("language", {"num_kv_heads": 4}, "num_heads 6 must be a multiple of num_kv_heads 4"),
    ],
)
def test_configs_that_make_no_model(part, values, message):
    changed = values if part is None else {part: dataclasses.replace(getattr(CONFIG, part), **values)}
    with pytest.raises(UserError) as error:
        build_model(dataclasses.replace(CONFIG, **changed))
    assert message in str(error.value)


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp3x_gelu", 3)])
def test_projectors(kind, layers):
    config = dataclasses.replace(CONFIG, projector=dataclasses.replace(CONFIG.projector, kind=kind))
    model = build_model(config)
    assert set(model.abstract["projector"]) == {f"fc{i}" for i in range(1, layers + 1)}
    x = jax.ShapeDtypeStruct((2, 9, 40), np.float32)
    y = jax.eval_shape(lambda params, x: model.bind(params).projector(x), model.abstract, x)
    assert y.shape == (2, 9, 48)
