"""The index of a JSON file agrees with a parser that reads it whole, whatever the size of the window."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxvlm.data.records import RecordError
from jaxvlm.data.sources import json_items
from jaxvlm.data.sources.json_items import JsonItems
from jaxvlm.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.just('🙂é\\"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SAME_FOLDER = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=[1, 2, 3, 7, 40, 2**24])
def window(request, monkeypatch):
    monkeypatch.setattr(json_items, "_WINDOW", request.param)


@settings(max_examples=60, suppress_health_check=SAME_FOLDER)
@given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1]), st.sampled_from(["", "\ufeff"]))
def test_a_list(tmp_path, window, values, ascii, indent, bom):
    path = tmp_path / "a.json"
    path.write_text(bom + json.dumps(values, ensure_ascii=ascii, indent=indent) + "\n ", encoding="utf-8")
    items = JsonItems(path)
    assert [items[i] for i in range(len(items))] == values


@settings(max_examples=60, suppress_health_check=SAME_FOLDER)
@given(st.lists(VALUES | st.just("blank"), max_size=6), st.sampled_from(["\n", "\r\n", "\n \n\n"]), st.booleans())
def test_lines(tmp_path, window, values, newline, closed):
    path = tmp_path / "a.jsonl"
    lines = ["" if value == "blank" else json.dumps(value, ensure_ascii=False) for value in values]
    path.write_bytes((newline.join(lines) + (newline if closed else "")).encode())
    items = JsonItems(path)
    assert [items[i] for i in range(len(items))] == [value for value in values if value != "blank"]
    whole = path.read_bytes().split(b"\n")
    for i in range(len(items)):
        assert json.loads(whole[int(items.origin(i).rpartition(":")[2]) - 1]) == items[i]


@pytest.mark.parametrize(
    "text",
    ["[1 2]", "[1,]", "[", "[1", '["a', '["a"', "[1]x", "", "{}", "[nul]", '[{"a": 1}, {"b" 2}]', '["é",\n "🙂", x]'],
)
def test_a_broken_list_is_named_as_json_does(tmp_path, window, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        JsonItems(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        assert str(error).partition(": ")[2] in str(caught.value)


def test_where_utf8_ends(tmp_path, window):
    path = tmp_path / "a.json"
    path.write_bytes('["é",\n "🙂", "'.encode() + b'\xff"]')
    with pytest.raises(UserError, match="line 2, byte 17 is 0xff"):
        JsonItems(path)


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "NaN", "-Infinity"])
def test_a_number_that_is_too_large_breaks_its_own_record_at_most(tmp_path, number):
    path = tmp_path / "a.json"
    path.write_text(f"[1, {number}, 3]")
    items = JsonItems(path)
    assert (len(items), items[0], items[2]) == (3, 1, 3)
    if len(number) > 1000:
        with pytest.raises(RecordError, match="not valid JSON"):
            items[1]


def test_a_list_that_nests_too_deep(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1, " + "[" * 100_000 + "]" * 100_000 + "]")
    with pytest.raises(UserError, match=r"line 1 column 5 \(char 4\) nests lists or objects too deep"):
        JsonItems(path)


def test_a_file_that_is_gone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    items = JsonItems(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        items[0]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_the_fingerprint_is_one_of_the_content(tmp_path, name):
    def written(folder, text):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
        return JsonItems(tmp_path / folder / name).fingerprint()

    assert written("a", "[1]") == written("b", "[1]") != written("b", "[2]")
