"""The real lmms-eval asks a tiny run about local files; its answers and scores are those of our own engine.

The package is installed without its 52 requirements into a folder of its own, with those that these tasks import.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import open_run
from jaxvlm.sharding import make_mesh
from tests import tiny
from tests.inference import tiny_run

ROOT = Path(__file__).parents[2]
PACKAGES = "lmms-eval==0.7.3 loguru accelerate evaluate sacrebleu tenacity pytablewriter portalocker tabulate colorama "
PACKAGES += "lxml pytz aiohttp multidict yarl propcache aiohappyeyeballs aiosignal frozenlist "
PACKAGES += "DataProperty mbstrdecoder pathvalidate tabledata tcolorpy typepy chardet "  # of pytablewriter
PACKAGES += "filelock==3.20.0"  # it reaches into filelock's private modules, which newer versions have no more
CHOICES = ["red", "green", "blue", "a colour that is none of these"]
QUESTIONS = ["what color is it?", "is it red?", "what color is it? say hello", "say hello", "what differs?"]
COLOURS = [["green"], ["red"], ["blue"], [], ["red", "blue"]]
UTILS = """
def visuals(doc):
    return [doc[name] for name in ("first", "second") if doc[name] is not None]


def text(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 3 - doc["number"] % 2:
        return None, None, True, previous_output, None
    return visuals(doc), f"not {previous_output[-1]}?", False, previous_output, None


def scored(doc, results):
    return {"rounds": len(results[0])}


def mean(values):
    return sum(values) / len(values)
"""
TASK = """
task: tiny_NAME
dataset_path: parquet
dataset_kwargs: {data_files: {test: FOLDER/data.parquet}}
test_split: test
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
"""
ANSWERED = """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, top_p: 0, num_beams: 1, do_sample: false, until: ["STOP"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: CHOICES
doc_to_target: target
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROUNDS = """
output_type: generate_until_multi_round
doc_to_target: answer
process_results: !function utils.scored
generation_kwargs: {max_new_tokens: 3, temperature: 1.0, do_sample: true}
metric_list: [{metric: rounds, aggregation: !function utils.mean, higher_is_better: true}]
"""
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with lmms-eval, and with the entry point that pyproject.toml gives jaxvlm."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *PACKAGES.split()]
    subprocess.run(command, check=True, timeout=600)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    info = folder / "jaxvlm_of_the_checkout-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxvlm-of-the-checkout\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[lmms_eval.models]", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(run, folder of data and tasks, engine, records without answers)."""
    folder = tmp_path_factory.mktemp("data")
    config = tiny.config(tiny_run.recipe(tiny_run.write_data(folder)))
    run = tiny_run.make_run(folder / "run", config)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    opened = open_run(run)
    params = jax.device_put(jax.device_get(opened.params), jax.devices()[0])
    engine = Engine(opened.model, params, opened.tokenizer, opened.stage.data, mesh, opened.rules)
    records = []
    for number, (question, colours) in enumerate(zip(QUESTIONS, COLOURS, strict=True)):
        images = tuple(str(folder / f"{colour}.png") for colour in colours)
        text = "<image>\n" * len(images) + question
        records.append(Record(str(number), (Turn("user", text),), images, f"[{number}]"))
    return run, folder, engine, records


def write_tasks(folder, answers, targets):
    import datasets

    image = datasets.Image()
    features = {"number": datasets.Value("int32"), "question": datasets.Value("string"), "first": image}
    features |= {"second": image, "answer": datasets.Value("string"), "target": datasets.Value("int32")}
    rows = {name: [] for name in features}
    for number, (question, colours) in enumerate(zip(QUESTIONS, COLOURS, strict=True)):
        paths = [str(folder / f"{colour}.png") for colour in colours] + [None, None]
        values = (number, question, paths[0], paths[1], answers[number], targets[number])
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / "data.parquet")
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "utils.py").write_text(UTILS)
    for name, body in {"answered": ANSWERED, "chosen": CHOSEN, "rounds": ROUNDS}.items():
        text = (
            (TASK + body).replace("NAME", name).replace("FOLDER", str(folder)).replace("CHOICES", json.dumps(CHOICES))
        )
        (tasks / f"tiny_{name}.yaml").write_text(text)
    return tasks


def run_lmms_eval(installed, out, *arguments):
    """(scores by task, samples by task, what was printed)."""
    paths = [str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf")}
    environment["XLA_FLAGS"] = ""  # one device
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "jaxvlm",
        "--output_path",
        out,
        "--log_samples",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=out)
    scores, samples = {}, {}
    for path in out.rglob("*_results.json"):
        scores |= json.loads(path.read_text())["results"]
    for path in out.rglob("*_samples_*.jsonl"):
        rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[path.stem.partition("_samples_")[2]] = rows
    return scores, samples, done.stdout + done.stderr


@pytest.fixture(scope="module")
def expected(world):
    """(answers, losses of each record's choices) of our engine."""
    _, _, engine, records = world
    answers = engine.answer(records, max_new_tokens=6, batch_size=2)
    given = [
        Record(record.id, (*record.turns, Turn("assistant", choice)), record.images, record.origin)
        for record in records
        for choice in CHOICES
    ]
    found = engine.loglikelihoods(given, batch_size=4)
    losses = np.array([-one.logprob / one.tokens for one in found]).reshape(len(records), len(CHOICES))
    return answers, losses


def test_answers_and_rounds_of_the_chat_interface(installed, world, expected, tmp_path):
    run, folder, engine, records = world
    answers, losses = expected
    truths = [answer if number % 2 else "something else" for number, answer in enumerate(answers)]
    tasks = write_tasks(folder, truths, [0] * len(records))
    flags = ["--model_args", f"run={run},stage=finetune,seed=3", "--tasks", "tiny_answered,tiny_rounds"]
    scores, samples, printed = run_lmms_eval(installed, tmp_path, *flags, "--include_path", tasks, "--batch_size", "2")
    assert [row["filtered_resps"] for row in samples["tiny_answered"]] == answers, printed
    assert scores["tiny_answered"]["exact_match,none"] == pytest.approx(2 / 5)
    assert len(set(answers)) > 3
    rounds = [row["filtered_resps"] for row in samples["tiny_rounds"]]
    assert [len(texts) for texts in rounds] == [3, 2, 3, 2, 3]
    assert scores["tiny_rounds"]["rounds,none"] == pytest.approx(13 / 5)
    second = Record("", (Turn("user", f"<image>\nnot {rounds[0][0]}?"),), records[0].images, "")
    assert rounds[0][1] in sampled(engine, second)


def sampled(engine, record):
    from jaxvlm.inference.sampling import Sampling

    return engine.answer([record], max_new_tokens=3, batch_size=1, sampling=Sampling(1.0, seed=3))


def test_answers_and_choices_of_the_simple_interface(installed, world, expected, tmp_path):
    run, folder, _, records = world
    answers, losses = expected
    best = losses.argmin(axis=1)
    targets = [int(index) if number % 2 else (int(index) + 1) % 4 for number, index in enumerate(best)]
    tasks = write_tasks(folder, answers, targets)
    flags = ["--model_args", f"run={run}", "--tasks", "tiny_answered,tiny_chosen", "--force_simple"]
    scores, samples, printed = run_lmms_eval(installed, tmp_path, *flags, "--include_path", tasks, "--batch_size", "3")
    assert [row["filtered_resps"] for row in samples["tiny_answered"]] == answers, printed
    assert scores["tiny_answered"]["exact_match,none"] == 1.0
    assert scores["tiny_chosen"]["acc,none"] == pytest.approx(2 / 5)
    found = [[float(loss) for loss, _ in row["filtered_resps"]] for row in samples["tiny_chosen"]]
    np.testing.assert_allclose(found, losses, atol=1e-5)


def test_settings_that_cannot_be_honoured_stop_it(installed, world, tmp_path):
    run, folder, *_ = world
    tasks = write_tasks(folder, [""] * 5, [0] * 5)
    flags = ["--model_args", f"run={run}", "--tasks", "tiny_answered", "--gen_kwargs", "num_beams=4,penalty=2"]
    scores, _, printed = run_lmms_eval(installed, tmp_path, *flags, "--include_path", tasks)
    assert not scores and "num_beams = 4, only 1 is supported; unknown: penalty" in printed
