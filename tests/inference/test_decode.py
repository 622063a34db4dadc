"""Decoding with the cache against the full forward, sampling, stopping and compilation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.data.rows.packing import fill_row
from jaxvlm.data.sample import Sample
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.inference.decoding import decode
from jaxvlm.inference.programs import Programs, Requests, bucket
from jaxvlm.inference.sampling import GREEDY, Sampling, nucleus, sample
from jaxvlm.sharding import Placement, Rules, make_mesh, named_shardings, to_devices
from tests import tiny
from tests.inference.programs import compilations
from tests.layouts import empty_batch, expand, slots

P, SIZE, VOCAB = 9, 21, 101
# (tokens of text before each image and after the last one, ...): two images, one, none, a longer one.
ROWS = ((2, 3, 4), (1, 6), (5,), (4, 12))


@pytest.fixture(scope="module")
def model():
    return build_model(tiny.config(tiny.recipe()).model)


@pytest.fixture(scope="module")
def params(model):
    # Random weights repeat one token for ever; larger ones make the answers vary.
    return jax.tree.map(lambda w: jnp.asarray(w * 1.7), tiny.params(model, 3))


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda params, batch: model.bind(params).logits(model.bind(params).hidden(batch)))


def prompt(random, texts):
    """A sample with an image between each two stretches of text."""
    tokens, is_image = [], []
    for number, length in enumerate(texts):
        tokens += [0] * (number > 0) + random.integers(1, VOCAB, length).tolist()
        is_image += [True] * (number > 0) + [False] * length
    tokens = np.array(tokens, np.int32)
    return Sample(tokens, np.zeros(len(tokens), np.float32), np.array(is_image))


def batch_of(rows, length, images=2):
    """A batch of the rows of `ROWS` with these numbers (None: padding), always with the same contents."""
    layout = slots(SIZE, P)
    batch = empty_batch(layout, rows=len(rows), tokens=length, images=images)
    for place, row in enumerate(rows):
        if row is not None:
            random = np.random.default_rng(row)
            piece = expand(prompt(random, ROWS[row]), layout)
            pixels = random.integers(0, 256, (len(ROWS[row]) - 1, SIZE, SIZE, 3), dtype=np.uint8)
            fill_row(batch, place, [piece], list(pixels), layout)
    return batch


def numbers(rows):
    return np.array([-1 if row is None else row for row in rows], np.int32)


def answers(model, params, rows, length=48, stop_ids=(), count=6, images=2, sampling=None):
    programs = Programs(model, params, tuple(stop_ids))
    return decode(programs, batch_of(rows, length, images), numbers(rows), count, sampling or Sampling())


def one_by_one(forward, params, row, count):
    """Greedy answer of a row from the full forward of an ever longer row."""
    batch = batch_of([row], 48)
    length = int((batch.segments > 0).sum())
    for at in range(length, length + count):
        logits = forward(params, batch)
        batch.tokens[0, at] = int(jnp.argmax(logits[0, at - 1]))
        batch.positions[0, at], batch.segments[0, at] = at, 1
    return batch.tokens[0, length : length + count]


def test_cached_decoding_is_the_full_forward_token_by_token(model, params, forward):
    tokens, lengths = answers(model, params, range(4))
    expected = [one_by_one(forward, params, row, 6) for row in range(4)]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, [6, 6, 6, 6])
    assert len({tuple(row) for row in tokens}) == 4  # the prompts matter


def test_neighbours_and_padding_change_no_answer(model, params):
    tokens, _ = answers(model, params, range(4))
    other, _ = answers(model, params, [3, None, 2, None, 1, 0], length=64)
    np.testing.assert_array_equal(other[[5, 4, 2, 0]], tokens)
    assert not other[[1, 3]].any()
    alone, _ = answers(model, params, [2], length=32, images=0)  # without image slots the encoder is not run
    np.testing.assert_array_equal(alone, tokens[2:3])


def test_weights_go_to_the_prompts(model):
    """Left alone, the compiler sends parts of all prompts to the weights: nine times as long to read 32 on 16 chips."""
    mesh, T = make_mesh(MeshConfig(1, 8, 1)), 67  # a length that no weight has
    place = Placement(mesh, Rules())
    shardings = named_shardings(mesh, Rules(), model.abstract, model.axes)
    batch = to_devices(batch_of([0, 1, 2, 3] * 2, T), mesh, Rules())
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract, shardings)

    def run(params, batch):
        programs, requests = Programs(model, params, (2,), place), Requests.same(np.arange(8), 4, GREEDY)
        rows, _ = programs.prefill(batch, programs.encode(batch.media), requests, room=4, greedy=True)
        return programs.step(rows, 4, greedy=True)

    text = jax.jit(run).lower(params, batch).compile().as_text()
    assert shapes_of(text, "all-gather")  # of weights
    assert not [shape for shape in shapes_of(text, "all-reduce") if T in shape or 8 * T in shape]


def shapes_of(program, kind):
    """The shapes of what all operations of a kind give."""
    results = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program)
    return [tuple(map(int, sizes.split(","))) for one in results for sizes in re.findall(r"\[([\d,]+)\]", one)]


def test_samples_depend_on_the_seed_and_the_number_alone(model, params):
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=40, seed=5)
    tokens, _ = answers(model, params, range(4), sampling=sampling)
    other, _ = answers(model, params, [2, None, 3, 0], sampling=sampling)
    np.testing.assert_array_equal(other[[3, 0, 2]], tokens[[0, 2, 3]])
    different, _ = answers(model, params, range(4), sampling=Sampling(1.0, 0.9, seed=6))
    assert (different != tokens).any(axis=1).all()


def test_a_tiny_temperature_or_nucleus_is_greedy(model, params):
    greedy, _ = answers(model, params, range(4))
    for sampling in (Sampling(temperature=1e-9), Sampling(temperature=1.0, top_p=1e-9)):
        np.testing.assert_array_equal(answers(model, params, range(4), sampling=sampling)[0], greedy)


def test_a_row_ends_at_its_stop_id_and_the_loop_with_the_last_row(model, params):
    free, _ = answers(model, params, range(4))
    stop = (*(int(row[2]) for row in free), int(free[1, 0]))
    tokens, lengths = answers(model, params, range(4), stop_ids=stop)
    expected = [np.flatnonzero(np.isin(row, stop))[0] for row in free]
    np.testing.assert_array_equal(lengths, expected)
    assert lengths[1] == 0 and max(lengths) == 2
    for row in range(4):
        np.testing.assert_array_equal(tokens[row, : lengths[row] + 1], free[row, : lengths[row] + 1])
        assert not tokens[row, lengths[row] + 1 :].any()
    rows, first = prefilled(Programs(model, params, stop), range(4), 6)
    read = int(rows.cache.next)
    rows, more = Programs(model, params, stop).step(rows, 5, greedy=True)
    assert int(rows.cache.next) - read == 2  # the first of the three tokens is the prefill's
    assert not rows.left.any() and first.shape == (4, 1) and (np.asarray(more)[:, 2:] == -1).all()


def prefilled(programs, rows, limit):
    batch = batch_of(rows, 48)
    requests = Requests.same(numbers(rows), limit, GREEDY)
    return programs.prefill(batch, programs.encode(batch.media), requests, room=8, greedy=True)


def test_rows_of_one_batch_have_limits_and_samplings_of_their_own(model, params):
    programs, batch = Programs(model, params, ()), batch_of(range(4), 48)
    asked = [Sampling(), Sampling(1.0, 0.9, 5), Sampling(), Sampling(2.0, 0.5, 6)]
    each = [Requests.same(numbers([row]), 2 + row, sampling) for row, sampling in enumerate(asked)]
    requests = Requests(*(np.concatenate(field) for field in zip(*each, strict=True)))
    rows, first = programs.prefill(batch, programs.encode(batch.media), requests, room=8, greedy=False)
    _, more = programs.step(rows, 7, greedy=False)
    tokens = np.concatenate([first, more], axis=1)
    for row, sampling in enumerate(asked):
        alone, _ = answers(model, params, range(4), sampling=sampling)
        np.testing.assert_array_equal(tokens[row, : 2 + row], alone[row, : 2 + row])
        assert (tokens[row, 2 + row :] == -1).all()


def test_one_program_for_each_shape(model, params):
    with compilations() as found:
        for rows, shift in (([0, 1], 0.0), ([2, 3], 0.1), ([1, None], 0.2)):
            answers(model, jax.tree.map(lambda w, shift=shift: w + shift, params), rows, count=9)
    assert found == {"_encode": 1, "_prefill": 1, "_step": 1}
    with compilations() as found:
        for seed, count in ((0, 9), (1, 12), (2, 10)):
            answers(model, params, [0, 1], count=count, sampling=Sampling(0.5 + seed, 0.9, seed))
    assert found == {"_encode": 0, "_prefill": 1, "_step": 1}
    with compilations() as found:
        answers(model, params, [0, 1], length=64, count=9)
    assert found == {"_encode": 0, "_prefill": 1, "_step": 1}


@pytest.mark.parametrize("target", [pytest.param("none", marks=pytest.mark.nightly), "cpu", "tpu"])
def test_sharded_rows_and_weights_give_the_same_answers(model, params, target):
    rows = [0, 1, 2, 3, None, 3, 2, 1]
    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), Rules()
    sharded = jax.device_put(params, named_shardings(mesh, rules, model.abstract, model.axes))
    place = None if target == "none" else Placement(mesh, rules, target)
    batch = batch_of(rows, 48)
    if place is None:
        batch = to_devices(batch, mesh, rules)
    with compilations() as found:
        tokens, _ = decode(Programs(model, sharded, (), place), batch, numbers(rows), 38)
    assert found == {"_encode": 1, "_prefill": 1, "_step": 1}
    tokens = tokens[:, :6]
    np.testing.assert_array_equal(tokens, answers(model, params, rows)[0])


def numpy_nucleus(probabilities, top_p):
    kept, total = np.zeros(len(probabilities), bool), 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= top_p:
            break
        kept[token] = True
        total += probabilities[token]
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_exactly_the_nucleus(top_p):
    logits = np.random.default_rng(0).normal(0, 2, (40, 29)).astype(np.float32)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = [numpy_nucleus(row, top_p) for row in probabilities]
    np.testing.assert_array_equal(nucleus(logits, top_p, 0), expected)


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (5, 0.8), (29, 0.5), (40, 1.0)])
@pytest.mark.torch
def test_top_k_is_that_of_transformers(top_k, top_p):
    import torch
    import transformers

    logits = np.random.default_rng(1).normal(0, 2, (40, 29)).astype(np.float32)
    scores = transformers.TopKLogitsWarper(top_k)(None, torch.from_numpy(logits))
    scores = transformers.TopPLogitsWarper(top_p)(None, scores)
    np.testing.assert_array_equal(nucleus(logits, top_p, top_k), np.isfinite(scores.numpy()))


def test_of_equal_tokens_the_first_come_first():
    np.testing.assert_array_equal(nucleus(np.zeros((1, 4), np.float32), 0.5, 0), [[True, True, False, False]])
    np.testing.assert_array_equal(nucleus(np.zeros((1, 4), np.float32), 1.0, 3), [[True, True, True, False]])


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.broadcast_to(np.log(probabilities).astype(np.float32), (20_000, 4))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.bincount(sample(logits, keys, 1.0, 0.8, 0), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.625, 0.375, 0, 0], atol=0.015)
    sharper = probabilities**2 / (probabilities**2).sum()
    drawn = np.bincount(sample(logits, keys, 0.5, 1.0, 0), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, sharper, atol=0.015)


def test_buckets():
    assert [bucket(n) for n in (1, 32, 33, 49, 65, 79, 97, 4000)] == [32, 32, 48, 64, 96, 96, 128, 4096]
    assert len({bucket(n) for n in range(1, 4097)}) == 15


def test_wrong_sampling_names_all_that_is_wrong():
    with pytest.raises(UserError, match=r"temperature is -1.*top_p is 0.*top_k is -3.*seed is -2"):
        Sampling(-1, 0, -3, -2)
    with pytest.raises(UserError, match="temperature is nan"):
        Sampling(float("nan"))
