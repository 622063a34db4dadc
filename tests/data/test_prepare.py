"""Prepared data gives the same batches as the original, also after an interruption; no loss goes unreported."""

import json
import os
from pathlib import Path

import pytest

from jaxvlm.data.media.images import load_image
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows import prepare as prepare_module
from jaxvlm.data.rows.index import load_index
from jaxvlm.data.rows.pipeline import open_samples
from jaxvlm.data.rows.prepare import prepare
from jaxvlm.data.sources.mix import load_mix
from jaxvlm.data.sources.prepared import PreparedSource, read_card
from jaxvlm.errors import UserError
from jaxvlm.families.llava.layout import ImageSlots
from tests.data.conftest import data_config, write_records
from tests.data.test_pipeline import VISION, same, take
from tests.layouts import make_pipeline

KEPT = ImageSlots.of(VISION, "pad")


class Inline:
    """Replaces the pool of processes: work runs in this process."""

    def __init__(self, begin, *arguments):
        begin(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments):
        done = prepare_module.concurrent.futures.Future()
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)
        return done


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(prepare_module, "worker_pool", Inline)


@pytest.fixture
def records(tmp_path):
    (tmp_path / "raw").mkdir()
    return write_records(tmp_path / "raw", 25)


def run(path, out, known=(), *, kept=KEPT, jpeg=0, shard_records=10, skip=False):
    options = {"jpeg": jpeg, "shard_records": shard_records, "skip": skip}
    return prepare(load_mix(data_config(path)), dict(known), kept, out, **options)


def test_training_sees_the_same(records, tmp_path, tokenizer):
    """Uses real worker processes."""
    out = tmp_path / "out"
    card = run(records, out)
    assert [shard["records"] for shard in card["shards"]] == [10, 10, 5]
    assert card["ledger"]["read"] == card["ledger"]["used"]["total"] == 25
    assert not (out / "progress.json").exists()
    options = {"vision": VISION, "rows": 3, "seed": 5}
    first = make_pipeline(data_config(records, heldout=0.2), tokenizer, **options)
    second = make_pipeline(data_config(out, heldout=0.2), tokenizer, **options)
    assert first.num_rows(2) == second.num_rows(2)
    assert all(same(a, b) for a, b in zip(take(first.batches(), 9), take(second.batches(), 9), strict=True))
    held = [list(made.heldout_batches(3)) for made in (first, second)]
    assert len(held[0]) == len(held[1]) and all(same(a, b) for a, b in zip(*held, strict=True))
    source = PreparedSource(str(out))
    assert source[12].origin == f"{records}[12]" and source[12].id == "record-12"
    assert source.origin(12) == f"{out}/part-00001-of-00003.array_record[2]"
    with pytest.raises(UserError, match="prepared with aspect pad, .*size 16; the recipe takes aspect square"):
        make_pipeline(data_config(out, aspect="square"), tokenizer, **options)


def test_jpeg_is_nearly_the_same(inline, records, tmp_path):
    run(records, tmp_path / "out", jpeg=95)
    source, original = PreparedSource(str(tmp_path / "out")), load_mix(data_config(records))
    for index in (1, 2, 3):
        (now,), (before,) = source[index].images, original[index].images
        assert now[:3] == b"\xff\xd8\xff"
        have, want = (load_image(image, 16, "pad", pad_colour=VISION.pad_colour).astype(int) for image in (now, before))
        assert 0 < abs(have - want).mean() < 12  # noise, which JPEG compresses worst


def test_goes_on_where_it_was_stopped(inline, records, tmp_path, monkeypatch):
    out, noted = tmp_path / "out", []
    write, note = prepare_module.write_shard, prepare_module.replace_text

    def stopping(path, text):
        note(path, text)
        noted.append(path)
        if len(noted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "replace_text", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(records, out)
    with pytest.raises(UserError, match="card.json is missing"):
        PreparedSource(str(out))
    for other, word in (({"shard_records": 5}, "shard_records"), ({"kept": ImageSlots.of(VISION, "square")}, "images")):
        with pytest.raises(UserError, match=f"started with other {word}; use the same to resume it"):
            run(records, out, **other)
    names = [f"part-0000{number}-of-00003.array_record" for number in range(3)]
    done = list(json.loads((out / "progress.json").read_text())["shards"])
    assert len(done) == 2
    (out / done[0]).unlink()  # a finished shard is lost
    written = []
    monkeypatch.setattr(prepare_module, "write_shard", lambda path, r: written.append(path.name) or write(path, r))
    monkeypatch.setattr(prepare_module, "replace_text", note)
    card = run(records, out)
    assert written == [name for name in names if name != done[1]]
    assert len(PreparedSource(str(out))) == 25 == card["ledger"]["used"]["total"]


def test_what_cannot_be_decoded_is_named_or_counted(inline, records, tmp_path, tokenizer):
    for number in (3, 11, 12):
        path = records.parent / f"{number}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:60] + whole[70:])  # header and end stay valid
    items = json.loads(records.read_text())
    items[7]["conversations"] = items[7]["conversations"][:1]
    records.write_text(json.dumps(items))
    known = load_index(open_samples(data_config(records), tokenizer, KEPT)).errors
    assert set(known) == {7}
    with pytest.raises(UserError, match="3 images cannot be decoded") as caught:
        run(records, tmp_path / "out", known)
    assert all(f"{records}[{number}]" in str(caught.value) for number in (3, 11, 12))
    card = run(records, tmp_path / "out", known, skip=True)
    ledger = card["ledger"]
    assert (ledger["read"], ledger["used"]["total"]) == (25, 21)
    assert ledger["rejected"]["reasons"] == {"image_broken": 3, "last_turn": 1}
    assert sorted(origin for origin, _, _ in card["rejected"]) == sorted(f"{records}[{n}]" for n in (3, 7, 11, 12))
    assert len(PreparedSource(str(tmp_path / "out"))) == 21


def test_an_answer_before_the_first_question_is_still_counted(inline, records, tmp_path, tokenizer):
    items = json.loads(records.read_text())
    items[3]["conversations"].insert(0, {"from": "gpt", "value": "red"})
    records.write_text(json.dumps(items))
    run(records, tmp_path / "out")
    first, second = (
        make_pipeline(data_config(path), tokenizer, vision=VISION, rows=1, seed=0).ledger(100)
        for path in (records, tmp_path / "out")
    )
    assert first == second and first.counts["packed"]["without the answer before its first question"] == 1


def test_a_path_that_is_no_utf8(inline, tmp_path):
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    raw.mkdir()
    path = write_records(raw, 5)
    error = RecordError(f"{path}[2]: broken", f"{path}[2]", "broken")
    run(path, tmp_path / "out", {2: error}, skip=True)
    source = PreparedSource(str(tmp_path / "out"))
    assert [source[i].origin for i in range(4)] == [f"{path}[{i}]" for i in (0, 1, 3, 4)]
    assert read_card(tmp_path / "out")["rejected"] == [[error.origin, error.reason, str(error)]]


def test_nothing_that_is_there_is_overwritten(inline, records, tmp_path):
    run(records, tmp_path / "out")
    with pytest.raises(UserError, match="already contains prepared data"):
        run(records, tmp_path / "out")
    with pytest.raises(UserError, match="is not empty and contains no unfinished prepared data"):
        run(records, records.parent)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "progress.json").write_text("{")
    with pytest.raises(UserError, match="progress.json is damaged"):
        run(records, tmp_path / "half")
