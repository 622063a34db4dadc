"""Records out of files, and what is said of files and records that are wrong."""

import json
import pickle
import sys

import pytest

from jaxvlm.data.records import Record, RecordError, Turn
from jaxvlm.data.sources.easy_vqa import question_kind
from jaxvlm.data.sources.formats import LLAVA, ImageRule, make_record
from jaxvlm.data.sources.load import id_hash, load_source
from jaxvlm.errors import UserError
from tests.data.conftest import conversation

GOOD = {
    "id": "größe",
    "image": ["a.png", "/b.png"],
    "model": "ignored",
    "conversations": [
        {"from": "system", "value": "Kurz."},
        {"from": "human", "value": "<image> und <image>: 漢字?"},
        {"from": "gpt", "value": "ja 🙂"},
    ],
}
TURNS = (Turn("system", "Kurz."), Turn("user", "<image> und <image>: 漢字?"), Turn("assistant", "ja 🙂"))
TEXT = {"id": 7, "conversations": conversation("Hi", "Ho")}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ascii", [True, False])
def test_json(tmp_path, bom, ascii):
    path = tmp_path / "d.json"
    text = json.dumps([GOOD, TEXT, GOOD], ensure_ascii=ascii, indent=1)
    path.write_bytes(bom + text.encode())
    source = pickle.loads(pickle.dumps(load_source(str(path), allow_outside=True)))
    assert len(source) == 3
    images = (str(tmp_path / "a.png"), "/b.png")
    assert source[0] == Record("größe", TURNS, images, f"{path}[0]", notes=('key "model"',))
    assert source[1] == Record("7", (Turn("user", "Hi"), Turn("assistant", "Ho")), (), f"{path}[1]")
    assert source[2].turns == TURNS


def test_json_lines_with_blank_and_windows_lines(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(TEXT).encode() + b"\r\n\r\n" + json.dumps(GOOD, ensure_ascii=False).encode())
    source = load_source(str(path), str(tmp_path / "images"), allow_outside=True)
    assert [source.origin(i) for i in range(len(source))] == [f"{path}:1", f"{path}:3"]
    assert source[0].turns[1].text == "Ho"
    assert source[1].images[0] == str(tmp_path / "images" / "a.png")


def test_a_record_without_id_is_called_after_its_content(tmp_path):
    """So that it stays on its side of the held-out split, in another folder and between other records."""
    items = [
        {"conversations": conversation("<image>Hi", "Ho"), "image": "a.png"},
        {"conversations": conversation("<image>Hi", "Ho"), "image": "b.png"},
        {"conversations": conversation("<image>Hi", "Hum"), "image": "a.png"},
        {"conversations": conversation("Hi", "Ho")},
    ]
    ids = []
    for folder, file in ((tmp_path, items), (tmp_path / "moved", [TEXT, *items])):
        folder.mkdir(exist_ok=True)
        (folder / "d.json").write_text(json.dumps(file))
        source = load_source(str(folder / "d.json"))
        ids.append([source[i].id for i in range(len(source))])
    assert ids[1] == [str(TEXT["id"]), *ids[0]] and len(set(ids[0])) == 4
    rule = ImageRule(tmp_path)
    images = [make_record({**items[0], "image": data}, "somewhere", LLAVA, rule).id for data in (b"1", b"2")]
    assert images[0] != images[1]


@pytest.mark.parametrize(
    "line, reason, words",
    [
        (b"{", "invalid_json", ["not valid JSON"]),
        (b"[" * 100_000, "invalid_json", ["not valid JSON"]),
        (b'{"id": "\xff"}', "invalid_utf8", ["not UTF-8", "byte 8", "0xff"]),
        (b"[]", "wrong_type", ["a record is an object", "a list"]),
        (b'{"id": "a"}', "missing_key", ['"conversations" is missing', "keys found: id"]),
        (b'{"id": "a", "conversations": "x"}', "wrong_type", ['"conversations" is a list', 'a string ("x")']),
        (b'{"id": [1], "conversations": []}', "wrong_type", ['"id" is a string', "[1]"]),
        (b'{"id": "a", "conversations": [5]}', "wrong_type", ['"conversations"[0]', "a number (5)"]),
        (b'{"id": "a", "conversations": [{"from": "gpt"}]}', "missing_key", ['[0] lacks "value"']),
        (b'{"id": "a", "conversations": [{"from": "bot", "value": ""}]}', "unknown_role", ['"bot"', "human, gpt"]),
        (b'{"id": "a", "conversations": [{"from": "gpt", "value": null}]}', "wrong_type", ["null"]),
        (b'{"id": "a", "conversations": [], "image": [3, ""]}', "wrong_type", ['"image" is a path']),
        (b'{"id": "a", "conversations": [], "image": 3}', "wrong_type", ["found 3"]),
        (b'{"id": "\\ud800", "conversations": []}', "invalid_unicode", ["surrogate"]),
        (
            b'{"id": 1.5, "image": 3, "conversations": [{}, {"from": 1, "value": ""}]}',
            "missing_key",
            ["[1]", "3", "1.5"],
        ),
    ],
)
def test_a_bad_record_raises_alone_and_says_all(tmp_path, line, reason, words):
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(TEXT).encode() + b"\n" + line + b"\n")
    source = load_source(str(path))
    assert source[0].id == "7"
    with pytest.raises(RecordError) as caught:
        source[1]
    assert caught.value.reason == reason
    assert caught.value.origin == f"{path}:2"
    for word in [f"{path}:2", *words]:
        assert word in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.origin, copy.reason) == (str(caught.value), f"{path}:2", reason)


@pytest.mark.parametrize(
    "data, words",
    [
        (b'{"id": 1}', ["not a JSON list", "Expecting '['"]),
        (b"", ["not a JSON list"]),
        (b'[{"id": 1}\n {"id": 2}]', ["line 2", "','"]),
        (b'[{"id": 1},\n]', ["line 2"]),
        (b"[1] 2", ["Extra data"]),
        (b'[{"id":\n "\xfe"}]', ["line 2", "not UTF-8", "0xfe"]),
    ],
)
def test_a_broken_file(tmp_path, data, words):
    path = tmp_path / "d.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_source(str(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_an_empty_list_has_no_records(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(" [ ] \n")
    assert len(load_source(str(path))) == 0


def test_unknown_sources(tmp_path):
    with pytest.raises(UserError, match='"easy_vqa:train"'):
        load_source("easy_vqa")
    with pytest.raises(UserError, match="no such file"):
        load_source(str(tmp_path / "none.json"))
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(UserError, match="image_folder.*no such folder"):
        load_source(str(tmp_path / "d.json"), str(tmp_path / "none"))


def test_questions_of_a_file_have_the_turns_before_them_as_context(tmp_path):
    path = tmp_path / "d.json"
    turns = conversation("<image>\nA?", "a", "<image> B?", "b")
    path.write_text(json.dumps([{"id": "x", "image": ["1", "2"], "conversations": turns}]))
    source = load_source(str(path))
    first, second = source.questions(source[0])
    assert (first.id, [turn.text for turn in first.turns]) == ("x#0", ["<image>\nA?", "a"])
    assert (second.id, second.turns) == ("x#1", source[0].turns)
    assert (len(first.images), len(second.images)) == (1, 2)
    assert source.questions(first) == [first]


def test_easy_vqa():
    source = load_source("easy_vqa:train")
    assert len(source) == 4000
    record = source[0]
    assert record.turns[:4] == (
        Turn("user", "<image>\nwhat is the blue shape?"),
        Turn("assistant", "rectangle"),
        Turn("user", "what color is the shape?"),
        Turn("assistant", "blue"),
    )
    assert record.origin == "easy_vqa:train[0]"
    questions = source.questions(record)
    assert len(questions) == len(record.turns) // 2
    assert questions[1].turns == (Turn("user", "<image>\nwhat color is the shape?"), Turn("assistant", "blue"))
    assert questions[1].images == record.images
    assert {question.group for question in questions} == {"shape", "color", "yes/no"}


def test_easy_vqa_test_has_every_question_once():
    source = load_source("easy_vqa:test")
    questions = [question for i in range(len(source)) for question in source.questions(source[i])]
    assert len(questions) == len({question.id for question in questions}) == 9673


def test_easy_vqa_of_some_kinds():
    source = load_source("easy_vqa:test:shape+color")
    questions = [question for i in range(len(source)) for question in source.questions(source[i])]
    assert {question.group for question in questions} == {"shape", "color"} and len(questions) == 1257 + 1280
    assert source.origin(3) == "easy_vqa:test:shape+color[3]"
    with pytest.raises(UserError, match="easy_vqa:train:colour' is unknown.*:shape.color.yes/no"):
        load_source("easy_vqa:train:colour")


def test_easy_vqa_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[quickstart\]'"):
        load_source("easy_vqa:train")


@pytest.mark.parametrize(
    "question, kind",
    [
        ("what is the blue shape?", "shape"),
        ("what shape is present?", "shape"),
        ("what is the color of the circle?", "color"),
        ("is there not a red shape?", "yes/no"),
        ("does the image contain a circle?", "yes/no"),
    ],
)
def test_question_kind(question, kind):
    assert question_kind(question) == kind


def test_heldout_is_a_share_that_grows_and_never_moves():
    ids = [f"id-{i}" for i in range(2000)]
    small, large = ({i for i in ids if id_hash(i) < share * 2**64} for share in (0.1, 0.2))
    assert small < large
    assert 150 < len(small) < 250
    assert sorted(small)[:2] == ["id-1000", "id-1002"]  # noted once: the split is part of a recipe's result
