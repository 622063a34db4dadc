"""A mistake anywhere in a recipe is reported before data is indexed and before the first stage starts."""

import jax
import pytest

from jaxvlm import train
from jaxvlm.errors import UserError
from tests.e2e.conftest import RECIPE, write_data
from tests.evaluation import colours

LAST = "--config.stage.finetune"
COLOURS = "tests.evaluation.colours.Colours"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=12)


@pytest.fixture
def start(data, tmp_path, monkeypatch):
    """Starts a run that must end before its data is indexed; returns what it said."""
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(data))
    monkeypatch.setattr("jaxvlm.sharding.available_devices", lambda: jax.devices()[:1])

    def index(*_, **__):
        raise AssertionError("the data was indexed")

    monkeypatch.setattr("jaxvlm.data.rows.pipeline.load_index", index)

    def start(*arguments):
        with pytest.raises(UserError) as caught:
            train.main(["--config", RECIPE, "--workdir", str(tmp_path / "run"), *arguments])
        assert not (tmp_path / "run" / "checkpoints").exists()
        return str(caught.value)

    return start


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (f"{LAST}.optimizer.schedule=cosin", 'finetune: unknown schedule "cosin" (optimizer.schedule)'),
        (f"{LAST}.optimizer.no_weight_decay=('projecter/.*',)", 'pattern "projecter/.*" matches no parameter; nearest'),
        (f"{LAST}.global_batch_size=6", "global_batch_size 6 does not divide over 4 micro-batches"),
        (f"{LAST}.parts.vision=thawed", "parts.vision = 'thawed' is no policy"),
        (f"{LAST}.compiler_options=fast", "fast"),
        (f"{LAST}.frozen_dtype=float31", "config.stage.finetune.frozen_dtype = 'float31'"),
        (f"{LAST}.data.source=nowhere.json", "data.source = 'nowhere.json': there is no such file"),
        (f"{LAST}.data.tokens=1", "finetune: data.tokens = 1, expected 2 or more"),
        (f"{LAST}.data.heldout=0.0", "finetune: eval_every is set, but no record is held out"),
        (f"{LAST}.data.media.aspect=stretched", "stretched"),
        (f"{LAST}.data.template=vicuna", "vicuna"),
        (f"{LAST}.suites=('pop',)", "config.stage.finetune.suites_every = 0, expected both or neither"),
        ("--config.mesh.fsdp=3", "config.mesh"),
        ("--config.evaluation.source=exam.json", "config.evaluation: data.source = 'exam.json': there is no such file"),
    ],
)
def test_a_mistake_in_the_last_stage_is_reported_first(start, mistake, message):
    assert message in start(mistake)


def test_all_mistakes_come_in_one_message(start):
    said = start(
        "--config.stage.align.data.on_bad=ignore",
        f"{LAST}.optimizer.schedule=cosin",
        f"{LAST}.data.source=nowhere.json",
        "--config.evaluation.source=exam.json",
    )
    for found in ("config.stage.align: data.on_bad = 'ignore'", '"cosin"', "nowhere.json", "exam.json"):
        assert said.count(found) == 1, said


def test_a_mistake_of_both_stages_is_said_once(start):
    said = start("--config.model.compute_dtype=float31")
    assert said.count("float31") == 1 and said.startswith("config.stage.align, config.stage.finetune: ")


def test_a_layout_that_cannot_be_made_hides_no_other_mistake(start):
    said = start("--config.stage.align.data.media.aspect=stretched", f"{LAST}.data.source=nowhere.json")
    assert "config.stage.align: " in said and "stretched" in said and "nowhere.json" in said


def test_unknown_benchmarks_and_missing_files_of_a_stage(start, tmp_path):
    own = f"{LAST}.suites=('pop','pope','{COLOURS}:hidden')", f"{LAST}.suites_every=5"
    said = start(*own, f"--config.evaluation.suites_folder={tmp_path}")
    assert 'config.stage.finetune: "pop" is no benchmark (did you mean "pope"?)' in said
    assert (
        f"there is no folder {tmp_path / 'pope'}" in said and f"{tmp_path / 'colours'}/questions.jsonl is miss" in said
    )
    colours.write_files(tmp_path)
    said = start(*own[1:], f"{LAST}.suites=('{COLOURS}:hidden',)", f"--config.evaluation.suites_folder={tmp_path}")
    assert "colours:hidden: only a server has the truth; name another split, such as colours:test" in said
