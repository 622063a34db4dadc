"""`check` says what would be lost and leaves it in files; `show` writes the rows that training would see."""

import ast
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from jaxvlm import inspect_data, train
from jaxvlm.command import run
from jaxvlm.errors import UserError
from jaxvlm.inspect import stage_data
from tests.data.conftest import conversation, write_records
from tests.data.test_pipeline import BAD

RECIPE = "tests/e2e/small.py"
STAGE = "config.stage.only"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command on the small recipe; returns exit code, what was printed, and the JSON line if there is one."""

    def command(data, *arguments):
        monkeypatch.setenv("JAXVLM_TEST_DATA", str(data))
        code = run(inspect_data.main, [*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        lines = out.strip().splitlines()
        return code, out + err, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}

    return command


def check(command, data, out, *overrides):
    return command(data, "check", "--config", RECIPE, "--out", out, *overrides)


def recipe_of(folder, mix):
    """The small recipe with several sources."""
    path = folder / "recipe.py"
    path.write_text(
        f"from tests.e2e import small\n\n\ndef get_config():\n    c = small.get_config()\n"
        f"    c.stage.only.data.source, c.stage.only.data.mix = '', {mix}\n    return c\n"
    )
    return path


def test_check_of_sound_data(command, tmp_path):
    data = write_records(tmp_path, 50)
    code, printed, result = check(command, data, tmp_path / "out", f"--{STAGE}.data.tokens=128", "--rows=2")
    assert code == 0 and not result["loses"] and result["records"] == 50
    (source,) = result["sources"]
    assert (source["records"], source["with_images"], source["images"]) == (50, 40, 40)
    assert result["plan"]["steps"] > 0 and 0 < result["plan"]["filled"] <= 1
    assert "every record would be seen whole" in printed
    assert (tmp_path / "out" / "problems.jsonl").read_text() == ""
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(result))
    picture = np.asarray(Image.open(tmp_path / "out" / "lengths.png").convert("L"))
    assert picture.std() > 5
    check_rows(tmp_path / "out")


def test_rows_are_there_before_all_records_are_read(command, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise UserError("the report is not reached")

    monkeypatch.setattr(stage_data, "make_report", stopped)
    monkeypatch.setattr(stage_data, "_CHOICE", 7)
    data = write_records(tmp_path, 50)
    code, printed, _ = check(command, data, tmp_path / "out", f"--{STAGE}.data.tokens=128", "--rows=9")
    assert code == 2 and "not reached" in printed
    ids = [record["id"] for record in json.loads((tmp_path / "out" / "rows.json").read_text())]
    assert 0 < len(ids) <= 7 and len({*ids}) == len(ids)
    assert not (tmp_path / "out" / "report.json").exists()


def check_rows(out):
    """The rows for programs: trained tokens spell the answers of the turns, and each image is a file."""
    records = json.loads((out / "rows.json").read_text())
    assert len({record["row"] for record in records}) == 2 and "2 rows" not in records[0]["row"]
    for record in records:
        answers = "".join(turn["text"] for turn in record["turns"] if turn["role"] == "assistant")
        trained = "".join(token["text"] for token in record["tokens"] if token.get("trained") and not token["control"])
        assert trained.replace(" ", "") == answers.replace(" ", "")
        assert record["trained"] == sum(token.get("trained", False) for token in record["tokens"])
        assert record["positions"] == sum(token.get("count", 1) for token in record["tokens"])
        shown = {token["picture"] for token in record["tokens"] if "picture" in token}
        assert len(shown) == len(record["images"])
        assert all(Image.open(out / "pictures" / name).size[0] > 1 for name in shown)
    assert (out / "rows.html").read_text().count("<article") == 2


def test_check_counts_answers_before_the_first_question(command, tmp_path):
    data = write_records(tmp_path, 20)
    items = json.loads(data.read_text())
    for item in items[3:5]:
        item["conversations"].insert(0, {"from": "gpt", "value": "hello"})
    data.write_text(json.dumps(items))
    code, printed, result = check(command, data, tmp_path / "out", f"--{STAGE}.data.tokens=128")
    assert code == 0 and not result["loses"] and result["unasked"] == 2  # left out by LLaVA too
    assert "2 records begin with an answer, which would be left out" in printed and "seen whole" not in printed


def test_check_of_data_without_a_record_to_train_on(command, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    code, printed, result = check(command, tmp_path / "none.json", tmp_path / "out")
    assert code == 2 and result["loses"] and result["records"] == 0
    assert "leaves no record to train on" in result["plan"] and result["plan"] in printed
    assert "seen whole" not in printed


def test_check_names_every_record_that_would_be_lost(command, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    good = {"id": "a", "image": "good.png", "conversations": conversation("<image>\nwhat", "red")}
    long = {"id": "z", "conversations": conversation("what", "red " * 300)}
    broken = [item for reason, item in BAD.items() if reason != "too_many_images"]
    lines = [item if isinstance(item, str) else json.dumps(item) for item in (good, *broken, long)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = f"--{STAGE}.data."
    code, printed, result = check(command, tmp_path / "a.jsonl", tmp_path / "out", f"{data}media.units=2")
    assert code == 2 and result["loses"]
    lost = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [item["origin"] for item in lost] == [f"{tmp_path}/a.jsonl:{n}" for n in range(2, len(lines) + 1)]
    reasons = [item["reason"] for item in lost]
    assert reasons == [reason for reason in BAD if reason != "too_many_images"] + ["truncated"]
    assert sum(result["rejected"].values()) == len(lost) - 1 and result["truncated"] == 1
    for item in lost[:-1]:
        assert item["reason"] in printed and item["origin"] in printed
    # What it says would lose nothing loses nothing but the records that are broken in themselves.
    rows = result["lossless"]
    changes = [f"{data}tokens={rows['tokens']}", f"{data}media.units={rows['units']}"]
    _, _, again = check(command, tmp_path / "a.jsonl", tmp_path / "out", *changes)
    assert again["truncated"] == 0 and "answer_beyond_row" not in again["rejected"]
    assert rows["rejected"] == rows["truncated"] == rows["cut"] == 0
    shorter = check(command, tmp_path / "a.jsonl", tmp_path / "out", f"{data}tokens={rows['tokens'] - 64}")[2]
    assert shorter["truncated"] + sum(shorter["rejected"].values()) > sum(again["rejected"].values())


def test_check_counts_what_other_rows_would_lose(command, tmp_path):
    data = write_records(tmp_path, 80, rounds=6)
    _, _, result = check(command, data, tmp_path / "out")
    for rows in result["rows"]:
        key = f"--{STAGE}.data."
        sizes = (f"{key}tokens={rows['tokens']}", f"{key}media.units={rows['units']}")
        code, printed, found = check(command, data, tmp_path / "out", *sizes)
        assert found["rows"][0] | {"cost": rows["cost"]} == rows  # relative to the recipe's own rows
        assert (code == 2) == bool(rows["rejected"] or rows["truncated"])


def test_check_finds_what_is_there_twice(command, tmp_path):
    data = write_records(tmp_path, 30)
    records = json.loads(data.read_text())
    copy = records[7] | {"id": "another"}
    os.link(tmp_path / records[8]["image"], tmp_path / "same.png")
    twice = records[9] | {"id": "twice in one", "image": ["twice.png"] * 2}
    twice["conversations"] = conversation("<image> or <image>", "both")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "twice.png")
    data.write_text(json.dumps([*records, copy, records[8] | {"id": "third", "image": "same.png"}, twice]))
    _, printed, result = check(command, data, tmp_path / "out")
    assert result["duplicates"]["image"]["repeated"] == 2
    assert result["duplicates"]["conversation"]["repeated"] >= 2
    assert f"2 times: {data}[7], {data}[30]" in printed


@pytest.mark.parametrize("arguments", [["check"], ["show"], ["show", "--config", RECIPE, "--rows", "0"]])
def test_arguments_that_cannot_be(command, tmp_path, arguments):
    code, printed, _ = command(write_records(tmp_path, 5), *arguments)
    assert code == 2 and "error: " in printed


def test_show_writes_the_rows_of_training(command, tmp_path):
    data = write_records(tmp_path, 40)
    code, printed, result = command(data, "show", "--config", RECIPE, "--out", tmp_path / "out", "--rows", "3")
    assert code == 0 and result["rows"] == 3
    page = (tmp_path / "out" / "rows.html").read_text()
    shown = set(re.findall(r"record-\d+", page))
    assert len(shown) >= 3 and "data:image/png;base64," in page
    later = command(data, "show", "--config", RECIPE, "--out", tmp_path / "out", "--rows", "3", "--first", "3")
    assert later[2]["rows"] == 3
    assert not shown & set(re.findall(r"record-\d+", (tmp_path / "out" / "rows.html").read_text()))
    code, printed, _ = command(data, "show", "--config", RECIPE, "--out", tmp_path, "--first", "1000")
    assert code == 2 and "--first 1000: an epoch has" in printed


@pytest.mark.parametrize("name", ["check", "show", "prepare"])
def test_a_folder_that_cannot_be_written(command, tmp_path, name):
    data = write_records(tmp_path, 5)
    for out, words in (
        (data, f"error: {data}.* cannot be written .*; check --out"),
        (data / "out", "cannot be written .*Not a directory"),
        ("gs://bucket/out", "gs://bucket/out is not a local folder; give one, and copy it when"),
    ):
        code, printed, _ = command(data, name, "--config", RECIPE, "--out", out)
        assert code == 2 and re.search(words, printed) and "Traceback" not in printed


def test_prepare_says_what_the_recipe_is_to_name(command, tmp_path):
    """Of a mix, with a broken record and a broken image, which are counted."""
    first, second = write_records(tmp_path, 20), tmp_path / "second.json"
    items = json.loads(first.read_text())
    second.write_text(json.dumps([*items[:5], {"id": "x"}]))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:60] + whole[70:])  # header and end are whole
    mix = f"(({str(first)!r}, 1 / 3), ({str(second)!r}, 2.0))"
    arguments = ["prepare", "--config", recipe_of(tmp_path, mix), "--out", tmp_path / "out", "--shard-records", "8"]
    code, printed, _ = command(first, *arguments)
    assert code == 2 and "1 of 26 records break a rule" in printed and "--on-bad skip" in printed
    code, printed, result = command(first, *arguments, "--on-bad", "skip")
    assert code == 0 and "19 of 20 records (card.json names the others)" in printed
    assert "4 of 6 records (card.json names the others)" in printed
    assert [ledger["read"] for ledger in result["folders"].values()] == [20, 6]
    named = re.search(r"the recipe's data: mix=(.*)", printed)[1]
    (one, weight), (two, double) = ast.literal_eval(named)
    assert (weight, double) == (1 / 3, 2.0) and [one, two] == list(result["folders"])
    code, printed, result = command(first, "check", "--config", recipe_of(tmp_path, named), "--out", tmp_path / "out")
    assert [source["records"] for source in result["sources"]] == [19, 4] and result["rejected"] == {}


def test_show_opens_the_batch_of_a_loss_that_was_not_finite(command, tmp_path, monkeypatch):
    data = write_records(tmp_path, 40)
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(data))
    overrides = [f"--{STAGE}.optimizer.learning_rate=1e30", f"--{STAGE}.optimizer.warmup=0.0"]
    workdir = tmp_path / "run"
    code = run(train.main, ["--config", RECIPE, "--workdir", str(workdir), *overrides])
    assert code == 2  # the loss was not finite
    folder = sorted((workdir / "nonfinite").iterdir())[0]
    code, printed, result = command(data, "show", "--batch", folder)
    assert code == 0, printed
    records = [record for row in json.loads((folder / "process-0.json").read_text()) for record in row]
    page = (folder / "rows.html").read_text()
    assert result["rows"] > 0 and all(record["id"] in page for record in records)
    code, printed, _ = command(data, "show", "--batch", tmp_path)
    assert code == 2 and "holds no batch" in printed
