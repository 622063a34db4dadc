"""Every benchmark of the table through the whole of a suite, on made-up files, with an engine that knows no model."""

import hashlib
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.answer_files import read_answers
from jaxvlm.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from jaxvlm.evaluation.result import score_task
from jaxvlm.evaluation.suite import Asking, run_task
from jaxvlm.evaluation.suite_table import catalogue, description, details, table
from jaxvlm.evaluation.task import load_tasks
from jaxvlm.inference.engine import Answer
from tests import tiny
from tests.evaluation import layouts, test_mmbench, test_mme, test_mmmu, test_own, test_pope, test_scienceqa
from tests.evaluation import test_seedbench as seedbench

MODEL = {"run": "x", "weights": "w"}


def own(folder):
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    other = [{"from": "human", "value": "<image>\nwhere?"}, {"from": "gpt", "value": "here"}]
    rows = [{"id": name, "image": "a.jpg", "conversations": turns} for name, turns in (("1", said), ("2", other))]
    test_own.load(folder, *rows)


FILES = {
    "vqav2": layouts.vqav2_official,
    "gqa": layouts.gqa_official,
    "textvqa": layouts.textvqa_llava,
    "vizwiz": layouts.vizwiz_official,
    "scienceqa": test_scienceqa.put_official,
    "pope": test_pope.put_llava,
    "mme": test_mme.put_release,
    "mmbench": lambda folder: test_mmbench.load(folder, test_mmbench.table()),
    "seedbench": seedbench.put_official,
    "mmmu": test_mmmu.load,
    "chartqa": layouts.chartqa_official,
    "docvqa": layouts.docvqa_official,
    "infovqa": layouts.infovqa_official,
    "ocrbench": layouts.ocrbench_official,
    "coco_captions": layouts.captions_karpathy,
    "own": own,
}


@dataclass
class Parrot:
    """Answers each prompt with one of a few words, chosen by the prompt; later ones first."""

    words: tuple[str, ...] = ("Yes", "no.", "A", "B", "2", "a red bus")
    asked: list[Any] = field(default_factory=list)
    data = tiny.stage().data
    model = SimpleNamespace(config=SimpleNamespace(compute_dtype="float32"))
    date = ""

    def answer_each(self, records, *, max_new_tokens, batch_size):
        for number, record in reversed(list(enumerate(records))):
            assert record.turns[-1].text.count("<image>") == len(record.images)
            self.asked.append(record)
            place = hashlib.sha256(record.turns[-1].text.encode()).digest()[0] % len(self.words)
            yield number, Answer(self.words[place], place, place == 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of a folder for each benchmark."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name, put in FILES.items():
        (root / name).mkdir()
        put(root / name)
    return root


def test_every_benchmark_has_files_here():
    assert FILES.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize(
    ("name", "dialect"), [(name, dialect) for name in BENCHMARKS for dialect in find_benchmark(name).dialects]
)
def test_from_files_to_a_result(root, tmp_path, name, dialect):
    (task,) = load_tasks([name], root, dialect=dialect)
    engine = Parrot()
    result = run_task(engine, task, MODEL, tmp_path, "", Asking(2))
    assert len(engine.asked) == len(task.items) > 1
    main, value = result.main
    assert np.isfinite(value) and len(result.scores.credits) == len(task.items)
    if result.interval:
        assert result.interval.low <= value + 1e-9 and value <= result.interval.high + 1e-9
    saved = json.loads((tmp_path / f"{task.name}.json").read_text())
    assert saved["scores"][main] == pytest.approx(value) and saved["data"]["files"]
    assert (tmp_path / f"{task.name}.html").stat().st_size > 1000
    again = score_task(task, read_answers(tmp_path / f"{task.name}.answers.jsonl", task), model={}, generation={})
    assert again.values == result.values and again.interval == result.interval
    assert task.benchmark.title in table([result]) and dialect in details(result)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_without_files_names_them(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load_tasks([name], tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_of_several_are_missed_in_one_message(tmp_path):
    with pytest.raises(UserError) as caught:
        load_tasks(["pope", "gqa", "mme"], tmp_path)
    assert all(f"{tmp_path / name}" in str(caught.value) for name in ("pope", "gqa", "mme"))


def test_the_list_names_all(tmp_path):
    (tmp_path / "gqa").mkdir()
    text = catalogue(tmp_path)
    assert f"gqa: in {tmp_path / 'gqa'}; from " in text
    assert f"pope: in {tmp_path / 'pope'}, which is not there; from " in text
    assert "  val       v2_OpenEnded_mscoco_val2014_questions.json, " in text
    for name in BENCHMARKS:
        assert f"\n{name} " in text
        page = description(find_benchmark(name), tmp_path / name)
        assert str(tmp_path / name) in page.replace("\n" + " " * 16, "") and max(map(len, page.splitlines())) <= 130


def test_two_batches_of_prompts(root, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvlm.evaluation.suite._CHUNK", 1)
    (task,) = load_tasks(["pope"], root)
    calls = []

    class Counting(Parrot):
        def answer_each(self, records, **options):
            calls.append(len(records))
            yield from super().answer_each(records, **options)

    run_task(Counting(), task, MODEL, tmp_path, "", Asking(2))
    assert sum(calls) == len(task.items) and max(calls) == 2


def test_answers_of_llava_that_name_images(root, tmp_path):
    """Its question ids of TextVQA and MME are those of images."""
    for name in ("textvqa", "mme"):
        (task,) = load_tasks([name], root)
        rows = [
            {
                "question_id": item.cluster,
                "prompt": task.record(item).turns[0].text.replace("<image>\n", ""),
                "text": str(n),
            }
            for n, item in enumerate(task.items)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
        found = read_answers(path, task)
        assert [found[item.id].text for item in task.items] == [str(n) for n in range(len(task.items))]
