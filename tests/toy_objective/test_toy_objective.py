"""A pair objective that no other file knows packs pairs, trains, resumes and plans; on the toy family, also unknown."""

import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlm import inspect_data, train
from jaxvlm.command import load_config
from jaxvlm.config import to_dict
from jaxvlm.data.recipe_tokenizer import saved_tokenizer
from jaxvlm.data.rows.pipeline import index_rows, open_samples
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.planning.program import build_step
from jaxvlm.planning.slices import find_slice
from jaxvlm.runs import RunFolder
from jaxvlm.training.step import compile_train_step
from tests import toy_family

RECIPE = toy_family.__file__.replace("__init__.py", "recipe.py")
STAGE = "--config.stage.only"
OBJECTIVE = f"{STAGE}.objective=tests.toy_objective.objective"
SETTINGS = [
    OBJECTIVE,
    f"{STAGE}.data.media.units=64",
    f"{STAGE}.data.tokens=96",
    "--config.model.language.vocab_size=360",
    "--config.tokenizer.vocab_size=360",
]


def write_pairs(folder, name, *, count=40, **changes):
    """A LLaMA-Factory file of pairs about pictures of several sizes; `changes` replaces keys of the last item."""
    items = []
    for number in range(count):
        height, width = [(4, 8), (16, 24), (9, 23)][number % 3]
        image = f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image)
        items.append(
            {
                "conversations": [{"from": "human", "value": "<image>\nwhich?"}],
                "chosen": {"from": "gpt", "value": "yes it is"},
                "rejected": {"from": "gpt", "value": "no"},
                "images": [image],
            }
        )
    items[-1] |= changes
    (folder / f"{name}.json").write_text(json.dumps(items))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    path = folder / "dataset_info.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(entries | {name: entry}))
    return f"{path}:{name}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    spec = write_pairs(folder, "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_DATA", spec)
        yield folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train.main(["--config", RECIPE, "--workdir", str(folder), *SETTINGS])
    return folder


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "preferred", "margin", "gradient_norm")
    return {line["step"]: tuple(line[name] for name in names) for line in lines if "gradient_norm" in line}


def open_pipeline(run):
    config = RunFolder(run).load_config()
    stage = config.stage["only"]
    tokenizer = saved_tokenizer(RunFolder(run).tokenizer, config)
    samples = open_samples(stage.data, tokenizer, media_layout(config.model, stage.data), pairs=True)
    return index_rows(samples, rows=16, seed=0), tokenizer


def test_a_pair_is_two_segments_of_one_row(run):
    pipeline, tokenizer = open_pipeline(run)
    batch, records = pipeline.look_up(0)
    assert batch.segments.max() > 2
    for row, told in enumerate(records):
        count = int(batch.segments[row].max())
        assert count == len(told) and count % 2 == 0
        for segment, side in enumerate(told, 1):
            here = batch.segments[row] == segment
            supervised = batch.targets[row][here & (batch.loss_weights[row] > 0)]
            answer = "yes it is" if segment % 2 else "no"
            assert tokenizer.decode(supervised, skip_special_tokens=True).strip() == answer == side["turns"][-1][1]
        chosen, rejected = (batch.image_index[row][batch.segments[row] == s] for s in (1, 2))
        features = np.count_nonzero(chosen >= 0)
        assert features and features == np.count_nonzero(rejected >= 0)
        firsts = [
            [batch.media.pixels[row, 2 * at] for at in side[side >= 0]] for side in (chosen, rejected)
        ]  # the same picture on both sides, also when it was flipped
        np.testing.assert_array_equal(*firsts)


def test_it_trains_and_says_how(run):
    lines = lines_of(run)
    assert lines[1][:3] == (pytest.approx(np.log(2), abs=1e-6), 0.0, pytest.approx(0, abs=1e-6))  # it is its reference
    assert lines[6][0] < lines[2][0] and lines[6][1] == 1.0 and lines[6][2] > 0
    evaluated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"heldout_loss", "heldout_preferred", "heldout_margin", "heldout_exact_match"} <= set(evaluated)
    assert (run / "loss.png").stat().st_size > 0


def test_it_resumes_bit_equal(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/only/6")
    (again / "ledger.json").unlink()
    kept = [line for line in (again / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 3]
    (again / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    train.main(["--config", RECIPE, "--workdir", str(again), "--resume", *SETTINGS])
    assert lines_of(again) == lines_of(run)


def test_no_half_pair_stands_in_a_row(data, run, tmp_path, monkeypatch, capsys):
    spec = write_pairs(data, "long", rejected={"from": "gpt", "value": "no " * 60})
    monkeypatch.setenv("JAXVLM_TEST_DATA", spec)
    train.main(["--config", RECIPE, "--workdir", str(tmp_path / "run"), *SETTINGS, f"{STAGE}.data.on_bad=skip"])
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())["only"]
    assert "pair_beyond_row" in json.dumps(ledger) and ledger["truncated"]["total"] == 0


def test_a_record_that_is_no_pair_is_named(data, tmp_path, monkeypatch):
    said = [{"from": who, "value": text} for who, text in (("human", "which?"), ("gpt", "yes"))]
    (data / "plain.json").write_text(json.dumps([{"id": "1", "conversations": said}] * 3))
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(data / "plain.json"))
    with pytest.raises(UserError, match=r"plain.json\[0\]: .*takes pairs, and it has no rejected answer"):
        train.main(["--config", RECIPE, "--workdir", str(tmp_path / "run"), OBJECTIVE])


def test_the_page_shows_both_sides(data, tmp_path):
    inspect_data.main(["show", "--config", RECIPE, "--out", str(tmp_path), "--rows", "2", *SETTINGS])
    page = (tmp_path / "rows.html").read_text()
    assert "Not as a row should be" not in page and page.count("yes it is") >= 2


def test_its_step_can_be_planned(data):
    config = load_config(RECIPE, SETTINGS)
    step = build_step(config, "only", find_slice("v5e-8"))
    assert jax.tree.structure(step.layout.state.reference) == jax.tree.structure(step.layout.state.trained)
    compile_train_step(step.layout, step.stage).lower(step.layout.state, step.batch)
    assert to_dict(config)["stage"]["only"]["objective"] == "tests.toy_objective.objective"


def test_no_other_file_knows_it():
    found = subprocess.run(["grep", "-rlE", "toy_objective|log_sigmoid", "jaxvlm", "configs"], capture_output=True)
    assert found.stdout == b""
