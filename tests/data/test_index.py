"""The index is built once: the cache finds it by the content of the data, and never returns a stale one."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxvlm.batch import Batch
from jaxvlm.data import cache
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows import index, samples
from jaxvlm.data.rows.index import load_index
from jaxvlm.data.rows.pipeline import batch_spec, open_samples
from jaxvlm.families.llava.layout import ImageSlots
from tests.data.conftest import conversation, data_config, write_records
from tests.data.test_pipeline import BAD, VISION
from tests.toy_family.layout import ToyLayout


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of the cache, which keeps everything in this test."""
    monkeypatch.setenv("JAXVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "KEEP_SECONDS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def passes(monkeypatch):
    """Indices of the records that this process inspected."""
    calls = []
    inspect = samples.Samples.inspect
    monkeypatch.setattr(samples.Samples, "inspect", lambda self, i: calls.append(i) or inspect(self, i))
    return calls


@pytest.fixture
def load(tokenizer):
    return lambda path, **changes: load_index(
        open_samples(data_config(path, **changes), tokenizer, ImageSlots.of(VISION, "pad"))
    )


def columns(found):
    return {name: getattr(found, name).tolist() for name in index._COLUMNS}


def errors(found):
    return [(at, str(e), e.origin, e.reason) for at, e in found.errors.items()]


def test_found_again(kept, passes, load, tmp_path):
    path = write_records(tmp_path, 30)
    path.write_text(json.dumps([*json.loads(path.read_text()), BAD["roles"], BAD["image_missing"], {"id": "\ud800"}]))
    first = load(path)
    assert len(passes) == 33 and set(first.errors) == {30, 31, 32}
    for again in (load(path), load(path, tokens=99, images=7, heldout=0.5, pack=False, aspect="square")):
        assert passes[33:] in ([31], [31, 31])  # a missing image is looked for again
        assert columns(again) == columns(first) and errors(again) == errors(first)
    assert first.text.dtype == np.int32 and first.id_hash.dtype == np.uint64


def test_images_that_were_mended_are_noticed(kept, passes, load, tmp_path):
    path, picture = write_records(tmp_path, 6), tmp_path / "3.png"
    whole = picture.read_bytes()

    def found():
        passes.clear()
        return [error.reason for error in load(path).errors.values()], list(passes)

    picture.unlink()
    assert found() == (["image_missing"], [0, 1, 2, 3, 4, 5])
    assert found() == (["image_missing"], [3])
    picture.write_bytes(b"no image")
    assert found() == (["image_broken"], [3, 0, 1, 2, 3, 4, 5])
    picture.write_bytes(whole)
    assert found() == ([], [3, 0, 1, 2, 3, 4, 5])
    assert found() == ([], [])


@pytest.mark.parametrize("change", ["content", "system", "answers", "folder"])
def test_made_again_when_it_matters(kept, passes, load, tmp_path, change):
    path = write_records(tmp_path, 5)
    load(path)
    options = {}
    if change == "content":
        path.write_text(path.read_text().replace("record-3", "record-x"))
    elif change == "folder":
        options["image_folder"] = str(tmp_path / "cache")
    else:
        options[change] = {"system": "Other.", "answers": "last"}[change]
    load(path, **options)
    assert len(passes) == 10


def test_a_damaged_file_counts_as_none(kept, passes, load, tmp_path):
    path = write_records(tmp_path, 5)
    want = load(path)
    (file,) = (kept / "index").glob("*.npz")
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"PK" + whole[2:200], b"\x80\x04no pickle."):
        file.write_bytes(content)
        passes.clear()
        assert columns(load(path)) == columns(want)
        assert len(passes) == 5
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(passes, load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXVLM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "KEEP_SECONDS", 0.0)
    assert len(load(write_records(tmp_path, 5))) == 5


def test_worker_processes_find_the_same(load, tmp_path, monkeypatch):
    path = write_records(tmp_path, 25)
    path.write_text(json.dumps([*json.loads(path.read_text()), BAD["roles"]]))
    want = load(path)
    monkeypatch.setattr(index, "PARALLEL", 1)
    monkeypatch.setattr(index, "_CHUNK", 7)
    monkeypatch.setattr(index.os, "sched_getaffinity", lambda pid: {0, 1})
    found = load(path)
    assert columns(found) == columns(want) and errors(found) == errors(want)


def test_only_the_last_answer(load, tmp_path):
    record = {"id": "a", "conversations": conversation("what is", "red circle", "and", "blue", "left of", "two dots")}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    every, last = load(tmp_path / "a.json"), load(tmp_path / "a.json", answers="last")
    assert every.text == last.text
    assert every.supervised > last.supervised == 3  # two, dots, </s>
    assert last.text_to_answer == last.text - 2


def test_a_run_that_finds_an_image_of_another_size_drops_the_index(kept, tokenizer, tmp_path):
    """The records are the same, so nothing else would: the next start would find the same sizes again."""
    path, layout = write_records(tmp_path, 6), ToyLayout()

    def write_a_row():
        found = open_samples(data_config(path, images=64), tokenizer, layout)
        found.sizes = load_index(found).sizes
        found.write_row(Batch.empty(batch_spec(found.config, layout, 1)), 0, [3], None)

    write_a_row()
    Image.new("RGB", (40, 32)).save(tmp_path / "3.png")
    with pytest.raises(RecordError, match=r"no longer 9 x 10 pixels as in the index; start the run again"):
        write_a_row()
    write_a_row()
