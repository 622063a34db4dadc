"""Dictionaries in, turns out; and what is said of dictionaries that are wrong."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.sources.formats import LLAVA, OPENAI, SHAREGPT, Alpaca, Document, ImageRule, make_record, recognise
from jaxvlm.errors import UserError

RULE = ImageRule(Path("/data"))
ASK = {"from": "human", "value": "Q"}
SEE = {"from": "human", "value": "<image>Q"}
SAY = {"from": "gpt", "value": "A"}
PAIRS = dataclasses.replace(SHAREGPT, chosen="chosen", rejected="rejected")
FULL = dataclasses.replace(SHAREGPT, system="system", images="images")
ALPACA = Alpaca(history="history", system="system", images="images")
ALPACA_PAIRS = Alpaca(chosen="chosen", rejected="rejected")


def turns(record):
    return [f"{turn.role}: {turn.text}" for turn in record.turns]


@pytest.mark.parametrize(
    "format, item, expected",
    [
        (LLAVA, {"conversations": [SAY, ASK, SAY]}, ["assistant: A", "user: Q", "assistant: A"]),
        (SHAREGPT, {"conversations": [ASK, SAY]}, ["user: Q", "assistant: A"]),
        (FULL, {"conversations": [ASK, SAY], "system": "S"}, ["system: S", "user: Q", "assistant: A"]),
        (FULL, {"conversations": [ASK, SAY], "system": None}, ["user: Q", "assistant: A"]),
        (
            FULL,
            {"conversations": [{"from": "system", "value": "first"}, ASK, SAY], "system": "S"},
            ["system: first", "user: Q", "assistant: A"],
        ),
        (
            OPENAI,
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "tool_calls": None}]},
            ["user: Q", "assistant: A"],
        ),
        (
            OPENAI,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                ]
            },
            ["user: <image>Q", "assistant: A"],
        ),
        (ALPACA, {"instruction": "Q", "input": "more", "output": "A"}, ["user: Q\nmore", "assistant: A"]),
        (ALPACA, {"instruction": "Q", "input": "", "output": "A"}, ["user: Q", "assistant: A"]),
        (ALPACA, {"instruction": "", "input": "more", "output": "A"}, ["user: more", "assistant: A"]),
        (ALPACA, {"instruction": "Q", "output": "<image>"}, ["user: Q", "assistant: <image>"]),
        (LLAVA, {"conversations": [SEE, SAY], "images": []}, ["user: <image>Q", "assistant: A"]),
        (
            ALPACA,
            {"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"], ["r", "b"]]},
            ["system: S", "user: q", "assistant: a", "user: r", "assistant: b", "user: Q", "assistant: A"],
        ),
    ],
)
def test_turns(format, item, expected):
    assert turns(make_record(item, "x[0]", format, RULE)) == expected


def test_pairs_keep_both_answers():
    other = {"from": "gpt", "value": "B"}
    record = make_record({"conversations": [ASK], "chosen": SAY, "rejected": other}, "x[0]", PAIRS, RULE)
    assert (turns(record), record.rejected) == (["user: Q", "assistant: A"], "B")
    record = make_record({"instruction": "Q", "chosen": "A", "rejected": "B"}, "x[0]", ALPACA_PAIRS, RULE)
    assert (turns(record), record.rejected) == (["user: Q", "assistant: A"], "B")


@pytest.mark.parametrize(
    "format, item, reason, words",
    [
        (SHAREGPT, {"conversations": [SAY, ASK]}, "roles", ["turn 0 is of role assistant", "expected user"]),
        (SHAREGPT, {"conversations": [ASK, ASK]}, "roles", ["turn 1", "expected assistant"]),
        (SHAREGPT, {"conversations": [ASK, SAY, ASK]}, "last_turn", ["role assistant, found user"]),
        (SHAREGPT, {"conversations": []}, "no_turns", ["none of a user"]),
        (SHAREGPT, {"conversations": [ASK, {"from": "function_call", "value": "f"}]}, "unsupported", ["tools"]),
        (SHAREGPT, {"conversations": [ASK, {"from": "bot", "value": "f"}]}, "unknown_role", ["human, gpt or system"]),
        (
            OPENAI,
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "unsupported",
            ['"messages"[1] has "tool_calls"'],
        ),
        (OPENAI, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "wrong_type", ["image_url"]),
        (
            LLAVA,
            {"conversations": [SEE, SAY], "images": ["a.png"], "image": "b.png"},
            "several_image_keys",
            ['"image" and "images"'],
        ),
        (
            SHAREGPT,
            {"conversations": [SEE, SAY], "images": ["a.png"]},
            "images_unread",
            ["columns.images names no key"],
        ),
        (PAIRS, {"conversations": [ASK, SAY], "chosen": SAY, "rejected": SAY}, "last_turn", ["role user"]),
        (PAIRS, {"conversations": [ASK], "chosen": SAY}, "missing_key", ['"rejected"']),
        (PAIRS, {"conversations": [ASK], "chosen": ASK, "rejected": SAY}, "roles", ['"chosen"', "assistant"]),
        (ALPACA, {"output": "A"}, "missing_key", ['"instruction" or "input"']),
        (ALPACA, {"instruction": "Q"}, "missing_key", ['"output"', "keys found: instruction"]),
        (ALPACA, {"instruction": "Q", "output": None}, "wrong_type", ['"output" is a string, found null']),
        (ALPACA, {"instruction": "Q", "output": " "}, "empty_turn", ['"output"']),
        (ALPACA, {"instruction": 7, "output": "A"}, "wrong_type", ["a number (7)"]),
        (ALPACA, {"instruction": "Q", "output": "A", "history": [["q"]]}, "wrong_type", ['"history" is a list of']),
        (ALPACA_PAIRS, {"instruction": "Q", "chosen": "A", "rejected": ""}, "empty_turn", ['"rejected"']),
    ],
)
def test_a_wrong_record(format, item, reason, words):
    with pytest.raises(RecordError) as caught:
        make_record(item, "x[0]", format, RULE)
    assert caught.value.reason == reason
    for word in ["x[0]", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "images, expected",
    [
        (None, ()),
        ([], ()),
        ("a.png", ("/data/a.png",)),
        (["a.png", "/data/b/c.png", "b/../d.png"], ("/data/a.png", "/data/b/c.png", "/data/b/../d.png")),
        (b"bytes", (b"bytes",)),
        ({"bytes": b"bytes", "path": "a.png"}, (b"bytes",)),
        ([{"bytes": None, "path": "a.png"}, {"bytes": b"b"}], ("/data/a.png", b"b")),
    ],
)
def test_images(images, expected):
    item = {"instruction": "Q", "output": "A", "images": images}
    assert make_record(item, "x[0]", ALPACA, RULE).images == expected


@pytest.mark.parametrize(
    "image, reason",
    [
        ("http://host/a.png", "image_url"),
        ("gs://bucket/a.png", "image_url"),
        ("data:image/png;base64,AAAA", "image_base64"),
        ("../a.png", "image_outside"),
        ("b/../../a.png", "image_outside"),
        ("/database/a.png", "image_outside"),
        ("/data/../etc/passwd", "image_outside"),
        ("a\0.png", "image_path"),
        (3, "wrong_type"),
        ({"bytes": None, "path": None}, "wrong_type"),
        (["a.png", None], "wrong_type"),
    ],
)
def test_an_image_that_is_refused(image, reason):
    with pytest.raises(RecordError) as caught:
        make_record({"instruction": "Q", "output": "A", "images": image}, "x[0]", ALPACA, RULE)
    assert caught.value.reason == reason


def test_images_outside_if_allowed():
    item = {"instruction": "Q", "output": "A", "images": ["../a.png", "/b.png"]}
    assert make_record(item, "x[0]", ALPACA, ImageRule(Path("/data"), True)).images == ("/data/../a.png", "/b.png")


def test_a_relative_image_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item = {"instruction": "Q", "output": "A", "images": [f"{tmp_path}/sub/a.png", "b.png"]}
    rule = ImageRule(Path("sub"))
    assert make_record(item, "x[0]", ALPACA, rule).images == (f"{tmp_path}/sub/a.png", "sub/b.png")
    with pytest.raises(RecordError, match="leads out"):
        make_record(item | {"images": f"{tmp_path}/a.png"}, "x[0]", ALPACA, rule)
    (tmp_path / "sub").symlink_to("/")  # a link is the user's own choice
    assert make_record(item, "x[0]", ALPACA, rule).images[1] == "sub/b.png"


@pytest.mark.parametrize(
    "columns, expected",
    [
        (["messages", "images", "source"], dataclasses.replace(OPENAI, images="images", strict=False)),
        (["conversations", "image", "id"], dataclasses.replace(LLAVA, images="image", videos=None)),
        (
            ["conversations", "imgs", "system_prompt"],
            dataclasses.replace(LLAVA, images="imgs", videos=None, system="system_prompt"),
        ),
        (["question", "answer", "image", "image_url"], Alpaca("question", None, "answer", images="image")),
        (["instruction", "output", "system"], Alpaca(query=None, system="system")),
        (["instruction", "input", "output"], Alpaca()),
        (["question", "answer", "video", "fps"], Alpaca("question", None, "answer", videos="video")),
        (["text", "url"], Document()),
    ],
)
def test_recognise(columns, expected):
    assert recognise(columns, "x", "") == expected


@pytest.mark.parametrize(
    "columns", [[], ["texts"], ["instruction"], ["messages", "image", "images"], ["messages", "video", "videos"]]
)
def test_columns_of_no_format(columns):
    with pytest.raises(UserError, match="hf:x: its columns .*; fix them"):
        recognise(columns, "hf:x", "fix them")


NAMES = ["conversations", "messages", "from", "value", "role", "content", "image", "images", "chosen", "rejected"]
NAMES += ["instruction", "input", "output", "system", "history", "id", "type", "text", "bytes", "path", "tool_calls"]
NAMES += ["video", "videos", "fps"]
WORDS = [
    "human",
    "gpt",
    "system",
    "user",
    "assistant",
    "tool",
    "text",
    "image",
    "video",
    "<video>",
    "<image>",
    "\ud800",
    "\0",
    "../a",
    "a://b",
    "x",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(WORDS)
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=2), inner, max_size=5)
    ),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(WORDS), "value": VALUES, "role": st.sampled_from(WORDS)}), max_size=4
)
ITEMS = VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES | TURNS, max_size=8)
COLUMN = st.none() | st.sampled_from(NAMES)


@settings(max_examples=100)
@given(ITEMS, st.data())
def test_whatever_comes_in_a_record_or_a_record_error_comes_out(item, data):
    chats = st.builds(
        dataclasses.replace,
        st.sampled_from([LLAVA, SHAREGPT, OPENAI]),
        messages=st.sampled_from(NAMES),
        images=COLUMN,
        videos=COLUMN,
        system=COLUMN,
        chosen=COLUMN,
        rejected=COLUMN,
    )
    response, prompt = st.sampled_from(NAMES), st.sampled_from(NAMES)
    alpacas = st.builds(
        Alpaca, prompt, COLUMN, response, COLUMN, COLUMN, COLUMN, COLUMN, st.none() | response, response
    )
    format = data.draw(chats | alpacas | st.sampled_from([LLAVA, FULL, OPENAI, ALPACA, PAIRS, ALPACA_PAIRS]))
    try:
        record = make_record(item, "x[0]", format, RULE)
    except RecordError as error:
        assert error.reason and error.origin == "x[0]"
        str(error).encode()  # so that it can be printed
    else:
        assert isinstance(record, Record)
        for text in [record.id, record.rejected, *(turn.text for turn in record.turns)]:
            text.encode()
