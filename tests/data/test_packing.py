"""Packs samples into rows: an explicit example, and properties of the plan."""

from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxvlm.batch import Batch
from jaxvlm.data.rows import packing
from jaxvlm.data.rows.packing import FitError, check_row, fill_row, fit, measure, plan_rows
from jaxvlm.data.sample import Sample
from jaxvlm.errors import UserError
from tests.benchmarks.packing import make_mixture
from tests.layouts import expand, extents, slots

IM = 9  # placeholder id


def sample(tokens, weights):
    tokens = np.array(tokens, np.int32)
    return Sample(tokens, np.array(weights, np.float32), tokens == IM)


def spec(rows=1, tokens=10, images=2):
    return Batch.spec(rows=rows, tokens=tokens, media=slots(2, 1).spec(rows, images))


def expanded_length(one, features):
    return measure(one, extents(one, slots(2, features))).length


def fitted(one, features, T):
    return fit(one, extents(one, slots(2, features)), tokens=T, units=1, unit="images")


def pixels(value):
    return np.full((2, 2, 3), value, np.uint8)


def test_the_example_in_batch():
    batch = Batch.empty(spec())
    one = slots(2, 1)
    pieces = [expand(sample([1, IM, 7, 8, 2], [0, 0, 0, 1, 1]), one), expand(sample([1, IM, 6, 2], [0, 0, 0, 1]), one)]
    fill_row(batch, 0, pieces, [pixels(50), pixels(60)], one)
    batch.check(spec())
    rows = {
        "tokens      ": [1, IM, 7, 8, 2, 1, IM, 6, 2, 0],
        "targets     ": [0, 7, 8, 2, 0, 0, 6, 2, 0, 0],
        "loss_weights": [0, 0, 1, 1, 0, 0, 0, 1, 0, 0],
        "positions   ": [0, 1, 2, 3, 4, 0, 1, 2, 3, 0],
        "segments    ": [1, 1, 1, 1, 1, 2, 2, 2, 2, 0],
        "image_index ": [-1, 0, -1, -1, -1, -1, 1, -1, -1, -1],
    }
    for name, row in rows.items():
        assert getattr(batch, name.strip())[0].tolist() == row, name
    assert [image[0, 0, 0] for image in batch.media.pixels[0]] == [50, 60]


def test_two_features_an_image_and_two_images_a_sample():
    two = slots(2, 2)
    piece = expand(sample([1, IM, 5, IM, 7], [0, 0, 0, 0, 1]), two)
    assert piece.tokens.tolist() == [1, IM, IM, 5, IM, IM, 7]
    assert piece.targets.tolist() == [0, 0, 5, 0, 0, 7, 0]
    assert piece.loss_weights.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert piece.image_index.tolist() == [-1, 0, 1, -1, 2, 3, -1]
    batch = Batch.empty(spec(tokens=12, images=3))
    fill_row(batch, 0, [expand(sample([1, IM, 7], [0, 0, 1]), two), piece], [pixels(i) for i in (1, 2, 3)], two)
    assert batch.image_index[0].tolist() == [-1, 0, 1, -1, -1, 2, 3, -1, 4, 5, -1, -1]


def test_the_text_may_hold_the_placeholder_id():
    """The placeholder is <unk> if a tokenizer has no <image>; only `is_image` distinguishes the two."""
    mixed = Sample(np.array([1, IM, IM, 7], np.int32), np.array([0, 0, 1, 1], np.float32), np.array([0, 1, 0, 0], bool))
    piece = expand(mixed, slots(2, 2))
    assert piece.targets.tolist() == [0, 0, IM, 7, 0]
    assert piece.loss_weights.tolist() == [0, 0, 1, 1, 0]


def test_an_empty_batch_is_padding():
    batch = Batch.empty(spec(rows=3))
    batch.check(spec(rows=3))
    assert not batch.segments.any() and not batch.loss_weights.any() and (batch.image_index == -1).all()


def test_fit_keeps_what_fits():
    whole = sample([1, IM, 5, 7, 8, 2], [0, 0, 0, 1, 1, 1])
    assert expanded_length(whole, 3) == 8
    assert fitted(whole, 3, 8) is whole


def test_fit_cuts_text_after_the_last_image():
    cut = fitted(sample([1, IM, 5, 7, 8, 2], [0, 0, 0, 1, 1, 1]), 3, 6)
    assert cut.tokens.tolist() == [1, IM, 5, 7]
    assert expanded_length(cut, 3) == 6


@pytest.mark.parametrize(
    "tokens, weights, T, reason, words",
    [
        ([1, IM, 5, 7, 2], [0, 0, 0, 1, 1], 5, "answer_beyond_row", "first answer begins at position 6, a row has 5"),
        ([1, IM, 5, 7, 2], [0, 0, 0, 1, 1], 3, "image_beyond_row", "last image ends at position 4, a row has 3"),
        ([1, 7, 2, IM, 7, 2], [0, 1, 1, 0, 1, 1], 5, "image_beyond_row", "ends at position 6, a row has 5"),
        ([1, IM, IM, 7], [0, 0, 0, 1], 20, "too_many_images", "2 images, a row has room for 1"),
        ([1, IM, 7], [0, 0, 0], 20, "nothing_supervised", "no answer"),
        ([7, 1], [1, 0], 20, "nothing_supervised", "no answer"),
    ],
)
def test_fit_refuses(tokens, weights, T, reason, words):
    with pytest.raises(FitError, match=words) as caught:
        fitted(sample(tokens, weights), 3, T)
    assert caught.value.reason == reason


def test_rows_too_short_for_any_image():
    check_row(578, 576)
    with pytest.raises(UserError, match=r"data.tokens = 577 .* 576 positions.* at least 578; 704 leaves room"):
        check_row(577, 576)


@settings(max_examples=300)
@given(
    st.integers(2, 60).flatmap(
        lambda T: st.tuples(
            st.just(T),
            st.sampled_from([0, 1, 2, 4, 300]),  # the last allows more distinct numbers than classes, as for patches
            st.lists(st.tuples(st.integers(1, T), st.integers(0, 4) | st.integers(0, 300)), max_size=80),
            st.booleans(),
            st.integers(1, 20),
            st.randoms(use_true_random=False),
        )
    )
)
def test_any_plan(case):
    """Each sample occurs once and near its place, no row overflows, the oldest is first; planning is deterministic."""
    T, I, sizes, pack, window, random = case  # noqa: E741
    lengths = np.array([length for length, _ in sizes], np.int32)
    images = np.array([min(count, I) for _, count in sizes], np.int32)
    order = np.array(random.sample(range(len(sizes)), random.randint(0, len(sizes))), np.int64)
    with mock.patch.object(packing, "PLAN_WINDOW", window):
        rows = plan_rows(lengths, images, order, tokens=T, budget=I, pack=pack)
        assert rows == plan_rows(lengths, images, order, tokens=T, budget=I, pack=pack)
    place = {sample: i for i, sample in enumerate(order.tolist())}
    places = [[place[sample] for sample in row] for row in rows]
    flat = [i for row in places for i in row]
    assert sorted(flat) == list(range(len(order)))
    assert all(abs(at - i) < window for at, i in enumerate(flat))
    for row in rows:
        assert lengths[list(row)].sum() <= T and images[list(row)].sum() <= I
        assert pack or len(row) == 1
    assert all(row == sorted(row) for row in places)
    # Each row begins with the oldest sample left, and no other sample in the window would still fit.
    left = set(range(len(order)))
    for row, members in zip(places, rows, strict=True):
        assert row[0] == min(left)
        left -= set(row)
        room, slots = T - lengths[list(members)].sum(), I - images[list(members)].sum()
        seen = [order[i] for i in left if i < row[0] + window]
        assert not pack or all(lengths[sample] > room or images[sample] > slots for sample in seen)


@pytest.mark.parametrize(
    "lengths, images, rows",
    [
        ([4, 5, 3, 3], [0, 0, 0, 0], [(0, 2, 3), (1,)]),  # two fill the row, so the next one is not taken
        ([4, 3, 3, 6], [0, 0, 0, 0], [(0, 3), (1, 2)]),  # one fills it; two would fill it as well
        ([4, 5, 5, 3, 2], [0] * 5, [(0, 1), (2, 3, 4)]),  # nothing fills it, so the next one is taken
        ([4, 3, 3, 6], [1, 1, 1, 1], [(0, 3), (1, 2)]),
        ([4, 3, 3, 5], [1, 1, 1, 0], [(0, 3), (1, 2)]),  # two slots: not three images
        ([2, 2, 2, 2, 2, 2, 3], [0] * 7, [(0, 1, 2, 3, 4), (5, 6)]),
        ([9, 1, 9, 1], [0] * 4, [(0, 1), (2, 3)]),  # of equal samples the older
    ],
)
def test_plans_written_out(lengths, images, rows):
    lengths, images = np.array(lengths), np.array(images)
    assert plan_rows(lengths, images, np.arange(len(lengths)), tokens=10, budget=2, pack=True) == rows


@pytest.mark.parametrize(
    "low, high, tokens, images, fill",
    [(20, 400, 2048, 200, 0.998), (100, 1000, 2048, 200, 0.998), (600, 800, 4096, 6, 0.97)],
)
def test_rows_are_full(low, high, tokens, images, fill):
    random = np.random.default_rng(0)
    lengths = random.integers(low, high, 20_000)
    one, order = np.ones_like(lengths), random.permutation(20_000)
    rows = plan_rows(lengths, one, order, tokens=tokens, budget=images, pack=True)
    assert lengths.sum() / (tokens * len(rows)) > fill


@pytest.mark.parametrize(("budget", "more"), [(4800, 1.01), (2000, 1.01)])
def test_many_numbers_of_units_pack_about_as_well_as_exactly(monkeypatch, budget, more):
    random = np.random.default_rng(0)
    lengths, units, order = random.integers(40, 900, 1000), 4 * random.integers(16, 300, 1000), np.arange(1000)
    rows = len(plan_rows(lengths, units, order, tokens=2048, budget=budget, pack=True))
    monkeypatch.setattr(packing, "UNIT_CLASSES", 300)
    assert rows <= more * len(plan_rows(lengths, units, order, tokens=2048, budget=budget, pack=True))


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("tokens, images, fill", [(2048, 3, 0.87), (2304, 3, 0.97), (3072, 4, 0.99), (4096, 6, 0.99)])
def test_rows_of_llavas_mixture(tokens, images, fill, scale):
    """Rows are full (no packer reaches 90 % at 2048), and in every part of an epoch as mixed as the order."""
    mixture = make_mixture(20_000, tokens, scale)
    order = np.random.default_rng(1).permutation(len(mixture.lengths))
    rows = plan_rows(mixture.lengths, mixture.images, order, tokens=tokens, budget=images, pack=True)
    assert mixture.lengths.sum() / (tokens * len(rows)) >= fill
    of_row = np.array([[mixture.lengths[list(row)].sum(), mixture.images[list(row)].sum(), len(row)] for row in rows])
    for part, planned in zip(np.array_split(of_row, 8), np.array_split(order, 8), strict=True):
        positions, images_used, samples = part.sum(axis=0)
        assert positions / samples == pytest.approx(mixture.lengths[planned].mean(), rel=0.02)
        assert images_used / samples == pytest.approx(mixture.images[planned].mean(), abs=0.02)
        assert samples / len(part) == pytest.approx(len(order) / len(rows), rel=0.04)


@settings(max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=6), min_size=1, max_size=4), st.integers(1, 3))
@example([[True, True], [False, True]], 2)
def test_packed_pieces_are_what_they_are_alone(kinds, P):
    """Each sample's part of a packed row equals a row of its own, except for the positions of its images."""
    samples = [
        sample([IM if image else 5 + i % 4 for i, image in enumerate(kind)], [i % 2 for i in range(len(kind))])
        for kind in kinds
    ]
    pieces = [expand(s, slots(2, P)) for s in samples]
    images = [int(s.is_image.sum()) for s in samples]
    batch = Batch.empty(spec(tokens=80, images=30))
    fill_row(batch, 0, pieces, [pixels(i) for i in range(sum(images))], slots(2, P))
    for segment in range(1, len(pieces) + 1):
        alone = Batch.empty(spec(tokens=80, images=30))
        first = sum(images[: segment - 1])
        own = [pixels(first + i) for i in range(images[segment - 1])]
        fill_row(alone, 0, [pieces[segment - 1]], own, slots(2, P))
        here, length = batch.segments[0] == segment, len(pieces[segment - 1].tokens)
        for name in ("tokens", "targets", "loss_weights", "positions"):
            assert (getattr(batch, name)[0, here] == getattr(alone, name)[0, :length]).all()
        for packed, own in zip(batch.image_index[0, here], alone.image_index[0, :length], strict=True):
            assert (packed < 0) == (own < 0)
            if own >= 0:
                assert packed % P == own % P
                assert (batch.media.pixels[0, packed // P] == alone.media.pixels[0, own // P]).all()
    assert jax.tree.all(jax.tree.map(lambda x: isinstance(x, np.ndarray), batch))
