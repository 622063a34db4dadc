"""An objective that no other file knows packs pairs, trains against a reference, resumes, and can be planned."""

import json
import math
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlm import inspect_data, train
from jaxvlm.command import ExitWithResult, load_config
from jaxvlm.data.recipe_tokenizer import saved_tokenizer
from jaxvlm.data.rows.pipeline import build_pipeline
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.objectives.registry import find_objective
from jaxvlm.planning.program import build_step
from jaxvlm.runs import RunFolder
from jaxvlm.training.metrics import read_metrics
from jaxvlm.trees import paths

RECIPE = __file__.replace("test_toy_objective.py", "recipe.py")


def write_pairs(folder, name, records):
    entry = {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": True}
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    (folder / f"{name}.json").write_text(json.dumps(records))
    file = folder / "dataset_info.json"
    entries = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(entries | {name: entry | {"columns": columns}}))
    return f"{file}:{name}"


def pair(number, chosen, rejected, *, question="which?"):
    said = {"from": "human", "value": "<image>\n" * (number % 2) + question}
    answers = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
    return {"conversations": [said], "images": [f"{number}.png"] * (number % 2)} | answers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(1, 48, 2):
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number % 9, 8 + number % 17, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    records = [pair(number, "yes it is", "no", question=f"which? {number}") for number in range(48)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_DATA", write_pairs(folder, "pairs", records))
        yield folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train.main(["--config", RECIPE, "--workdir", str(folder)])
    return folder


def test_both_sides_stand_in_one_row_and_share_their_image(run):
    config = RunFolder(run).load_config()
    stage, tokenizer = config.stage["only"], saved_tokenizer(RunFolder(run).tokenizer, config)
    layout = media_layout(config.model, stage.data)
    made = build_pipeline(stage.data, tokenizer, layout=layout, rows=16, seed=0, pairs=True)
    batches = made.batches()
    try:
        batch = next(batches)
    finally:
        batches.close()
    _, records = made.look_up(0)
    assert batch.segments.max() >= 4
    for row in range(16):
        assert batch.segments[row].max() == len(records[row]) and len(records[row]) % 2 == 0
        sides = [batch.segments[row] == segment for segment in range(1, len(records[row]) + 1)]
        for number, (chosen, rejected) in enumerate(zip(sides[0::2], sides[1::2], strict=True)):
            texts = [records[row][2 * number + k]["turns"][-1][1] for k in range(2)]
            assert texts == ["yes it is", "no"]
            for side, text in zip((chosen, rejected), texts, strict=True):
                supervised = batch.targets[row][side & (batch.loss_weights[row] > 0)]
                assert tokenizer.decode(supervised, skip_special_tokens=True).strip() == text
            features = [batch.image_index[row][side & (batch.image_index[row] >= 0)] for side in (chosen, rejected)]
            assert np.array_equal(*features)
        used = batch.image_index[row][batch.image_index[row] >= 0]
        assert len(set(used.tolist())) == np.count_nonzero(batch.media.images[row]) // 2


def test_it_trains_and_resumes_bit_equal(run, tmp_path):
    def steps(folder):
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if "gradient_norm" in line]
        return {m["step"]: [m[n] for n in ("loss", "margin", "preferred", "gradient_norm")] for m in lines}

    first = steps(run)
    # At the start the model is its reference: margins are 0 but for rounding, whose sign `preferred` would count.
    assert first[1][0] == pytest.approx(math.log(2), rel=1e-6) and first[1][1] == pytest.approx(0, abs=1e-5)
    assert first[6][0] < 0.9 * first[1][0] and first[6][1] > 0.2 and first[6][2] > 0.9
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["heldout_margin"] > 0 and {"heldout_loss", "heldout_preferred", "heldout_exact_match"} <= last.keys()
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/only/6")
    (again / "ledger.json").unlink()
    train.main(["--config", RECIPE, "--workdir", str(again), "--resume"])
    assert steps(again) == first


def test_pairs_that_no_stage_can_use_are_counted(data, tmp_path, capsys):
    bad = [pair(0, "a", "a"), pair(2, "word " * 60, "word " * 60 + "no"), pair(4, "a", "b", question="fits?")]
    source = write_pairs(data, "bad", bad)
    arguments = ["check", "--config", RECIPE, "--out", str(tmp_path), f"--config.stage.only.data.source={source}"]
    with pytest.raises(ExitWithResult):
        inspect_data.main([*arguments, "--config.stage.only.data.tokens=64"])
    printed = capsys.readouterr().out
    assert "equal_answers" in printed and "pair_beyond_row" in printed


def test_records_without_a_rejected_answer_are_one_error(data, tmp_path):
    said = [{"from": "human", "value": "which?"}, {"from": "gpt", "value": "this"}]
    (data / "single.json").write_text(json.dumps([{"id": str(n), "conversations": said} for n in range(3)]))
    source = f"--config.stage.only.data.source={data / 'single.json'}"
    with pytest.raises(UserError, match=r"3 of 3 records break a rule \(3 no_rejected_answer\)"):
        train.main(["--config", RECIPE, "--workdir", str(tmp_path / "run"), source])


def test_its_step_can_be_planned(data):
    from jaxvlm.planning.slices import find_slice
    from jaxvlm.training.step import compile_train_step

    step = build_step(load_config(RECIPE), "only", find_slice("v5e-8"))
    state = step.layout.state
    assert jax.tree.structure(state.reference) == jax.tree.structure(state.trained)
    compile_train_step(step.layout, step.stage).lower(state, step.batch)
    lora = ["--config.stage.only.parts.language=lora", "--config.stage.only.parts.lora.language.rank=2"]
    adapted = build_step(load_config(RECIPE, lora), "only", find_slice("v5e-8")).layout
    assert set(adapted.state.reference) == {"vision", "projector"}  # of what only has adapters no copy is kept
    assert not any("lora" in path for path in paths(adapted.reference.abstract))


def test_a_module_that_is_no_objective_is_named():
    with pytest.raises(UserError, match=r'objective = "tests.nothing" is no objective; known: sft, or a module'):
        find_objective("tests.nothing")


def test_no_other_file_knows_it():
    found = subprocess.run(["grep", "-rl", "toy_objective", "jaxvlm", "configs"], capture_output=True, text=True)
    assert found.stdout == ""
