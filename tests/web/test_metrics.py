"""metrics.jsonl while it grows: torn lines, files that are written again, repeated steps, thousands of points."""

import csv
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvlm.web.curves import compare_curves, read_curves
from jaxvlm.web.glance import look
from jaxvlm.web.metrics_file import START, decimate, end_cursor, read_news
from tests.web.folders import client, make_run, make_studio, metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def replace(path, text):
    """As a resumed run does: another inode, as the old file is there until the end."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def loss(path):
    series = read_curves(path, 1000)["series"].get("loss", {"step": [], "stage": [], "x": []})
    return list(zip(series["stage"], series["step"], series["x"], strict=True))


def rows(*steps, stage=0, offset=0):
    return [(stage, step, step + offset) for step in steps]


# --- curves


def test_a_torn_last_line_is_read_when_it_is_whole(path):
    text = metrics([1, 2])
    append(path, text[:-30])
    assert loss(path) == rows(1)
    append(path, text[-30:])
    assert loss(path) == rows(1, 2)


def test_a_file_that_is_written_again(path):
    append(path, metrics(range(1, 11)))
    assert len(loss(path)) == 10
    replace(path, metrics(range(1, 5)))  # shorter
    assert loss(path) == rows(*range(1, 5))
    append(path, metrics([5]))
    replace(path, metrics(range(1, 4)) + metrics(range(4, 21), loss=0.5))  # longer
    found = read_curves(path, 1000)["series"]["loss"]
    assert found["step"] == [*range(1, 21)] and found["value"][3] == 0.5
    path.write_text(metrics(range(1, 3)))  # the same inode, shorter
    assert loss(path) == rows(1, 2)
    path.write_text(metrics(range(6, 30)))  # the same inode, longer
    assert loss(path) == rows(*range(6, 30))
    path.unlink()
    assert loss(path) == [] and read_curves(path, 10)["cursor"] == START


def test_steps_are_not_doubled(path):
    """Another writer, or a run whose lines were not dropped: the newest value of a step counts."""
    append(path, metrics(range(1, 11)) + metrics(range(8, 13), loss=0.25))
    found = read_curves(path, 1000)["series"]["loss"]
    assert found["step"] == [*range(1, 13)] and found["value"][7] == 0.25


def test_stages_follow_one_another(path):
    held_out = json.dumps({"stage": "b", "step": 2, "heldout_loss": 3.0}) + "\n"
    append(path, metrics([1, 2, 3], "a") + metrics([1, 2], "b") + held_out)
    found = read_curves(path, 1000)
    assert found["stages"] == [{"name": "a", "offset": 0, "last": 3}, {"name": "b", "offset": 3, "last": 2}]
    assert loss(path) == rows(1, 2, 3) + rows(1, 2, stage=1, offset=3)
    assert found["series"]["heldout_loss"] == {"step": [2], "value": [3.0], "stage": [1], "x": [5]}
    assert found["cursor"] == f"{path.stat().st_ino}:{path.stat().st_size}"


HOSTILE = [
    *("", "{", "null", "[]", '"x"', "\x00", "{}", '{"stage": "a"}', '{"stage": "a", "step": "1", "loss": 1}'),
    *('{"stage": 1, "step": 1, "loss": 1}', '{"stage": "a", "step": 1.5, "loss": 1}', '{"stage": "a", "step": -1}'),
    *('{"stage": "a", "step": true, "loss": 1}', '{"stage": "a", "step": 1e400}', "[" * 100_000),
    '{"stage": "a", "step": 99999999999999999999999, "loss": 1}',
    '{"stage": "a", "step": 1, "text": "x", "list": [1], "yes": true, "none": null}',
]


@pytest.mark.parametrize("line", HOSTILE)
def test_damaged_lines(path, line):
    append(path, f"{line}\n" + metrics([2]))
    found = read_curves(path, 1000)["series"]
    assert found["loss"]["step"] == [2] and set(found) == {"loss", "tokens", "step_seconds"}
    assert [entry["step"] for entry in read_news(path, f"{path.stat().st_ino}:0").lines][-1] == 2


def test_values_that_json_does_not_have(tmp_path):
    studio = make_studio(tmp_path)
    values = enumerate(["NaN", "1", "-Infinity", "1e999"])
    lines = "".join(f'{{"stage": "a", "step": {step}, "loss": {value}}}\n' for step, value in values)
    make_run(studio.root, lines=lines + '{"stage": "a", "step": 9, "loss": 12345678901234567890123456789e999}\n')
    reply = client(studio).get("/api/run/curves?run=run")
    assert reply.json()["series"]["loss"]["value"] == [None, 1.0, None, None, None]
    assert "NaN" not in reply.text and "Infinity" not in reply.text
    assert look(studio.root / "run" / "metrics.jsonl")["loss"] is None


def test_a_hostile_number_of_metrics(path):
    append(path, json.dumps({"stage": "a", "step": 1} | {f"m{i}": i for i in range(10_000)}) + "\n")
    append(path, "".join(json.dumps({"stage": f"s{i}", "step": 1, "m0": 1}) + "\n" for i in range(1000)))
    found = read_curves(path, 1000)
    assert len(found["series"]) == 200 and len(found["stages"]) == 200


def test_many_points_become_few(tmp_path):
    studio = make_studio(tmp_path)
    make_run(studio.root, lines=metrics(range(1, 5001)))
    found = client(studio).get("/api/run/curves?run=run&points=100").json()["series"]["loss"]
    assert len(found["x"]) <= 100 and found["x"][0] == 1 and found["x"][-1] == 5000
    assert len(client(studio).get("/api/run/curves?run=run").json()["series"]["loss"]["x"]) <= 2000
    for points in ("9", "20001", "x", "-1", "1.5", ""):
        assert client(studio).get(f"/api/run/curves?run=run&points={points}").status_code == 422


@settings(max_examples=40)
@given(
    st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=300),
    st.integers(10, 60),
)
def test_decimate(values, points):
    array = np.array(values)
    chosen = decimate(array, points)
    assert len(chosen) <= max(points, 10) and (np.diff(chosen) > 0).all()
    assert chosen[0] == 0 and chosen[-1] == len(values) - 1
    if not np.isnan(array).all():
        assert np.nanmin(array[chosen]) == np.nanmin(array) and np.nanmax(array[chosen]) == np.nanmax(array)


def test_decimate_keeps_a_spike():
    values = np.zeros(100_000)
    values[54_321], values[77_777] = 9.0, -9.0
    assert {54_321, 77_777} <= set(decimate(values, 2000))


# --- news


def test_news(path):
    assert read_news(path, START) == read_news(path, START).__class__(START, False, [])
    append(path, metrics([1]))
    first = read_news(path, START)
    assert [line["step"] for line in first.lines] == [1] and not first.reset
    append(path, metrics([2, 3])[:-5])
    second = read_news(path, first.cursor)
    assert [line["step"] for line in second.lines] == [2]
    append(path, metrics([2, 3])[-5:])
    third = read_news(path, second.cursor)
    assert [line["step"] for line in third.lines] == [3] and third.cursor == end_cursor(path)
    assert read_news(path, third.cursor) == third.__class__(third.cursor, False, [])


def test_all_news_arrive_whatever_the_pieces(path):
    append(path, metrics(range(1, 101)))
    cursor, steps = f"{path.stat().st_ino}:0", []
    for _ in range(1000):
        news = read_news(path, cursor, most=150)
        cursor, steps = news.cursor, steps + [line["step"] for line in news.lines]
    assert steps == [*range(1, 101)] and cursor == end_cursor(path)


@pytest.mark.parametrize("cursor", ["", "x", "1", "1:x", "0:-1", "999999999999999999999999:0", "-1:5", "1:2:3"])
def test_a_cursor_of_something_else(path, cursor):
    append(path, metrics([1, 2]) + "{")
    news = read_news(path, cursor)
    assert news.reset and news.lines == [] and news.cursor == f"{path.stat().st_ino}:{len(metrics([1, 2]))}"


def test_a_cursor_within_a_line_or_behind_the_end(path):
    append(path, metrics([1, 2]))
    inode, size = path.stat().st_ino, path.stat().st_size
    assert read_news(path, f"{inode}:{size + 1}").reset and read_news(path, f"{inode}:5").reset
    cursor = end_cursor(path)
    replace(path, metrics([1]))
    assert read_news(path, cursor).reset
    os.unlink(path)
    assert read_news(path, cursor).reset


def test_the_path_of_news(tmp_path):
    studio = make_studio(tmp_path)
    folder = make_run(studio.root, lines=metrics([1]))
    cursor = client(studio).get("/api/run/curves?run=run").json()["cursor"]
    append(folder / "metrics.jsonl", metrics([2], loss=float("nan")))
    found = client(studio).get("/api/run/metrics", params={"run": "run", "after": cursor}).json()
    assert [(line["step"], line["loss"]) for line in found["lines"]] == [(2, None)] and not found["reset"]
    assert client(studio).get("/api/run/metrics?run=run").status_code == 422


# --- tables and comparisons


def test_csv(tmp_path):
    studio = make_studio(tmp_path)
    held_out = json.dumps({"stage": "=cmd()", "step": 2, "heldout_loss": 3.0}) + "\n"
    make_run(studio.root, lines=metrics([1, 2], "=cmd()") + held_out)
    reply = client(studio).get("/api/run/curves.csv?run=run")
    assert "attachment" in reply.headers["content-disposition"]
    found = list(csv.reader(reply.text.splitlines()))
    assert found[0] == ["stage", "step", "loss", "tokens", "step_seconds", "heldout_loss"]
    assert found[1:] == [["'=cmd()", "1", "10.0", "100.0", "0.5", ""], ["'=cmd()", "2", "5.0", "100.0", "0.5", "3.0"]]


def test_a_comparison_by_steps_tokens_and_seconds(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    append(one, metrics([1, 2, 3]) + json.dumps({"stage": "align", "step": 3, "heldout_loss": 1}) + "\n")
    append(two, metrics([10, 20, 30], tokens=7.0, step_seconds=2.0))  # every tenth step is logged
    found = compare_curves([("one", one), ("two", two)], 100)
    assert found["loss"]["one"]["tokens"] == [100, 200, 300] and found["loss"]["one"]["seconds"] == [0.5, 1.0, 1.5]
    assert found["loss"]["two"]["tokens"] == [70, 140, 210] and found["loss"]["two"]["seconds"] == [20, 40, 60]
    assert found["heldout_loss"] == {"one": {"step": [3], "x": [3], "value": [1.0], "tokens": [300], "seconds": [1.5]}}


def test_a_comparison_without_tokens(path):
    append(path, '{"stage": "a", "step": 1, "loss": 1}\n')
    assert compare_curves([("run", path)], 100)["loss"]["run"]["tokens"] == [None]
