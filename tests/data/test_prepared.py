"""Folders of prepared records: written, read, copied from an object store; and what is said of damaged ones."""

import json
import pickle

import msgpack
import pytest
from etils import epath

from jaxvlm.data.records import Record, RecordError, Turn
from jaxvlm.data.sources import prepared
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.sources.prepared import read_card, shard_name, write_card, write_shard
from jaxvlm.errors import UserError

TURNS = (Turn("system", "Kurz."), Turn("user", "<image>漢"), Turn("assistant", "ja 🙂"))
RECORDS = [
    Record(f"id-{i}", TURNS, (bytes([i, 255]) * 500,) * (i % 3), f"data.json[{3 * i}]", "group", "nein" * (i % 2))
    for i in range(40)
]


def write(folder, shards=3, records=RECORDS):
    folder.mkdir(exist_ok=True)
    size = -(-len(records) // shards)
    entries = [
        write_shard(folder / shard_name(i, shards), iter(records[i * size : (i + 1) * size])) for i in range(shards)
    ]
    write_card(folder, {"shards": entries, "images": "336 x 336"})
    return folder


def change_card(folder, change):
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path / "d")
    source = pickle.loads(pickle.dumps(load_source(str(folder))))
    assert [source[i] for i in range(len(source))] == RECORDS
    assert source.origin(14) == f"{folder}/part-00001-of-00003.array_record[0]"
    assert len(source.questions(source[1])) == 1
    assert read_card(folder)["images"] == "336 x 336"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", *(shard_name(i, 3) for i in range(3))]


def test_an_empty_shard(tmp_path):
    folder = write(tmp_path / "d", shards=3, records=RECORDS[:2])
    assert [load_source(str(folder))[i] for i in range(2)] == RECORDS[:2]


def test_the_fingerprint_is_one_of_the_content(tmp_path):
    a, b, c = (
        load_source(str(write(tmp_path / name, records=RECORDS[:count]))).fingerprint()
        for name, count in [("a", 40), ("b", 40), ("c", 39)]
    )
    assert a == b != c


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path):
    def records():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / shard_name(0, 1), records())
    with pytest.raises(ValueError, match="holds its images as bytes"):
        write_shard(tmp_path / shard_name(0, 1), [Record("a", TURNS, ("a.png",), "x[0]")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be written"):
        write_shard(tmp_path / "none" / shard_name(0, 1), RECORDS)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / shard_name(1, 3)).unlink(), f"{shard_name(1, 3)} is missing"),
        (
            lambda folder: (folder / shard_name(1, 3)).write_bytes((folder / shard_name(1, 3)).read_bytes()[:-9]),
            f"{shard_name(1, 3)} has [0-9]* bytes, the card says",
        ),
        (
            lambda folder: change_card(folder, lambda card: card["shards"][2].update(records=99)),
            f"{shard_name(2, 3)} holds 12 records, the card says 99",
        ),
        (lambda folder: (folder / "card.json").unlink(), "holds no card.json"),
        (lambda folder: (folder / "card.json").write_text("{"), "card.json is not valid JSON"),
        (lambda folder: (folder / "card.json").write_text("[" * 100_000), "card.json is not valid JSON"),
        (lambda folder: (folder / "card.json").write_bytes(b"\xff"), "card.json is not valid JSON"),
        (lambda folder: (folder / "card.json").write_text("[]"), "version 1 is expected"),
        (lambda folder: change_card(folder, lambda card: card.update(version=2)), "version 1 is expected, found 2"),
        (lambda folder: change_card(folder, lambda card: card.update(shards=[])), '"shards" lists name'),
        (lambda folder: change_card(folder, lambda card: card["shards"][0].update(name="../x")), '"shards" lists name'),
        (lambda folder: change_card(folder, lambda card: card["shards"][0].update(records=-1)), '"shards" lists name'),
    ],
)
def test_damage_is_named_when_the_folder_is_opened(tmp_path, damage, words):
    folder = write(tmp_path / "d")
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_source(str(folder))


def test_damage_inside_a_shard(tmp_path):
    folder = write(tmp_path / "d", shards=1)
    path = folder / shard_name(0, 1)
    whole = path.read_bytes()
    at = whole.find(b"\x07\xff" * 50)
    path.write_bytes(whole[:at] + b"?" + whole[at + 1 :] if at > 0 else whole[:300] + bytes(40) + whole[340:])
    source = load_source(str(folder))
    read = []
    for i in range(len(source)):
        try:
            read.append(source[i] == RECORDS[i])
        except RecordError as error:
            assert error.reason == "damaged" and source.origin(i) in str(error)
            read.append(None)
    assert None in read and False not in read  # never another record than was written


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb({"id": "a"}),
        b"\x91" * 100_000,
        msgpack.packb({"id": 1, "turns": [], "images": [], "origin": "", "group": "", "rejected": ""}),
        msgpack.packb({"id": "", "turns": [["a"]], "images": [], "origin": "", "group": "", "rejected": ""}),
        msgpack.packb({"id": "", "turns": [], "images": ["a.png"], "origin": "", "group": "", "rejected": ""}),
        b"cposix\nsystem\n(S'true'\ntR.",
    ],
)
def test_an_entry_that_is_no_record(tmp_path, content, monkeypatch):
    monkeypatch.setattr(prepared, "_pack", lambda record: content)
    source = load_source(str(write(tmp_path / "d", shards=1, records=RECORDS[:1])))
    with pytest.raises(RecordError, match="is damaged"):
        source[0]


def test_a_folder_on_an_object_store_is_copied_once(tmp_path, monkeypatch):
    store, cache = write(tmp_path / "store"), tmp_path / "cache"
    monkeypatch.setenv("JAXVLM_CACHE", str(cache))
    opened = []

    def open(original, path, mode):
        opened.append(str(path))
        return original(str(path).replace("gs://bucket", str(store)), mode)

    with epath.testing.mock_epath(open=open):
        source = load_source("gs://bucket/")
        assert [source[i] for i in range(len(source))] == RECORDS
        assert source.origin(0) == f"gs://bucket/{shard_name(0, 3)}[0]"
        assert sorted(opened) == sorted(
            f"gs://bucket/{name}" for name in ["card.json", *(shard_name(i, 3) for i in range(3))]
        )
        opened.clear()
        assert load_source("gs://bucket")[39] == RECORDS[39]
        assert opened == ["gs://bucket/card.json"]

        (copied,) = cache.glob("*/*/part-00001*")
        copied.write_bytes(b"cut short")
        assert load_source("gs://bucket")[20] == RECORDS[20]

        copied.unlink()
        (store / shard_name(1, 3)).write_bytes(bytes((store / shard_name(1, 3)).stat().st_size))
        with pytest.raises(UserError, match=f"{shard_name(1, 3)} is not what its card.json describes"):
            load_source("gs://bucket")
        (store / shard_name(1, 3)).unlink()
        with pytest.raises(UserError, match="gs://bucket cannot be copied"):
            load_source("gs://bucket")
    assert not [path for path in cache.rglob(".*")]


@pytest.mark.parametrize("address", ["ftp://host/d", "gs://no-such-bucket-of-jaxvlm/d"])
def test_an_object_store_that_cannot_be_read(address):
    with pytest.raises(UserError, match=f"{address}/card.json cannot be read.*check the address"):
        load_source(address)
