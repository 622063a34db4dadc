"""Programs written for TPUs, run on CPU devices with their kernels interpreted: the same numbers as the plain form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm import tuning
from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model
from jaxvlm.models import tpu
from jaxvlm.models.attention import attend
from jaxvlm.models.layers import rope, rope_table
from jaxvlm.objectives import sft
from jaxvlm.sharding import Rules, make_mesh, placed, to_devices
from jaxvlm.training.state import initial_state, state_layout
from jaxvlm.trees import paths
from tests import tiny

MESHES = {"1": (1, 1, 1), "8 fsdp": (1, 8, 1), "2 data x 2 fsdp x 2 tensor": (2, 2, 2)}


def make(name):
    data, fsdp, tensor = MESHES[name]
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])


def attention_inputs(T, *, N=6, K=2, H=64, B=4):
    random = np.random.default_rng(T)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q, k, v, np.sort(random.integers(1, 4, (B, T)).astype(np.int32))


# 577: CLIP's positions, no multiple of a block; 77: less than one; 256: whole blocks. Heads of 64 (CLIP L), 80 (CLIP H)
# and 128 (LLaMA).
@pytest.mark.parametrize(("T", "H", "causal"), [(77, 128, True), (256, 64, True), (577, 64, False), (77, 80, False)])
@pytest.mark.parametrize("name", ["1", pytest.param("2 data x 2 fsdp x 2 tensor", marks=pytest.mark.nightly)])
def test_splash_attention(T, H, causal, name):
    q, k, v, segments = attention_inputs(T, H=H)
    pair = (segments, segments) if causal else None

    def loss(q, k, v, target):
        with placed(make(name), Rules(), target):
            y = attend(q, k, v, pair, causal=causal)
        return jnp.sum(y * jnp.sin(jnp.arange(y.size).reshape(y.shape))), y

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    (_, want), want_gradients = run(q, k, v, "cpu")
    (_, have), gradients = run(q, k, v, "tpu")
    np.testing.assert_allclose(have, want, atol=5e-6)
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


def gradients_of(name, params, target, remat="full"):
    mesh = make(name)
    model = build_model(dataclasses.replace(tiny.config(tiny.recipe()).model, remat=remat))
    layout = state_layout(model, tiny.stage(), 3, mesh, Rules())
    trained = initial_state(layout, 0, params).trained

    def loss(trained, batch):
        with placed(mesh, Rules(), target):
            return sft.loss(model.bind(trained), batch)["loss"][0]

    with jax.set_mesh(mesh):
        batch = to_devices(tiny.batch(), mesh, Rules())
        program = jax.jit(jax.value_and_grad(loss)).lower(trained, batch)
        value, gradients = program.compile()(trained, batch)
    return float(value), {path: np.asarray(x) for path, x in paths(gradients).items()}, program.as_text()


@pytest.fixture(scope="module")
def params():
    return tiny.params(build_model(tiny.config(tiny.recipe()).model))


@pytest.fixture(scope="module")
def plain(params):
    return gradients_of("1", params, "cpu")


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        pytest.param("1", "full", marks=pytest.mark.nightly),
        pytest.param("8 fsdp", "dots", marks=pytest.mark.nightly),
        ("2 data x 2 fsdp x 2 tensor", "attention"),
    ],
)
def test_the_whole_model(monkeypatch, params, plain, name, remat):
    monkeypatch.setattr(tuning, "GRADIENT_PIECE", 16)  # as if the MLP's 56 columns were 11,008
    loss, gradients, program = gradients_of(name, params, "tpu", remat)
    assert "optimization_barrier" in program and "optimization_barrier" not in plain[2]
    assert loss == pytest.approx(plain[0], rel=1e-5)
    for path, want in plain[1].items():
        if path.endswith("attention/k/bias"):
            continue  # adds the same to all logits of a query, so its gradient is 0 except rounding
        difference = np.linalg.norm(gradients[path] - want) / max(np.linalg.norm(want), 1e-12)
        assert difference < 1e-4, (path, difference)


def test_swiglu_and_its_gradients():
    gate, up = np.random.default_rng(0).standard_normal((2, 7, 30)).astype(np.float32) * 5

    def outcome(f):
        y, pullback = jax.vjp(f, gate, up)
        return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    for have, want in zip(outcome(tpu.swiglu), outcome(lambda g, u: jax.nn.silu(g) * u), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_rope_by_a_product():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 10)).astype(np.float32)
    table = rope_table(np.arange(10, dtype=np.int32).reshape(2, 5), 10, 1e4, None)
    with placed(make("1"), Rules(), "tpu"):
        have = rope(x, table)
    np.testing.assert_allclose(have, rope(x, table), atol=1e-6)
