"""The train command from records on disk to an evaluated model: chained, alone, killed and resumed."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvlm import train
from jaxvlm.command import run
from jaxvlm.config import PARTS
from jaxvlm.errors import UserError
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from jaxvlm.training.metrics import read_metrics
from jaxvlm.trees import paths
from tests.e2e.conftest import RECIPE
from tests.e2e.small_run import HOOK, finish

# Kills its own process with SIGKILL 5 ms after the n-th batch has gone to the device: within the four micro-batches of
# a step, with later batches already read ahead.
KILLED = (
    HOOK
    + """
import signal, threading
def before(number, batch):
    if number == BATCH:
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
hook(before)
"""
)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run that was never stopped: its folder and what the command printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(server.fork("--config", RECIPE, "--workdir", folder, "--json"))


def losses(folder):
    return [
        (m["stage"], m["step"], m["loss"], m["gradient_norm"])
        for m in read_metrics(folder / "metrics.jsonl")
        if "loss" in m
    ]


def test_a_run_leaves_what_it_promises(whole):
    folder, log = whole
    names = {path.name for path in folder.iterdir()}
    assert names >= {"checkpoints", "config.json", "evaluation.json", "ledger.json", "loss.png", "metrics.jsonl"}
    assert names >= {"samples.png", "tensorboard", "tokenizer"}
    for stage in ("align", "finetune"):
        ledger = json.loads((folder / "ledger.json").read_text())[stage]
        fates = [fate["total"] for name, fate in ledger.items() if name != "read"]
        assert sum(fates) == ledger["read"] == 90 and ledger["packed"]["total"] > 0
        assert any((folder / "tensorboard" / stage).iterdir())
    last = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert last["count"] == 180 and 0 <= last["exact_match"] <= 1
    assert "part  parameters" in log and "tokens/s" in log


def test_it_learns_and_the_second_stage_starts_from_the_first(whole):
    metrics = read_metrics(whole[0] / "metrics.jsonl")
    align = [m["loss"] for m in metrics if m["stage"] == "align" and "loss" in m]
    finetune = [m["loss"] for m in metrics if m["stage"] == "finetune" and "loss" in m]
    assert finetune[0] < align[0] / 2
    heldout = [m for m in metrics if "heldout_loss" in m]
    assert heldout and all(0 <= m["heldout_exact_match"] <= 1 for m in heldout)


@pytest.mark.nightly  # test_kills.py has the kills, test_llava15.py stages alone
def test_a_killed_stage_resumes_bit_for_bit_and_stages_run_alone_are_the_chain(whole, server, tmp_path):
    """Killed at batch 8: in the middle of an epoch, two steps after a checkpoint."""
    arguments = ("--config", RECIPE, "--workdir", tmp_path, "--stage")
    code, log = server.fork(*arguments, "align", code=KILLED.replace("BATCH", "8")).wait()
    assert code == -9, log[-3000:]
    assert len(losses(tmp_path)) < 8
    finish(server.fork(*arguments, "align", "--resume"))
    finish(server.fork(*arguments, "finetune"))
    assert losses(tmp_path) == losses(whole[0])


@pytest.mark.nightly  # above in a stage
@pytest.mark.parametrize("batch", [2, 8])
def test_a_killed_run_resumes_bit_for_bit(whole, server, tmp_path, batch):
    """Batch 2: before any checkpoint. Batch 8: in the middle of an epoch, two steps after a checkpoint."""
    arguments = ("--config", RECIPE, "--workdir", tmp_path)
    code, log = server.fork(*arguments, code=KILLED.replace("BATCH", str(batch))).wait()
    assert code == -9, log[-3000:]
    assert len(losses(tmp_path)) < batch
    finish(server.fork(*arguments, "--resume"))
    assert losses(tmp_path) == losses(whole[0])
    assert (
        json.loads((tmp_path / "evaluation.json").read_text())["answers"]
        == json.loads((whole[0] / "evaluation.json").read_text())["answers"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"already holds a run .*--resume"),
        (["--resume", "--config.seed=1"], r"another recipe: config.seed: 42 -> 1"),
        (["--workdir", "{new}", "--resume"], r"nothing to resume"),
        (["--workdir", RECIPE], r"--workdir .*recipe.py is a file; a run is kept in a folder"),
        (["--workdir", "{new}", "--config.stage.align.global_batch_size=6"], r"does not divide over 4 micro-batches"),
        (["--workdir", "{new}", "--config.stage.align.data.tokens=9"], r"data.tokens"),
        (
            ["--workdir", "{new}", "--config.stage.align.parts.vision=thawed"],
            r"parts.vision = 'thawed' is no policy; known",
        ),
        (
            ["--workdir", "{new}", *(f"--config.stage.align.parts.{part}=frozen" for part in PARTS)],
            r"every part is frozen \(config.stage.align.parts.vision",
        ),
        (["--workdir", "{new}", "--config.init.model=/nowhere"], r"/nowhere is neither a folder or file that is here"),
        (["--workdir", "{new}", "--config.stage.align.dato.tokens=9"], r"unknown key config.stage.align.dato.tokens"),
        (["--workdir", "{new}", "--stage", "third"], r"--stage third: .* align, finetune"),
        (["--workdir", "{new}", "--config.tokenizer.source=/nowhere"], r"tokenizer.source = '/nowhere'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    whole, environment, monkeypatch, capsys, tmp_path, arguments, message
):
    monkeypatch.setenv("JAXVLM_TEST_DATA", environment["JAXVLM_TEST_DATA"])
    monkeypatch.setattr("jaxvlm.sharding.available_devices", lambda: jax.devices()[:1])
    before = (whole[0] / "metrics.jsonl").read_bytes()
    arguments = [argument.format(new=tmp_path / "new") for argument in arguments]
    assert run(train.main, ["--config", RECIPE, "--workdir", str(whole[0]), *arguments]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and errors.count("error: ") == 1
    assert re.search(message, errors), errors
    assert (whole[0] / "metrics.jsonl").read_bytes() == before


def test_a_refused_start_gives_the_lock_back(environment, monkeypatch, tmp_path):
    """Not only when its last reference is gone, which an error holds that someone keeps."""
    monkeypatch.setenv("JAXVLM_TEST_DATA", environment["JAXVLM_TEST_DATA"])
    (tmp_path / "checkpoints" / "align").mkdir(parents=True)
    kept = []
    for _ in range(2):
        with pytest.raises(UserError, match="already holds a run") as error:
            train.main(["--config", RECIPE, "--workdir", str(tmp_path)])
        kept.append(error)


def test_a_mistake_leaves_nothing_in_the_way(environment, monkeypatch, capsys, tmp_path):
    """After an error before the first step the fixed command starts; nothing has to be deleted by hand."""
    monkeypatch.setenv("JAXVLM_TEST_DATA", environment["JAXVLM_TEST_DATA"])
    for tokens in (9, 10):
        arguments = ["--config", RECIPE, "--workdir", str(tmp_path), f"--config.stage.align.data.tokens={tokens}"]
        assert run(train.main, arguments) == 2
        assert "another recipe" not in capsys.readouterr().err


def test_bad_records_are_all_named_before_the_first_step(environment, monkeypatch, capsys, tmp_path):
    good = Path(environment["JAXVLM_TEST_DATA"])
    records = json.loads(good.read_text())[:6]
    for record in records:
        names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        record["image"] = [str(good.parent / name) for name in names]
    (tmp_path / "broken.png").write_bytes(b"no image")
    records[1]["image"] = ["missing.png"] * len(records[1]["image"])
    records[2]["image"] = ["broken.png"] * len(records[2]["image"])
    records[3]["conversations"][0]["value"] = "no placeholder"
    records[4]["conversations"][1]["from"] = "human"
    records[5]["conversations"][1]["value"] = " "
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(records))
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(path))
    monkeypatch.setattr("jaxvlm.sharding.available_devices", lambda: jax.devices()[:1])
    outside = [f"--config.stage.{stage}.data.allow_outside=True" for stage in ("align", "finetune")]
    assert run(train.main, ["--config", RECIPE, "--workdir", str(tmp_path / "run"), *outside]) == 2
    errors = capsys.readouterr().err
    for index, what in enumerate(["missing.png", "broken.png", "<image>", "alternate", "empty"], 1):
        line = next(line for line in errors.splitlines() if f"bad.json[{index}]" in line)
        assert what in line, line
    assert "Traceback" not in errors and "bad.json[0]" not in errors


def test_frozen_leaves_are_saved_as_they_were(whole):
    folder, _ = whole
    config = RunFolder(folder).load_config()
    assert config.stage["finetune"].parts.vision == "frozen"
    before, after = (open_run(folder, stage=stage).params for stage in ("align", "finetune"))
    for path, leaf in _flat(before["vision"]).items():
        np.testing.assert_array_equal(leaf, _flat(after["vision"])[path], err_msg=path)
    changed = _flat(before["language"])
    assert any(not np.array_equal(leaf, _flat(after["language"])[path]) for path, leaf in changed.items())


def _flat(tree):
    return {path: np.asarray(leaf) for path, leaf in paths(tree).items()}
