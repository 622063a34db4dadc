"""Records to batches: no record is lost, every batch is a function of its number, all problems are reported."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlm.config import AugmentConfig
from jaxvlm.data.records import Record, RecordError, Turn
from jaxvlm.data.rows import index as index_module
from jaxvlm.data.rows import pipeline as pipeline_module
from jaxvlm.data.rows import samples as samples_module
from jaxvlm.data.rows.ledger import FATES
from jaxvlm.data.rows.samples import shuffle_turns
from jaxvlm.data.sources.load import id_hash, load_source
from jaxvlm.errors import UserError
from jaxvlm.families.llava.layout import ImageSlots
from tests.data.conftest import conversation, data_config, write_records
from tests.layouts import make_pipeline
from tests.parity import tiny_llava

VISION = dataclasses.replace(tiny_llava.tiny_config().vision, image_size=16, patch_size=8)
SHAKEN = AugmentConfig(flip=True, shift=2, shuffle_turns=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("data"), 60)


@pytest.fixture
def build(tokenizer):
    def build(source, *, rows=4, seed=0, process=(0, 1), **changes):
        sizes = {"vision": VISION, "rows": rows, "seed": seed}
        host = {"process_index": process[0], "process_count": process[1]}
        return make_pipeline(data_config(source, **changes), tokenizer, **sizes, **host)

    return build


def take(batches, count):
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)))


def samples_of(batch):
    """(tokens, supervised targets) of every segment."""
    for tokens, targets, weights, segments in zip(
        batch.tokens, batch.targets, batch.loss_weights, batch.segments, strict=True
    ):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            yield tokens[here].tobytes(), targets[here][weights[here] > 0].tobytes()


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_holds_every_record_once(build, data, pack):
    made = build(data, pack=pack, rows=1)
    rows = made.num_rows(1)
    assert made.records == 60 and (rows < 60 if pack else rows == 60)
    batches = take(made.batches(), made.num_rows(2))
    for batch in batches:
        batch.check(made.spec)
    first, second = ([s for b in part for s in samples_of(b)] for part in (batches[:rows], batches[rows:]))
    assert sorted(first) == sorted(second) and first != second
    assert len(first) == 60


def test_rows_hold_the_images_of_their_records(build, data):
    """Each image has its own mean, so every packed image can be matched to a file."""
    from jaxvlm.data.media.images import load_image

    source = load_source(str(data))
    known = [
        load_image(image, 16, "pad", pad_colour=VISION.pad_colour).tobytes()
        for i in range(60)
        for image in source[i].images
    ]
    made = build(data, rows=1)
    found = []
    for batch in take(made.batches(), made.num_rows(1)):
        used = 1 + max(batch.image_index[0].max() // 4, -1)
        assert (batch.image_index[0] >= 0).sum() == 4 * used
        found += [batch.media.pixels[0, k].tobytes() for k in range(used)]
        assert not batch.media.pixels[0, used:].any()
    assert sorted(found) == sorted(known)


@pytest.mark.parametrize("augment", [SHAKEN, AugmentConfig(flip=False, shift=0, shuffle_turns=False)])
def test_restored_at_every_position(build, data, augment):
    made = build(data, augment=augment)
    steps = made.num_rows(2.5) // 4
    straight = take(made.batches(), steps + 1)
    batches = made.batches()
    states = [json.loads(json.dumps(batches.get_state()))]
    for _ in range(steps):
        next(batches)
        states.append(json.loads(json.dumps(batches.get_state())))
    for position, state in enumerate(states):
        batches.set_state(state)
        assert batches.get_state() == state
        assert same(next(batches), straight[position])
    batches.close()
    again = build(data, augment=augment).batches()
    again.set_state(states[3])
    assert all(same(a, b) for a, b in zip(take(again, 4), straight[3:7], strict=True))


def test_worker_processes_give_the_same_batches(build, data):
    straight = take(build(data, augment=SHAKEN).batches(), 9)
    batches = build(data, augment=SHAKEN, workers=2).batches()
    batches.set_state(build(data, augment=SHAKEN).batches().get_state() | {"batch": 3})
    have = [next(batches) for _ in range(5)]
    state = batches.get_state()
    batches.close()
    assert state["batch"] == 8
    assert all(same(a, b) for a, b in zip(have, straight[3:8], strict=True))
    back = build(data, augment=SHAKEN).batches()
    back.set_state(state)
    assert same(take(back, 1)[0], straight[8])


def test_the_shares_of_hosts_are_the_whole(build, data):
    whole = take(build(data, rows=6).batches(), 4)
    shares = [take(build(data, rows=6, process=(host, 3)).batches(), 4) for host in range(3)]
    for want, *parts in zip(whole, *shares, strict=True):
        assert same(want, jax.tree.map(lambda *x: np.concatenate(x), *parts))
    with pytest.raises(UserError, match="7 rows does not divide over 3 hosts; use a multiple of 3"):
        build(data, rows=7, process=(0, 3))


def test_a_position_in_other_rows_is_refused(build, data):
    state = build(data).batches().get_state()
    for change in ({"seed": 1}, {"rows": 8}, {"tokens": 65}, {"heldout": 0.2}, {"pack": False}):
        with pytest.raises(UserError, match="other rows than these"):
            build(data, **change).batches().set_state(state)
    build(data, workers=1, aspect="square").batches().set_state(state)


def test_num_rows(build, data):
    made = build(data)
    one, two = made.num_rows(1), made.num_rows(2)
    assert made.num_rows(0) == 0
    assert made.num_rows(1.5) == one + -(-(two - one) // 2)
    assert made.num_rows(0.01) == 1


def test_epochs_differ_in_order_rounds_and_pixels(build, data):
    made = build(data, augment=SHAKEN, rows=1, pack=False)
    first, second = (take(made.batches(), 120)[i * 60 : (i + 1) * 60] for i in (0, 1))
    pixels = [{batch.media.pixels.tobytes() for batch in epoch} for epoch in (first, second)]
    assert len(pixels[0] & pixels[1]) < 10
    texts = [{batch.tokens.tobytes() for batch in epoch} for epoch in (first, second)]
    assert 0 < len(texts[0] & texts[1]) < 60  # records with one round do not change
    # The words are the same in any order of rounds.
    bags = [sorted(tuple(np.sort(batch.tokens[0])) for batch in epoch) for epoch in (first, second)]
    same_bags = sum(a == b for a, b in zip(*bags, strict=True))
    assert same_bags > 30


def test_shuffled_rounds_are_dropped_when_they_would_not_fit(build, data, monkeypatch):
    """No order of rounds may take more positions than were planned for."""
    monkeypatch.setattr(samples_module, "_ORDER_SLACK", -5)
    made = build(data, augment=SHAKEN, rows=1, pack=False)
    plain = build(data, rows=1, pack=False)

    def texts(pipeline):
        return sorted(batch.tokens.tobytes() for batch in take(pipeline.batches(), 60))

    assert texts(made) == texts(plain)


def test_shuffle_turns_keeps_the_image_first():
    import random

    turns = [Turn("system", "S")]
    for i in range(5):
        turns += [Turn("user", f"<image>\nq{i}" if i == 0 else f"q{i}"), Turn("assistant", f"a{i}")]
    record = Record("x", tuple(turns), ("a.png",), "x")
    orders = set()
    for seed in range(20):
        shuffled = shuffle_turns(record, random.Random(seed))
        assert shuffled.turns[0] == turns[0] and shuffled.images == record.images
        texts = [turn.text for turn in shuffled.turns[1:]]
        assert texts[0].startswith("<image>\nq") and not any("<image>" in text for text in texts[1:])
        rounds = [(q.removeprefix("<image>\n"), a) for q, a in zip(texts[::2], texts[1::2], strict=True)]
        assert sorted(rounds) == [(f"q{i}", f"a{i}") for i in range(5)]
        orders.add(tuple(rounds))
    assert len(orders) > 15


def test_rounds_stay_where_a_placeholder_stands_inside_another(build, tmp_path):
    """Without its image such a question would contain a second placeholder, and in another round both would count."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    item = {"image": "a.png", "conversations": conversation("<<image>image> is", "a", "what is", "the")}
    (tmp_path / "a.json").write_text(json.dumps([item]))
    batches = take(build(tmp_path / "a.json", augment=SHAKEN, rows=1).batches(), 6)
    assert all((batch.image_index >= 0).sum() == 4 and same(batch.tokens, batches[0].tokens) for batch in batches)


def test_heldout(build, data):
    made = build(data, heldout=0.3, augment=SHAKEN)
    source = load_source(str(data))
    ids = [source[i].id for i in range(60) if id_hash(source[i].id) < 0.3 * 2.0**64]
    assert 8 < len(ids) < 30
    assert (made.records, made.heldout) == (60, len(ids))
    batches = list(made.heldout_batches(4))
    assert all(same(a, b) for a, b in zip(batches, made.heldout_batches(4), strict=True))
    assert len([s for batch in batches for s in samples_of(batch)]) == len(ids)
    for batch in batches:
        batch.check(made.spec)
    trained = {s for batch in take(made.batches(), made.num_rows(1) // 4 + 1) for s in samples_of(batch)}
    plain = build(data, heldout=0.3)
    assert not trained & {s for batch in plain.heldout_batches(4) for s in samples_of(batch)}
    questions = made.heldout_questions()
    assert [q.id.partition("#")[0] for q in questions] == ids
    assert all(q.turns[-1].role == "assistant" for q in questions)
    assert [q.id for q in made.heldout_questions(3)] == [q.id for q in questions[:3]]
    assert len([s for batch in made.heldout_batches(4, limit=3) for s in samples_of(batch)]) == 3


def test_heldout_shares_and_padding(build, data):
    whole = list(build(data, heldout=0.3, pack=False).heldout_batches(8))
    shares = [list(build(data, heldout=0.3, pack=False, process=(i, 2)).heldout_batches(8)) for i in range(2)]
    for want, *parts in zip(whole, *shares, strict=True):
        assert same(want, jax.tree.map(lambda *x: np.concatenate(x), *parts))
    padding = ~whole[-1].segments.any(axis=1)
    assert padding.any() and not padding[0] and (whole[-1].image_index[padding] == -1).all()


def test_the_ledger_adds_up_wherever_training_stops(build, data):
    made = build(data, heldout=0.2, tokens=30)
    end = made.num_rows(1)
    for rows in (0, 1, end // 2, end, 10 * end):
        ledger = made.ledger(rows)
        assert ledger.read == 60 == sum(ledger.total(fate) for fate in FATES)
        assert (ledger.total("unreached") == 0) == (rows >= end)
    assert min(ledger.total(fate) for fate in ("used", "packed", "truncated", "heldout")) > 0
    reached = {fate: made.ledger(1).total(fate) for fate in ("used", "packed", "truncated")}
    assert sum(reached.values()) < 4


BAD = {
    "invalid_json": "{",
    "missing_key": {"id": "b"},
    "unknown_role": {"id": "c", "conversations": [{"from": "bot", "value": "x"}]},
    "roles": {"id": "d", "conversations": conversation("a", "b") + [{"from": "gpt", "value": "c"}]},
    "empty_turn": {"id": "e", "conversations": conversation("", "b")},
    "image_count": {"id": "f", "conversations": conversation("<image> <image>", "b"), "image": "good.png"},
    "image_missing": {"id": "g", "conversations": conversation("<image>\nq", "b"), "image": "none.png"},
    "image_broken": {"id": "h", "conversations": conversation("<image>\nq", "b"), "image": "text.png"},
    "too_many_images": {"id": "i", "conversations": conversation("<image>" * 3, "b"), "image": ["good.png"] * 3},
    "answer_beyond_row": {"id": "j", "conversations": conversation("<image>\n" + "q " * 90, "b"), "image": "good.png"},
}


@pytest.fixture
def bad(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    good = {"id": "a", "conversations": conversation("<image>\nq", "a"), "image": "good.png"}
    started = {"id": "z", "conversations": [{"from": "gpt", "value": "Hello."}, *good["conversations"]]} | {
        "image": "good.png"
    }
    lines = [item if isinstance(item, str) else json.dumps(item) for item in (good, *BAD.values(), started)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    return tmp_path / "bad.jsonl"


def test_every_kind_of_bad_record_is_named_in_one_message(build, bad):
    with pytest.raises(UserError) as caught:
        build(bad)
    message = str(caught.value)
    assert message.startswith("10 of 12 records break a rule (")
    for line, reason in enumerate(BAD, 2):
        assert f"1 {reason}" in message
        assert f"{bad}:{line}" in message
    assert 'data.on_bad = "skip"' in message


def test_more_than_ten_are_counted(build, bad):
    bad.write_text(bad.read_text() + "\n{" * 5)
    with pytest.raises(UserError, match="(?s)6 invalid_json.*and 5 more") as caught:
        build(bad)
    assert str(caught.value).count(f"{bad}:") == 10


def test_bad_records_are_counted_when_they_are_rejected(build, bad):
    made = build(bad, on_bad="skip", rows=1, pack=False)
    ledger = made.ledger(2)
    assert ledger.counts["rejected"] == dict.fromkeys(sorted(BAD), 1)
    assert ledger.counts["used"] == {"whole": 1, "without the answer before its first question": 1}
    assert ledger.read == made.records == 12
    assert made.num_rows(1) == 2


def test_nothing_left(build, bad):
    bad.write_text("{\n{")
    with pytest.raises(UserError, match="no record to train on: 2 read, 2 rejected, 0 held out"):
        build(bad, on_bad="skip")


def test_settings_that_cannot_work(build, data):
    with pytest.raises(UserError) as caught:
        build(data, on_bad="reject", aspect="stretch", heldout=1.0, tokens=0, workers=-1)
    for word in ("on_bad", "media.aspect", "heldout", "tokens = 0", "workers = -1"):
        assert f"data.{word}" in str(caught.value)
    with pytest.raises(UserError, match="shift = 16"):
        build(data, augment=AugmentConfig(flip=False, shift=16, shuffle_turns=False))
    with pytest.raises(UserError, match="data.tokens = 5 is too short for an image"):
        build(data, tokens=5)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_an_image_that_breaks_between_header_and_end_is_named(build, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(index_module, "PARALLEL", 1)  # the index pass uses worker processes too, if the pipeline does
    path = write_records(tmp_path, 6)
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:60] + whole[70:])
    batches = build(path, rows=1, workers=workers).batches()
    with pytest.raises(RecordError) as caught:
        take(batches, 6)
    assert str(tmp_path / "3.png") in str(caught.value) and f"{path}[3]" in str(caught.value)
    assert caught.value.reason == "image_broken" and 'data.on_bad = "skip"' in str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_or_keeps_its_place_and_is_counted(build, tmp_path, workers, capfd):
    path = write_records(tmp_path, 12)
    sound = take(build(path, on_bad="skip").batches(), 4)
    picture = tmp_path / "3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60] + whole[70:])
    made = build(path, on_bad="skip", workers=workers)
    batches = made.batches()
    found = take(batches, 4)  # all rows, some of them twice
    assert batches.broken == {3: "image_broken"}
    assert capfd.readouterr().err.count("warning") == 1
    again = made.batches()
    again.set_state(json.loads(json.dumps(batches.get_state())))
    assert again.broken == batches.broken
    changed = 0
    for batch, like in zip(found, sound, strict=True):
        for field in ("tokens", "targets", "positions", "segments", "image_index"):
            assert np.array_equal(getattr(batch, field), getattr(like, field))
        for row, slot in np.argwhere((batch.media.pixels != like.media.pixels).any(axis=(2, 3, 4))):
            assert (batch.media.pixels[row, slot] == VISION.pad_colour).all()
            features = np.arange(slot, slot + 1) * VISION.features_per_image
            segment = batch.segments[row, batch.image_index[row] == features][0]
            own = batch.segments[row] == segment
            assert like.loss_weights[row, own].any() and not batch.loss_weights[row, own].any()
            assert np.array_equal(batch.loss_weights[row, ~own], like.loss_weights[row, ~own])
            changed += 1
        alike = (batch.media.pixels == like.media.pixels).all(axis=(1, 2, 3, 4))
        assert np.array_equal(batch.loss_weights[alike], like.loss_weights[alike])
    assert changed >= 1
    rows = made.num_rows(1)
    ledger = made.ledger(rows, batches.broken)
    assert ledger.counts["rejected"] == {"image_broken, found while training": 1} and ledger.read == 12


def test_a_broken_record_is_not_asked_about(build, tmp_path):
    path = write_records(tmp_path, 30)
    asked = {record.id for record in build(path, on_bad="skip", heldout=0.5).heldout_questions()}
    chosen = next(i for i in range(30) if i % 5 and f"record-{i}" in {id.split("#")[0] for id in asked})
    whole = (tmp_path / f"{chosen}.png").read_bytes()
    (tmp_path / f"{chosen}.png").write_bytes(whole[:60] + whole[70:])
    made = build(path, on_bad="skip", heldout=0.5)
    left = {record.id for record in made.heldout_questions()}
    assert {id.split("#")[0] for id in asked - left} == {f"record-{chosen}"}
    assert list(made.heldout_batches(4))


def test_images_are_decoded_once_if_they_fit_into_memory(build, data, monkeypatch):
    calls = []
    load = ImageSlots.load
    monkeypatch.setattr(ImageSlots, "load", lambda *a, **kw: calls.append(a) or load(*a, **kw))
    made = build(data, rows=1, augment=SHAKEN)
    kept = take(made.batches(), made.num_rows(2))
    assert len(calls) < 60  # 48 images, of which two threads may decode the same one at the same time
    monkeypatch.setattr(pipeline_module, "_CACHE_BYTES", 0)
    made = build(data, rows=1, augment=SHAKEN)
    calls.clear()
    fresh = take(made.batches(), len(kept))
    assert len(calls) >= 96
    assert all(same(a, b) for a, b in zip(kept, fresh, strict=True))
