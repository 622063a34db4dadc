import jax
import numpy as np
import pytest

from jaxvlm.models.attention import attend


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
