"""A recipe's benchmarks, asked while a stage trains."""

import pytest

from jaxvlm import train
from jaxvlm.command import load_config
from jaxvlm.errors import UserError
from jaxvlm.evaluation.suite import main_number
from jaxvlm.evaluation.task import load_tasks
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder, differing_keys
from jaxvlm.training.metrics import plot_metrics, read_metrics
from tests.e2e.conftest import write_data
from tests.e2e.small_run import RECIPE
from tests.evaluation import colours

SPEC = "tests.evaluation.colours.Colours"


@pytest.fixture
def arguments(tmp_path, monkeypatch, one_device):
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(write_data(tmp_path, count=24)))
    colours.write_files(tmp_path)
    stage = "--config.stage.only"
    return [
        *("--config", RECIPE, "--workdir", str(tmp_path / "run"), "--config.steps=3"),
        *(f"{stage}.suites=('{SPEC}',)", f"{stage}.suites_every=2", f"{stage}.suites_limit=8"),
        f"--config.evaluation.suites_folder={tmp_path}",
    ]


def test_the_numbers_are_among_the_metrics(arguments, tmp_path):
    train.main(arguments)
    folder = RunFolder(tmp_path / "run")
    found = {line["step"]: line["suite_colours"] for line in read_metrics(folder.metrics) if "suite_colours" in line}
    assert list(found) == [2, 3]
    (task,) = load_tasks([SPEC], tmp_path, limit=8)
    engine = Engine.of(open_run(folder.path))
    assert found[3] == pytest.approx(main_number(engine, task, 32))
    plot_metrics(folder.metrics, tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000 and folder.tensorboard.is_dir()


def test_a_question_longer_than_a_row_is_found_before_the_first_step(arguments, tmp_path):
    file = tmp_path / "colours" / "questions.jsonl"
    file.write_text(file.read_text().replace("what color", "what " * 20 + "color"))
    with pytest.raises(UserError, match=r"questions.jsonl\[\d+\]: the prompt has \d+ tokens .*rows have 48"):
        train.main(arguments)
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_a_run_may_resume_with_other_benchmarks(arguments):
    with_suites = load_config(RECIPE, [a for a in arguments if a.startswith("--config.")])
    without = load_config(RECIPE, ["--config.steps=3"])
    assert differing_keys(without, with_suites) == []
