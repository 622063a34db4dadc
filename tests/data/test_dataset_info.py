"""Entries of LLaMA-Factory's dataset_info.json, and the files of each kind that they name."""

import json
import pickle

import datasets
import pytest

from jaxvlm.data.records import RecordError
from jaxvlm.data.sources.load import load_source
from jaxvlm.errors import UserError

ROWS = [
    {"instruction": f"<image>Q{i}", "input": "", "output": f"A{i}", "images": [f"{i}.png"], "system": "S"}
    for i in range(7)
]
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "images": "images", "system": "system"}
PIXELS = {"bytes": b"pixels", "path": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def describe(folder, entry, name="mine"):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps({name: entry, "other": {}}))
    return f"{path}:{name}"


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    else:
        with datasets.arrow_writer.ArrowWriter(path=str(path)) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".csv", ".arrow"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_or_a_folder_of_each_kind(tmp_path, suffix, whole):
    rows = [row | {"images": row["images"][0]} for row in ROWS] if suffix == ".csv" else ROWS
    name = f"data{suffix}" if whole else "folder"
    if whole:
        write(tmp_path / name, rows)
    else:
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"a{suffix}", rows[:3])
        write(tmp_path / name / f"b{suffix}", rows[3:])
        (tmp_path / name / ".hidden").write_text("")
    source = pickle.loads(pickle.dumps(load_source(describe(tmp_path, {"file_name": name, "columns": COLUMNS}))))
    records = [source[i] for i in range(len(source))]
    assert [[turn.text for turn in record.turns] for record in records] == [
        ["S", f"<image>Q{i}", f"A{i}"] for i in range(7)
    ]
    assert [record.images for record in records] == [(str(tmp_path / f"{i}.png"),) for i in range(7)]
    assert records[4].origin == source.origin(4) and str(tmp_path / name) in source.origin(4)


def test_images_of_a_table_stay_bytes(tmp_path):
    write(tmp_path / "d.parquet", [row | {"images": [PIXELS]} for row in ROWS])
    source = load_source(describe(tmp_path, {"file_name": "d.parquet", "columns": COLUMNS}))
    assert source[6].images == (b"pixels",)


def test_a_folder_of_several_kinds(tmp_path):
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "a.json", ROWS)
    write(tmp_path / "d" / "b.csv", ROWS)
    with pytest.raises(UserError, match=r"all of one kind.*found \.csv, \.json"):
        load_source(describe(tmp_path, {"file_name": "d"}))


def test_defaults_hold_if_there_is_no_block(tmp_path):
    write(tmp_path / "d.json", [ROWS[0] | {"input": "more", "images": []}])
    assert [t.text for t in load_source(describe(tmp_path, {"file_name": "d.json"}))[0].turns] == [
        "<image>Q0\nmore",
        "A0",
    ]
    write(tmp_path / "d.json", [{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}])
    assert load_source(describe(tmp_path, {"file_name": "d.json", "formatting": "sharegpt"}))[0].turns[1].text == "A"


def test_a_block_resets_what_it_does_not_list(tmp_path):
    write(tmp_path / "d.json", [ROWS[0] | {"input": "more", "instruction": "Q0"}, ROWS[1]])
    columns = {"prompt": "instruction", "response": "output"}
    source = load_source(describe(tmp_path, {"file_name": "d.json", "columns": columns}))
    assert ([turn.text for turn in source[0].turns], source[0].images) == (["Q0", "A0"], ())
    with pytest.raises(RecordError, match=r'under "images", are not read: columns\.images names no key'):
        source[1]
    with pytest.raises(UserError, match=r"columns\.response missing: a columns block resets"):
        load_source(describe(tmp_path, {"file_name": "d.json", "columns": {"prompt": "instruction"}}))
    with pytest.raises(UserError, match=r"columns\.messages missing"):
        load_source(describe(tmp_path, {"file_name": "d.json", "formatting": "sharegpt", "columns": {"images": "i"}}))
    with pytest.raises(UserError, match=r"tags\.content_tag, tags\.user_tag, tags\.assistant_tag missing: a tags"):
        load_source(describe(tmp_path, {"file_name": "d.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}}))


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_tags(tmp_path, formatting):
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "d.json", "formatting": formatting, "columns": {"messages": "chat"}, "tags": tags}
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    write(tmp_path / "d.json", [{"chat": chat}, {"chat": [{"role": "system", "content": "S"}, *chat]}])
    source = load_source(describe(tmp_path, entry))
    assert [(turn.role, turn.text) for turn in source[0].turns] == [("user", "Q"), ("assistant", "A")]
    with pytest.raises(RecordError, match='"system", expected user or assistant'):
        source[1]


def test_pairs(tmp_path):
    answers = {"chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    write(tmp_path / "d.json", [{"conversations": [{"from": "human", "value": "Q"}], **answers}])
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "d.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    record = load_source(describe(tmp_path, entry))[0]
    assert (record.turns[-1].text, record.rejected) == ("A", "B")
    with pytest.raises(RecordError) as caught:  # the pair alone is no conversation
        load_source(describe(tmp_path, entry | {"ranking": False}))[0]
    assert caught.value.reason == "last_turn"
    with pytest.raises(UserError, match=r"columns\.chosen, columns\.rejected missing"):
        load_source(describe(tmp_path, {"file_name": "d.json", "ranking": True}))


def test_num_samples_draws_the_same_ones_each_time(tmp_path):
    write(tmp_path / "d.json", ROWS)
    source = load_source(describe(tmp_path, {"file_name": "d.json", "num_samples": 3, "columns": COLUMNS}))
    origins = [source.origin(i) for i in range(len(source))]
    assert origins == [f"{tmp_path}/d.json[{i}]" for i in (1, 2, 6)]  # noted once: part of what a run trains on
    assert source[2].turns[-1].text == "A6"
    with pytest.raises(UserError, match=r"num_samples = 8, but there are 7 records.*weight"):
        load_source(describe(tmp_path, {"file_name": "d.json", "num_samples": 8}))


@pytest.mark.parametrize(
    "entry, words",
    [
        ({}, ["does not name the data"]),
        ([], ["an entry is an object"]),
        ({"file_nam": "d.json"}, ["'file_nam' is no key of an entry; the nearest is 'file_name'"]),
        ({"file_name": "none.json"}, ["there is no", "none.json"]),
        ({"file_name": "d.txt"}, ["all of one kind", "found .txt"]),
        ({"file_name": "d.json", "formatting": "vicuna"}, ['formatting = "vicuna", expected alpaca, sharegpt, openai']),
        ({"file_name": "d.json", "ranking": "yes"}, ['ranking is true or false, found "yes"']),
        ({"file_name": "d.json", "num_samples": 0}, ["num_samples is a number"]),
        ({"file_name": "d.json", "num_samples": True}, ["num_samples is a number"]),
        ({"file_name": "d\0.json"}, ["file_name is a string"]),
        ({"file_name": "d.json", "split": "test"}, ["split = 'test'"]),
        ({"file_name": "d.json", "subset": "en"}, ["subset is for hf_hub_url"]),
        ({"file_name": "d.json", "columns": {"mesages": "m"}}, ["'mesages'", "the nearest is 'messages'"]),
        ({"file_name": "d.json", "columns": 3}, ["columns is an object, found 3"]),
        ({"file_name": "d.json", "tags": {"role_tag": 3}}, ["tags.role_tag is a string, found 3"]),
        ({"script_url": "x", "file_name": "d.json"}, ["script_url", "no script", "file_name"]),
        ({"cloud_file_name": "s3://x"}, ["cloud_file_name", "download"]),
        ({"ms_hub_url": "x"}, ["ModelScope", "hf_hub_url"]),
        ({"om_hub_url": "x"}, ["Modelers"]),
        (
            {"file_name": "d.json", "columns": {"prompt": "p", "response": "r", "tools": "t", "audios": "a"}},
            ["tools cannot be trained on", "audio cannot"],
        ),
        (
            {"file_name": "d.json", "columns": {"prompt": "p", "response": "r", "kto_tag": "k"}},
            ["columns.kto_tag", "marked as desired or not cannot be"],
        ),
        ({"formatin": "alpaca", "ranking": 3, "script_url": "x"}, ["formatin", "ranking", "script_url"]),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_all_that_is_wrong(tmp_path, entry, words):
    write(tmp_path / "d.json", ROWS)
    (tmp_path / "d.txt").write_text("text")
    spec = describe(tmp_path, entry)
    with pytest.raises(UserError) as caught:
        load_source(spec)
    for word in [spec, *words]:
        assert word in str(caught.value)


def test_a_file_that_is_wrong(tmp_path):
    spec = describe(tmp_path, {"file_name": "d.json"})
    with pytest.raises(UserError, match="no such entry; the nearest is 'mine'; it has mine, other"):
        load_source(spec.replace(":mine", ":mime"))
    with pytest.raises(UserError, match="describes several data sets"):
        load_source(spec.removesuffix(":mine"))
    for text in ["[]", "[" * 100_000, "{", '{"mine": ' + "9" * 5000 + "}", "\xff"]:
        (tmp_path / "dataset_info.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="dataset_info.json"):
            load_source(spec)
    with pytest.raises(UserError, match="there is no file"):
        load_source(str(tmp_path / "none" / "dataset_info.json:mine"))


def test_a_table_that_is_damaged(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be opened by datasets"):
        load_source(describe(tmp_path, {"file_name": "d.parquet"}))


def test_the_fingerprint_changes_with_content_columns_and_folder(tmp_path):
    def fingerprint(rows=ROWS, folder="a", image_folder="", **more):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder / "d.parquet", rows)
        entry = {"file_name": "d.parquet", "columns": COLUMNS, **more}
        return load_source(describe(tmp_path / folder, entry), image_folder).fingerprint()

    same = fingerprint()
    assert same == fingerprint(folder="b")
    others = [
        fingerprint(rows=[*ROWS[:6], ROWS[0]]),
        fingerprint(columns=COLUMNS | {"system": None}),
        fingerprint(image_folder=str(tmp_path)),
        fingerprint(num_samples=3),
    ]
    assert len({same, *others}) == 5
