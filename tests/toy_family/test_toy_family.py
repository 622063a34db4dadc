"""A family that no other file knows packs, trains, resumes, plans and answers."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxvlm import convert, evaluate, generate, inspect_data, train
from jaxvlm.batch import Batch
from jaxvlm.command import load_config
from jaxvlm.data.recipe_tokenizer import saved_tokenizer
from jaxvlm.data.rows.pipeline import batch_spec, build_pipeline
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.media import MediaError, Size
from jaxvlm.planning.program import build_step
from jaxvlm.runs import RunFolder
from tests.metrics import losses
from tests.toy_family.layout import ToyLayout, grid

RECIPE = __file__.replace("test_toy_family.py", "recipe.py")
SIZES = [(4, 8), (16, 24), (9, 23), (40, 31), (5, 90)]  # height, width


def log(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    records = []
    for number in range(40):
        count = number % 3  # images of the record
        names = []
        for k in range(count):
            height, width = SIZES[(number + k) % len(SIZES)]
            pixels = np.random.default_rng(number + k).integers(0, 256, (height, width, 3), dtype=np.uint8)
            names.append(f"{number}-{k}.png")
            Image.fromarray(pixels).save(folder / names[-1])
        record = {"id": str(number), "conversations": log("<image>\n" * count + "how many?", "ab"[number % 2])}
        records.append(record | ({"image": names} if names else {}))
    (folder / "data.json").write_text(json.dumps(records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_DATA", str(folder / "data.json"))
        yield folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train.main(["--config", RECIPE, "--workdir", str(folder)])
    return folder


def test_rows_are_packed_under_both_budgets(data, run):
    config = RunFolder(run).load_config()
    stage = config.stage["only"]
    layout = media_layout(config.model, stage.data)
    made = build_pipeline(stage.data, saved_tokenizer(run / "tokenizer", config), layout=layout, rows=16, seed=0)
    batches = made.batches()
    try:
        batch = next(batches)
    finally:
        batches.close()
    batch.check(batch_spec(stage.data, layout, 16))
    assert batch.positions.shape == (16, 64, 3) and batch.media.pixels.shape == (16, 40, 4, 4, 3)
    assert batch.segments.max() > 1
    for row in range(16):
        patches = np.count_nonzero(batch.media.images[row])
        used = batch.image_index[row][batch.image_index[row] >= 0]
        assert used.tolist() == list(range(patches // 2))  # every feature stands somewhere, in order
        at = np.flatnonzero(batch.image_index[row] >= 0)
        assert len(at) == 0 or (batch.positions[row, at].max(axis=0)[1:] > 0).any()
    assert Batch.from_arrays(batch.to_arrays(), made.spec).media.places is batch.media.places


def test_positions_of_an_image():
    """Two rows and four columns of patches: two by two features, and text goes on after the largest."""
    index = np.array([-1, 0, 1, 2, 3, -1, -1])
    found = ToyLayout().positions(index, [Size(8, 16)]).tolist()
    assert found == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3], [4, 4, 4]]


def test_an_image_that_no_row_takes_is_named_and_counted(data, tmp_path, capsys):
    record = {"id": "strip", "image": "strip.png", "conversations": log("<image>\nwhat?", "a")}
    Image.new("RGB", (200, 4)).save(data / "strip.png")
    path = data / "strip.json"
    path.write_text(json.dumps([*json.loads((data / "data.json").read_text()), record]))
    with pytest.raises(MediaError, match="200 x 4 pixels is longer than 20:1"):
        ToyLayout().measure(Size(4, 200))
    arguments = ["check", "--config", RECIPE, "--out", str(tmp_path / "out")]
    with pytest.raises(Exception) as caught:
        inspect_data.main([*arguments, f"--config.stage.only.data.source={path}"])
    assert type(caught.value).__name__ == "ExitWithResult"
    printed = capsys.readouterr().out
    assert "image_ratio" in printed and "patches" in printed


def test_it_trains_and_resumes_bit_equal(data, run, tmp_path):
    first = losses(run)
    assert sorted(first) == [1, 2, 3, 4, 5, 6] and first[6][0] < first[1][0]
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/only/6")
    (again / "ledger.json").unlink()
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))
    train.main(["--config", RECIPE, "--workdir", str(again), "--resume"])
    assert losses(again) == first


def test_it_answers(data, run, capsys):
    found = json.loads((run / "evaluation.json").read_text())
    assert len(found["answers"]) == 40
    evaluate.main(["--run", str(run)])
    generate.main(["--run", str(run), "--image", str(data / "1-0.png"), "--prompt", "how many?"])
    assert capsys.readouterr().out.strip()


def test_the_page_shows_images_at_their_own_size(data, run, tmp_path):
    shown = inspect_data.main(["show", "--config", RECIPE, "--out", str(tmp_path), "--rows", "2"])
    page = (tmp_path / "rows.html").read_text()
    assert shown["rows"] == 2 and "Not as a row should be" not in page
    sizes = {tuple(4 * n for n in grid(Size(*size))) for size in SIZES}
    assert all(f"{width} × {height} pixels" in page for height, width in sizes) or page.count("pixels, positions") > 1


def test_its_step_can_be_planned(data):
    from jaxvlm.planning.report import Assumptions, work_of
    from jaxvlm.planning.slices import find_slice

    step = build_step(load_config(RECIPE), "only", find_slice("v5e-8"))
    work = work_of(step, Assumptions())
    assert (work.units, step.batch.positions.shape) == (40, (16, 64, 3))


def test_no_other_file_knows_it():
    found = subprocess.run(
        ["grep", "-rlE", r"toy_family|ToyLayout", "jaxvlm", "configs"], capture_output=True, text=True, cwd="."
    )
    assert found.stdout == ""


def test_it_has_no_hugging_face_files(run, tmp_path):
    with pytest.raises(
        UserError, match=r'family "tests.toy_family" has no Hugging Face codec \(tests/toy_family/hf.py\)'
    ):
        convert.main(["export", "--run", str(run), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="rope_axes = .* one position for each token"):
        convert.main(["export", "--run", str(run), "--out", str(tmp_path / "out"), "--part", "language"])
    assert not (tmp_path / "out").exists()
