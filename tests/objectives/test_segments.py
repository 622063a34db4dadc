"""Log-probabilities of packed segments and their gradients, against those of full logits, on one and eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model
from jaxvlm.objectives import cross_entropy
from jaxvlm.objectives.cross_entropy import token_log_probs
from jaxvlm.objectives.segments import pair_weights, segment_log_probs, segment_sums, split_pairs
from jaxvlm.sharding import Rules, make_mesh, placed
from jaxvlm.training.state import initial_state, state_layout
from tests import tiny


def packed_batch():
    """Rows of three, four, one and no segments, of which some have no supervised token; weights of 1 and 0.5."""
    batch, random = tiny.batch(images=1), np.random.default_rng(1)
    batch.segments[:] = 0
    for row, ends in enumerate(([12, 20, 31], [11, 16, 22, 29], [25], []) * 2):
        for segment, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            batch.segments[row, start:end] = segment
            batch.positions[row, start:end] = np.arange(end - start)
    batch.loss_weights[:] = random.choice([0.0, 1.0, 0.5], batch.segments.shape) * (batch.segments > 0)
    batch.loss_weights[:, :9] = 0.0
    batch.loss_weights[0, [11, 19, 30]] = batch.loss_weights[1, [10, 15, 21, 28]] = 1.0
    batch.loss_weights[4:6], batch.loss_weights[2] = batch.loss_weights[:2], 0.0
    return batch


def naive(model, batch):
    log_probs_BTV = jax.nn.log_softmax(model.logits(model.hidden(batch)))
    log_probs_BT = jnp.take_along_axis(log_probs_BTV, batch.targets[..., None], axis=-1)[..., 0] * batch.loss_weights
    of_segment = [jnp.where(batch.segments == s, log_probs_BT, 0).sum(axis=1) for s in range(1, 16)]
    return jnp.stack(of_segment, axis=1)


@pytest.mark.parametrize(
    ("mesh", "tied"),
    [
        pytest.param(MeshConfig(1, 1, 1), False, marks=pytest.mark.nightly),
        pytest.param(MeshConfig(1, 1, 1), True, marks=pytest.mark.nightly),
        pytest.param(MeshConfig(1, 8, 1), False, marks=pytest.mark.nightly),
        (MeshConfig(2, 2, 2), True),
    ],
)
def test_equals_full_logits_and_their_gradients(mesh, tied):
    recipe, batch = tiny.recipe(), packed_batch()
    recipe.model.language.tie_embeddings = tied
    model = build_model(tiny.config(recipe).model)
    on = make_mesh(mesh, jax.devices()[: np.prod([mesh.data, mesh.fsdp, mesh.tensor])])
    params = initial_state(state_layout(model, tiny.stage(), 1, on, Rules()), 0, tiny.params(model)).trained
    signs = jnp.asarray(np.random.default_rng(2).choice([-1.0, 1.0, 0.25], (8, 15)))  # a pair's loss has both

    def run(function):
        def scalar(params):
            with placed(on, Rules()):
                values = function(model.bind(params), batch)
            return (values * signs).sum(), values

        with jax.set_mesh(on):
            return jax.device_get(jax.jit(jax.grad(scalar, has_aux=True))(params))

    gradients, values = run(segment_log_probs)
    want_gradients, want = run(naive)
    np.testing.assert_allclose(values, want, rtol=1e-6, atol=1e-5)
    assert (values[3] == 0).all() and (values[1, :4] < 0).all()
    for (path, ours), expected in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(want_gradients), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=2e-6 * max(1.0, np.abs(expected).max()), err_msg=str(path))


@pytest.mark.parametrize("chunk", [1, 4, 13, 20])
def test_each_token_has_its_own_cotangent(chunk):
    random = np.random.default_rng(0)
    x, head = (random.normal(size=size).astype(np.float32) for size in ((3, 13, 5), (17, 5)))
    targets, cotangent = random.integers(0, 17, (3, 13)), random.normal(size=(3, 13)).astype(np.float32)
    supervised = random.random((3, 13)) < 0.4
    supervised[1] = False
    cotangent[0, :4] = 0.0  # a cotangent of 0 or below is no unsupervised position

    def plain(x, head):
        log_probs = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", x, head))
        return jnp.where(supervised, jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0], 0)

    ours, pullback = jax.vjp(lambda x, head: token_log_probs(x, head, targets, supervised, chunk), x, head)
    want, want_pullback = jax.vjp(plain, x, head)
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    for a, b in zip(pullback(cotangent), want_pullback(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_logits_of_a_whole_batch_are_never_made(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOSS_POSITIONS", 4 * 8)
    model, batch = build_model(tiny.config(tiny.recipe()).model), packed_batch()

    def program(function):
        total = jax.jit(jax.grad(lambda params: function(model.bind(params), batch).sum()))
        return total.lower(model.abstract).as_text()

    whole = ("8x31x101x", "248x101x")
    assert any(shape in program(naive) for shape in whole)
    assert not any(shape in program(segment_log_probs) for shape in whole)


def test_pairs_are_segments_beside_each_other():
    batch = packed_batch()
    sums = np.asarray(segment_sums(batch.loss_weights, batch))
    assert sums.shape == (8, 15) and sums.sum() == batch.loss_weights.sum()
    chosen, rejected = split_pairs(sums)
    assert chosen.shape == rejected.shape == (8, 7)
    np.testing.assert_array_equal(rejected[1, :2], sums[1, [1, 3]])
    assert np.asarray(pair_weights(batch)).sum(axis=1).tolist() == [1, 2, 0, 0] * 2
