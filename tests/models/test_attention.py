import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxvlm.config import MeshConfig
from jaxvlm.models.attention import attend, block_size
from jaxvlm.sharding import Rules, make_mesh, placed


def plain(q, k, v, segments, causal):
    """Attention written with loops over rows and heads, in float64."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    y = np.zeros(q.shape)
    for b in range(B):
        for n in range(N):
            scores = q[b, :, n].astype(np.float64) @ k[b, :, n // (N // K)].T / np.sqrt(H)
            allowed = np.ones((T, S), bool)
            if segments is not None:
                allowed &= segments[0][b][:, None] == segments[1][b][None]
            if causal:
                allowed &= np.tri(T, S, dtype=bool)
            scores = np.where(allowed, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            y[b, :, n] = weights / weights.sum(-1, keepdims=True) @ v[b, :, n // (N // K)]
    return y


def draw(T, S, *, N=6, K=2, H=10, B=3):
    random = np.random.default_rng(T)
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H)))
    return q, k, v, np.sort(random.integers(0, 4, (B, S)).astype(np.int32))


@pytest.mark.parametrize("T", [1, 31, 259, 513])  # 259: two pieces of the causal triangle, 513: four
def test_causal_with_segments(T):
    q, k, v, segments = draw(T, T)
    have = jax.jit(lambda *x: attend(*x, (segments, segments), causal=True))(q, k, v)
    np.testing.assert_allclose(have, plain(q, k, v, (segments, segments), True), atol=2e-6)


def test_full():
    q, k, v, _ = draw(17, 17)
    np.testing.assert_allclose(attend(q, k, v, causal=False), plain(q, k, v, None, False), atol=2e-6)


def test_one_query_against_a_cache():
    q, k, v, segments = draw(1, 23)
    last = segments[:, -1:]
    have = attend(q, k, v, (last, segments), causal=False)
    np.testing.assert_allclose(have, plain(q, k, v, (last, segments), False), atol=2e-6)


def test_a_query_without_keys_gives_no_nan():
    q, k, v, segments = draw(5, 5)
    grad = jax.grad(lambda q: attend(q, k, v, (segments * 0 + 9, segments), causal=True).sum())(q)
    assert np.isfinite(grad).all()
    assert np.isfinite(attend(q, k, v, (segments * 0 + 9, segments), causal=True)).all()


@pytest.mark.parametrize(("length", "block"), [(2048, 512), (640, 640), (768, 384), (128, 128), (1408, 1408)])
def test_blocks_divide_the_positions(length, block):
    assert block_size(length) == block


# 577 and 729: CLIP's and SigLIP's, odd, which cuDNN's gradients do not take as they are.
@pytest.mark.parametrize(("T", "N", "K", "H"), [(577, 16, 16, 64), (729, 16, 16, 72), (512, 8, 2, 128), (77, 6, 2, 80)])
def test_the_program_for_nvidia_gpus(monkeypatch, T, N, K, H):
    """No GPU is here; but what cuDNN takes is checked while a program is lowered for one."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    causal = K < N
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def loss(q, k, v, segments):
        with placed(mesh, Rules(), "gpu"):
            y = attend(q, k, v, (segments, segments) if causal else None, causal=causal)
        assert y.shape == q.shape
        return y.astype(jnp.float32).sum()

    shapes = ((2, T, N, H), (2, T, K, H), (2, T, K, H))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs, jax.ShapeDtypeStruct((2, T), jnp.int32))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in program and "SoftmaxBackward" in program
