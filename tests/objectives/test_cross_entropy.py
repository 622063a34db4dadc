import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.objectives.cross_entropy import cross_entropy


def plain(x_BTD, head_VD, targets_BT, weights_BT):
    logits = jnp.einsum("BTD,VD->BTV", x_BTD, head_VD)
    at_target = jnp.take_along_axis(jax.nn.log_softmax(logits), targets_BT[..., None], axis=-1)[..., 0]
    return -(at_target * weights_BT).sum(), ((logits.argmax(-1) == targets_BT) * weights_BT).sum()


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    weights = random.choice([0.0, 0.0, 1.0, 0.5], (3, 13)).astype(np.float32)
    weights[1] = 0.0  # a row without supervision
    x, head = random.normal(size=(3, 13, 5)), random.normal(size=(17, 5))
    return x.astype(np.float32), head.astype(np.float32), random.integers(0, 17, (3, 13)), weights


@pytest.mark.parametrize("chunk", [1, 4, 13, 20])
def test_equals_the_plain_loss_and_its_gradients(arrays, chunk):
    x, head, targets, weights = arrays
    loss, hits = cross_entropy(x, head, targets, weights, chunk)
    expected_loss, expected_hits = plain(x, head, targets, weights)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_array_equal(hits, expected_hits)
    ours = jax.grad(lambda x, w: 3.0 * cross_entropy(x, w, targets, weights, chunk)[0], (0, 1))(x, head)
    expected = jax.grad(lambda x, w: 3.0 * plain(x, w, targets, weights)[0], (0, 1))(x, head)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_unsupervised_positions_meet_no_head(arrays):
    """A NaN where nothing is supervised would spread if it met the head."""
    x, head, targets, weights = arrays
    x = np.where(weights[..., None] > 0, x, np.nan)
    chunk = 1  # the rows differ in length, so whole chunks only are free of padding
    weights[:] = weights[:1]
    x[:] = x[:1]
    loss, _ = cross_entropy(x, head, targets, weights, chunk)
    assert np.isfinite(loss)


def test_nothing_supervised_is_zero(arrays):
    x, head, targets, weights = arrays
    loss, pullback = jax.vjp(lambda x: cross_entropy(x, head, targets, 0 * weights, 4)[0], x)
    assert loss == 0 and not np.any(pullback(jnp.float32(1))[0])


def test_bfloat16_accumulates_in_float32(arrays):
    x, head, targets, weights = arrays
    small = cross_entropy(jnp.bfloat16(x), jnp.bfloat16(head), targets, weights, 4)[0]
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, plain(x, head, targets, weights)[0], rtol=2e-2)
