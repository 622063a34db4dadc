"""Readers of benchmark files: layouts, rows, images, and one error for all faults of a kind."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Row,
    RowError,
    find_layout,
    json_line_rows,
    json_rows,
    make_items,
    parquet_rows,
    tsv_rows,
)

LAYOUTS = {
    "official": {"questions": "questions.json", "annotations": ("v2.json", "v1.json")},
    "parquet": {"rows": ("data/val-*.parquet", "val*.parquet")},
}


def item(row):
    return Item(row.id("id"), (), row.text("question"), None, origin=row.origin)


def test_the_first_complete_layout_is_taken(tmp_path):
    (tmp_path / "questions.json").touch()
    with pytest.raises(UserError, match=r"layout official: v2\.json or v1\.json; layout parquet: .*from example\.org"):
        find_layout(tmp_path, LAYOUTS, "X val", "example.org")
    for name in ("val-00001.parquet", "val-00000.parquet"):
        (tmp_path / name).touch()
    name, files = find_layout(tmp_path, LAYOUTS, "X val", "example.org")
    assert (name, [path.name for path in files["rows"]]) == ("parquet", ["val-00000.parquet", "val-00001.parquet"])
    (tmp_path / "v1.json").touch()
    assert find_layout(tmp_path, LAYOUTS, "X val", "example.org")[0] == "official"
    with pytest.raises(UserError, match=r"there is no folder .*absent; its files come from example\.org"):
        find_layout(tmp_path / "absent", LAYOUTS, "X val", "example.org")


def test_json_lines_with_bom_crlf_blank_lines_and_line_separators(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"id": 1, "question": "a\u2028b"}\r\n\r\n{"id": 2}\r\n'.encode())
    rows = json_line_rows(path)
    assert [(row.values["id"], row.origin) for row in rows] == [(1, f"{path}:1"), (2, f"{path}:3")]
    assert rows[0].text("question") == "a\u2028b"
    path.write_text('{"id": 1}\nnot json\n[1]\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2 is not JSON .*a\.jsonl:3 is a JSON object, found list"):
        json_line_rows(path)
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(UserError, match="is not UTF-8"):
        json_line_rows(path)


def test_json_lists_and_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"questions": [{"id": 5}]}).encode())
    assert [(row.id("id"), row.origin) for row in json_rows(path, "questions")] == [("5", f"{path}[0]")]
    with pytest.raises(UserError, match='no list under "data"'):
        json_rows(path, "data")
    path.write_text(json.dumps({"q7": {"question": "?"}}))
    assert [(row.id("id"), row.text("question"), row.origin) for row in json_rows(path)] == [
        ("q7", "?", f"{path}['q7']")
    ]


def test_tsv_with_quotes_and_long_cells(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(
        b"\xef\xbb\xbf" + b'index\tquestion\timage\r\n1\t"a\t""b""\nc"\t' + b"A" * 200_000 + b"\r\n2\t\tx\r\n"
    )
    rows = tsv_rows(path)
    assert rows[0].values["question"] == 'a\t"b"\nc' and len(rows[0].values["image"]) == 200_000
    assert rows[1].values == {"index": "2", "question": "", "image": "x"}
    path.write_text("a\tb\n1\n")
    with pytest.raises(UserError, match=r"a\.tsv\[0\] has 1 cells, its header 2"):
        tsv_rows(path)


def test_parquet_as_hugging_face_stores_it(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image = {"bytes": b"\x89PNG", "path": "a.png"}
    table = pa.table({"id": [1, 2], "image": [image, dict(image)], "answers": [["a", "b"], None]})
    for number in range(2):
        pq.write_table(table, tmp_path / f"val-{number}.parquet")
    rows = list(parquet_rows([tmp_path / "val-0.parquet", tmp_path / "val-1.parquet"], ["id", "image", "answers"]))
    assert [row.origin for row in rows] == [str(tmp_path / f"val-{f}.parquet[{i}]") for f in (0, 1) for i in (0, 1)]
    assert rows[0].texts("answers") == ["a", "b"] and rows[1].get("answers", []) == []
    images = Images(tmp_path)
    first, second = images.of(rows[0].any("image")), images.of(rows[1].any("image"))
    assert first == b"\x89PNG" and first is second, "equal images are stored once"
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(parquet_rows([tmp_path / "bad.parquet"]))


def test_values_of_a_row():
    row = Row({"n": 3, "text": "a", "list": ["a"], "null": None, "yes": True}, "x[0]")
    assert (row.id("n"), row.text("absent", "text"), row.texts("list"), row.texts("text")) == ("3", "a", ["a"], ["a"])
    for call, message in [
        (lambda: row.text("n"), '"n" is a text, found int 3'),
        (lambda: row.text("gone"), r'"gone" is missing \(keys found: n, text'),
        (lambda: row.texts("n"), '"n" is a list of texts'),
        (lambda: row.id("yes"), "found bool True"),
        (lambda: row.id("null"), "found null"),
    ]:
        with pytest.raises(RowError, match=message):
            call()


def test_all_faults_of_a_kind_are_in_one_error(tmp_path):
    rows = [Row({"id": n, "question": "?"}, f"q[{n}]") for n in range(3)]
    assert [one.id for one in make_items(rows, item)] == ["0", "1", "2"]
    with pytest.raises(UserError, match=r'q\[9\]: "id" is missing.*; q\[10\]: "question" is missing'):
        make_items([*rows, Row({}, "q[9]"), Row({"id": 1}, "q[10]")], item)
    with pytest.raises(UserError, match=r"the same id: 0 \(q\[0\] and again\).*1 \(q\[1\] and later\)"):
        make_items([*rows, Row(rows[0].values, "again"), Row(rows[1].values, "later")], item)
    with pytest.raises(UserError, match="no question of this split"):
        make_items(rows, lambda row: None)


def test_missing_images_are_named_with_their_folders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "there.jpg").touch()
    images = Images(tmp_path, tmp_path / "b")
    assert images.find("gone.jpg", "there.jpg") == str(tmp_path / "b" / "there.jpg") and not images.missing
    for name in ("x.jpg", "x.jpg", "y.jpg"):
        images.find(name)
    with pytest.raises(UserError, match=r"2 images are missing: x\.jpg in .* or .*b; y\.jpg in"):
        make_items([Row({"id": 1, "question": "?"}, "q[0]")], item, images)
    for name in ("../x.jpg", "/etc/passwd", "", "a\0b"):
        with pytest.raises(RowError, match="no path within"):
            images.find(name)
    for cell in (None, {"bytes": None, "path": None}, 3, b""):
        with pytest.raises(RowError, match='an object of "bytes" and "path"'):
            images.of(cell)
