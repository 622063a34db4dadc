"""`evaluate --suite` on a tiny run with random weights and a made-up benchmark."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxvlm import evaluate, restore
from jaxvlm.command import run
from jaxvlm.config import MeshConfig
from jaxvlm.evaluation import suite
from jaxvlm.evaluation.answer_log import AnswerLog
from jaxvlm.evaluation.task import load_tasks
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import open_run
from jaxvlm.sharding import make_mesh
from tests import tiny
from tests.evaluation import colours
from tests.inference import tiny_run

SPEC = "tests.evaluation.colours.Colours"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return colours.write_files(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = tiny_run.write_data(tmp_path_factory.mktemp("data"))
    return tiny_run.make_run(tmp_path_factory.mktemp("runs") / "tiny", tiny.config(tiny_run.recipe(data)))


@pytest.fixture(scope="module")
def flags(folder, root):
    return ["--run", str(folder), "--suite", SPEC, "--data", str(root), "--batch-size", "8"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The folder of an undisturbed evaluation."""
    out = tmp_path_factory.mktemp("whole")
    evaluate.main([*flags, "--out", str(out)])
    return out


def saved(out, name="colours"):
    return json.loads((out / f"{name}.json").read_text())


def test_a_result_says_what_was_measured(flags, folder, whole, root):
    result = saved(whole)
    assert (result["benchmark"], result["split"], result["dialect"]) == ("colours", "test", "llava")
    assert result["model"] | {"weights": ""} == {"run": str(folder), "stage": "finetune", "step": 0, "weights": ""}
    assert result["data"]["count"] == result["data"]["of"] == 24 and list(result["data"]["files"]) == [
        "questions.jsonl"
    ]
    answers = result["answers"]
    assert [row["id"] for row in answers][:2] == ["0-is", "1-is"] and len(answers) == 24
    assert result["scores"]["accuracy"] == pytest.approx(100 * np.mean([row["credit"] for row in answers]))
    assert result["interval"]["low"] <= result["scores"]["accuracy"] <= result["interval"]["high"]
    assert result["interval"]["clusters"] == 12
    assert result["unparsed"]["count"] == sum(row["value"] is None for row in answers) > 0
    assert result["truncated"]["count"] == sum(row["tokens"] == 6 for row in answers)
    assert len(result["unparsed"]["examples"]) == min(5, result["unparsed"]["count"])
    assert [found["value"] for found in result["published"]] == [77.0]
    assert result["groups"]["kind"].keys() == result["group_counts"]["kind"].keys() == {"yes/no", "colour"}
    with open(whole / "colours-submission" / "answers.txt", newline="") as file:
        assert file.read() == "".join(f"{row['id']}\t{row['text']}\n" for row in answers)


def test_the_answers_are_those_of_the_engine(flags, folder, whole, root):
    (task,) = load_tasks([SPEC], root)
    records = [task.record(item) for item in task.items]
    answers = Engine.of(open_run(folder)).answer(records, max_new_tokens=6, batch_size=8)
    assert [row["text"] for row in saved(whole)["answers"]] == answers


def test_a_killed_evaluation_resumes_to_the_same_result(flags, whole, tmp_path, monkeypatch, capsys):
    append, asked = AnswerLog.append, []

    def killed(log, reply):
        if len(asked) == 11:
            raise KeyboardInterrupt
        asked.append(reply.id)
        append(log, reply)

    monkeypatch.setattr(AnswerLog, "append", killed)
    arguments = [*flags, "--out", str(tmp_path)]
    assert run(evaluate.main, arguments) == 130
    monkeypatch.setattr(AnswerLog, "append", append)
    assert not (tmp_path / "colours.json").exists()
    assert run(evaluate.main, arguments) == 2
    assert "11 of 24 answers of an evaluation that was stopped; pass --resume" in capsys.readouterr().err
    assert run(evaluate.main, [*arguments, "--resume", "--max-new-tokens", "2"]) == 2
    assert "other settings: max_new_tokens: 6 -> 2" in capsys.readouterr().err
    monkeypatch.setattr(suite, "weights_fingerprint", lambda engine: "others")
    assert run(evaluate.main, [*arguments, "--resume"]) == 2
    assert "weights: '" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(evaluate.main, [*arguments, "--resume"]) == 0
    found, expected = saved(tmp_path), saved(whole)
    assert (found["answered"], expected["answered"]) == (13, 24)
    same = expected.keys() - {"answered", "seconds"}
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}


def test_answers_of_a_file_give_the_same_result(whole, root, tmp_path, capsys):
    file = whole / "colours.answers.jsonl"
    out = ["--data", str(root), "--out", str(tmp_path), "--json"]
    assert run(evaluate.main, ["--suite", SPEC, "--answers", str(file), *out]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])["colours-colours.answers"]
    found, expected = saved(tmp_path, "colours-colours.answers"), saved(whole)
    for name in ("scores", "interval", "groups", "answers", "unparsed", "truncated", "data"):
        assert found[name] == expected[name]
    assert printed["scores"] == found["scores"] and found["model"]["answers"] == str(file)


def test_no_result_replaces_one_of_another_kind(flags, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    evaluate.main([*flags, *out, "--limit", "6"])
    text = capsys.readouterr().out
    assert "6 of 24 questions, a fixed random choice" in text and "6 of 24" in text.splitlines()[-1]
    evaluate.main([*flags, *out, "--limit", "6", "--stage", "finetune", "--dialect", "official"])
    evaluate.main([*flags, *out, "--limit", "6", "--split", "hidden"])
    assert "a server scores the submission" in capsys.readouterr().out
    names = ["colours-hidden-sample6", "colours-official-finetune-0-sample6", "colours-sample6"]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == names
    assert not list(tmp_path.glob("*-submission"))  # a server wants all questions
    hidden, shown = (saved(tmp_path, names[place]) for place in (0, 2))
    assert hidden["interval"] is None and shown["published"][0]["value"] == 77.0
    assert len(shown["answers"]) == 6


def test_choices_are_ranked_by_their_likelihood(flags, folder, root, tmp_path):
    for scoring in ("loglikelihood", "loglikelihood_mean"):
        evaluate.main([*flags, "--out", str(tmp_path), "--scoring", scoring])
    (task,) = load_tasks([SPEC], root, scoring="loglikelihood")
    engine, item = Engine.of(open_run(folder)), task.items[-1]
    records = [task.record(item, text) for text in item.choices]
    direct = engine.loglikelihoods(records, batch_size=8)
    summed, mean = (saved(tmp_path, f"colours-{name}") for name in ("loglikelihood", "loglikelihood_mean"))
    row = summed["answers"][-1]
    assert row["scores"] == pytest.approx([one.logprob for one in direct], rel=1e-4)
    assert row["text"] == item.choices[int(np.argmax(row["scores"]))] == row["value"]
    assert mean["answers"][-1]["scores"] == pytest.approx([one.logprob / one.tokens for one in direct], rel=1e-4)
    assert summed["unparsed"]["count"] == 0 and summed["published"] == []


def test_several_suites_share_the_model(flags, tmp_path, monkeypatch, capsys):
    opened, load = [], restore.load_params

    def counted(*arguments, **options):
        opened.append(1)
        return load(*arguments, **options)

    monkeypatch.setattr(restore, "load_params", counted)
    names = f"{SPEC},{SPEC}:hidden"
    result = evaluate.main([*flags, "--suite", names, "--out", str(tmp_path), "--limit", "4"])
    assert list(result) == ["colours-sample4", "colours-hidden-sample4"] and len(opened) == 1
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].startswith("benchmark") and table[1].startswith("Colours test") and "77 Nobody 7B" in table[1]


def test_weights_are_told_apart_on_any_number_of_devices(folder):
    opened = open_run(folder)
    engine = Engine.of(opened)
    whole = suite.weights_fingerprint(engine)
    one = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    host = jax.tree.map(np.asarray, opened.params)

    def fingerprint(params):
        return suite.weights_fingerprint(SimpleNamespace(params=jax.device_put(params, jax.devices()[0]), mesh=one))

    assert fingerprint(host) == whole
    host["language"]["embed"]["w"] = host["language"]["embed"]["w"].copy()
    flat = host["language"]["embed"]["w"].reshape(-1)
    flat[0] = np.nextafter(flat[0], np.float32(9))
    assert fingerprint(host) != whole


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--resume"], ["--resume: only with --suite"]),
        (["--suite", ","], ["--suite names no benchmark"]),
        (
            ["--suite", "pope", "--batch-size", "0", "--image-folder", "x", "--limit", "-1"],
            ["--batch-size 0", "--image-folder", "--limit -1"],
        ),
        (["--suite", "pope,gqa", "--answers", "x"], ["leave out --run", "--suite names 2"]),
        (["--suite", "pop"], ['did you mean "pope"?']),
        (["--suite", "pope", "--scoring", "best"], ["invalid choice: 'best'"]),
    ],
)
def test_mistakes(folder, arguments, messages, capsys):
    assert run(evaluate.main, ["--run", str(folder), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and all(message in error for message in messages), error


def test_the_list_needs_no_model(root, capsys):
    assert run(evaluate.main, ["--suite", f"list:{SPEC}", "--data", str(root)]) == 0
    text = capsys.readouterr().out
    for part in ("Colours (colours)", "test (24), hidden (24)", "questions.jsonl  {id", "official 3"):
        assert part in text


@pytest.mark.nightly
def test_two_processes_answer_as_one(flags, whole, tmp_path):
    """Each process has two devices and half of each batch; the first writes what one process writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "jaxvlm.evaluate", *flags, "--out", str(tmp_path), "--num-processes", "2"]
    started = [
        subprocess.Popen(
            [*command, "--coordinator", address, "--process-id", str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    ours, alone = saved(tmp_path), saved(whole)
    assert [(row["id"], row["text"]) for row in ours["answers"]] == [
        (row["id"], row["text"]) for row in alone["answers"]
    ]
    assert ours["scores"] == alone["scores"] and ours["model"]["weights"] == alone["model"]["weights"]
