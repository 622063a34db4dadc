import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxvlm.config import MeshConfig
from jaxvlm.models import attention
from jaxvlm.models.attention import attend, block_size
from jaxvlm.models.block_mask import computed_blocks, keys_to_fetch, needed_blocks, queries_to_fetch
from jaxvlm.models.packed_attention import MAX_BLOCKS, can_skip
from jaxvlm.planning.compiler import use_tpu_compiler
from jaxvlm.planning.estimate import Row, skipping_kernel
from jaxvlm.planning.hlo import parse
from jaxvlm.planning.slices import find_slice
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


PACKED = [[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0, 0, 0]]  # 0: padding


@pytest.mark.parametrize(
    ("ids", "causal", "needed"),
    [
        (PACKED, True, ["x...", "xx..", "..x.", "...x"]),
        (PACKED, False, ["xx..", "xx..", "..x.", "...x"]),
        ([[3, 1, 2, 2, 5, 5, 6, 6, 2, 0, 0, 0, 4, 4, 4, 4]], False, ["x.x.", ".x..", "x.x.", "...x"]),
        ([[3, 1, 2, 2, 5, 5, 3, 3, 2, 0, 0, 0, 4, 4, 4, 4]], True, ["x...", "xx..", "x.x.", ".x.x"]),  # 4 is in [3, 5]
        ([[0] * 16], False, ["x...", ".x..", "..x.", "...x"]),
    ],
)
def test_blocks_whose_segments_may_meet(ids, causal, needed):
    have = needed_blocks(jnp.array(ids, jnp.int32), 4, causal=causal)[0]
    assert ["".join(".x"[int(x)] for x in line) for line in have] == needed


def test_the_next_block_is_fetched_in_place_of_a_skipped_one():
    lines = [["x...", "xx..", "..x.", ".xxx"], ["x...", ".x..", "..x.", "...x"]]
    needed = jnp.array([[[x == "x" for x in line] for line in row] for row in lines])
    first, second = [[0, 0, 0, 0], [0, 1, 2, 2], [2, 2, 2, 1], [1, 1, 2, 3]], [[4, 5, 5, 5], [5, 5, 6, 6]]
    assert keys_to_fetch(needed).tolist() == [*first, *second, [6, 6, 6, 7], [7, 7, 7, 7]]
    columns = [[0, 1, 1, 1], [1, 1, 3, 3], [2, 2, 2, 3], [3] * 4, [4] * 4, [5] * 4, [6] * 4, [7] * 4]
    assert queries_to_fetch(needed).T.tolist() == columns


@pytest.mark.parametrize("causal", [True, False])
def test_the_share_that_plans_assume(causal):
    lengths = [300, 501, 100, 77, 240]
    ids = np.repeat([1, 2, 3, 4, 5, 0], [*lengths, 1536 - sum(lengths)])
    needed = needed_blocks(jnp.array(ids[None]), 128, causal=causal)
    assert computed_blocks(lengths, 1536, 128, causal=causal) == np.mean(np.asarray(needed))
    assert computed_blocks([1536], 1536, 512, causal=causal) == (6 / 9 if causal else 1)
    # Three segments that end on the edges of blocks count as if they did not.
    assert computed_blocks([512.0] * 3, 1536, 512, causal=causal) == (5 / 9 if causal else 7 / 9)


def test_where_blocks_are_skipped():
    assert can_skip(1, 1536, 512) and can_skip(MAX_BLOCKS // 8, 4096, 512)
    assert not can_skip(64, 768, 384)  # SigLIP's images: two blocks
    assert not can_skip(1, 640, 640)  # CLIP's: one
    assert not can_skip(MAX_BLOCKS // 8 + 1, 4096, 512)


def rows_of_all_kinds(T=600, *, N=4, K=2, H=10):
    """Samples in order, with padding at the end; samples out of order; a full row; nothing but padding."""
    q, k, v, _ = draw(T, T, N=N, K=K, H=H, B=4)
    random = np.random.default_rng(0)
    ids = np.sort(random.integers(1, 6, (4, T)).astype(np.int32))
    ids[0, 450:], ids[1], ids[3] = 0, random.permutation(ids[1]), 0
    return q, k, v, ids


@pytest.mark.parametrize(
    ("causal", "mesh"),
    [
        pytest.param(True, (1, 1, 1), marks=pytest.mark.nightly),
        pytest.param(False, (1, 1, 1), marks=pytest.mark.nightly),
        (True, (1, 2, 2)),
    ],
)
def test_skipping_changes_nothing(monkeypatch, causal, mesh):
    """600 positions are 5 blocks of 128, and a part of another that is added."""
    monkeypatch.setattr(attention, "ATTENTION_BLOCK", 128)
    q, k, v, ids = rows_of_all_kinds()
    has_token = (ids > 0)[:, :, None, None]

    def run(target, skip):
        monkeypatch.setattr(attention, "can_skip", lambda *_: skip)

        def loss(q, k, v):
            with placed(make_mesh(MeshConfig(*mesh), jax.devices()[: np.prod(mesh)]), Rules(), target):
                y = attend(q, k, v, (ids, ids), causal=causal)
            weights = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return jnp.sum(y * weights * has_token), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return [np.where(has_token, y, 0), *gradients]

    skipped, all_blocks, plain_products = run("tpu", True), run("tpu", False), run("cpu", False)
    for have, same, want in zip(skipped, all_blocks, plain_products, strict=True):
        np.testing.assert_array_equal(have, same)
        np.testing.assert_allclose(have, want, atol=5e-6)


def test_padding_stays_finite_and_blocks_are_skipped(monkeypatch):
    """What is not a number in a skipped block reaches nobody; a masked score of 0 times it would."""
    monkeypatch.setattr(attention, "ATTENTION_BLOCK", 128)
    q, k, v, ids = rows_of_all_kinds(512)
    ids[:3] = np.repeat([1, 2, 3, 0], [128, 200, 56, 128])

    @jax.jit
    def run(q, k, v):
        with placed(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), Rules(), "tpu"):
            return attend(q, k, v, (ids, ids), causal=True)

    y, pullback = jax.vjp(run, q, k, v)
    assert all(np.isfinite(x).all() for x in (y, *pullback(jnp.cos(y))))
    v[0, :128] = np.nan
    have = np.array(run(q, k, v))
    assert np.isnan(have[0, :128]).all() and np.isfinite(have[1:]).all()
    np.testing.assert_array_equal(have[0, 128:], y[0, 128:])


@pytest.mark.tpu_compiler
def test_the_program_for_tpus_has_no_loop_over_rows():
    use_tpu_compiler()
    mesh = make_mesh(MeshConfig(1, 1, 1), find_slice("v5e-1").devices()[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def loss(q, k, v, ids):
        with placed(mesh, Rules(), "tpu"):
            return attend(q, k, v, (ids, ids), causal=True).astype(jnp.float32).sum()

    shapes = ((2, 1536, 2, 128), (2, 1536, 1, 128), (2, 1536, 1, 128))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    ids = jax.ShapeDtypeStruct((2, 1536), jnp.int32, sharding=place)
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs, ids).compile().as_text()
    instructions = [x for computation in parse(text).computations.values() for x in computation]
    assert not [x for x in instructions if x.opcode == "while"]
    square = 2 * 4 * 1536 * 1536 * 128  # operations of a product of all queries and keys
    found = [kernel for x in instructions if x.opcode == "custom-call" and (kernel := skipping_kernel(x))]
    assert sorted(found) == [(Row(1536, True), 512, products * square) for products in (2, 3, 4)]
