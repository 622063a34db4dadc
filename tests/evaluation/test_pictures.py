"""Pictures of images within TSV and Parquet files, which the studio's gallery shows."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxvlm.evaluation import pictures
from jaxvlm.evaluation.answer_log import Reply
from jaxvlm.evaluation.benchmarks.benchmark import Scores
from jaxvlm.evaluation.result import Result
from jaxvlm.evaluation.saving import save
from jaxvlm.evaluation.task import load_tasks
from jaxvlm.web.evaluation_files import read_result
from tests.evaluation import colours


def png(color, size=(700, 350)):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def result(tmp_path):
    (task,) = load_tasks(["tests.evaluation.colours.Colours"], colours.write_files(tmp_path / "data"))
    images = [(png("red"),), (png("red"), png("blue")), (b"no image",), task.items[3].images]
    items = tuple(dataclasses.replace(item, images=i) for item, i in zip(task.items[:4], images, strict=True))
    replies = tuple(Reply(item.id, "yes", 1) for item in items)
    scores = Scores({"accuracy": 50.0}, np.array([1.0, 0.0, 1.0, 0.0]))
    return Result(dataclasses.replace(task, items=items, whole=items), replies, ("yes",) * 4, scores, None, {}, {})


def test_a_result_names_a_picture_of_each_image(result, tmp_path):
    save(result, tmp_path / "out")
    folder = tmp_path / "out" / "colours-images"
    answers = json.loads((tmp_path / "out" / "colours.json").read_text())["answers"]
    red, blue = answers[1]["images"]
    assert answers[0]["images"] == [red] and answers[2]["images"] == [None]
    assert answers[3]["images"] == list(result.task.items[3].images)
    assert {str(path) for path in folder.iterdir()} == {red, blue}
    with Image.open(red) as picture:
        assert picture.size == (512, 256) and picture.getpixel((9, 9))[0] > 250
    assert read_result("colours", tmp_path / "out" / "colours.json").answers[1].images == (red, blue)


def test_the_worst_answers_come_first(result, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST", 1)
    scores = dataclasses.replace(result.scores, credits=np.array([1.0, 1.0, 1.0, 0.0]))
    last = dataclasses.replace(result.task.items[3], images=(png("green"),))
    task = dataclasses.replace(result.task, items=(*result.task.items[:3], last))
    written = pictures.write_pictures(dataclasses.replace(result, task=task, scores=scores), tmp_path)
    assert list(written) == [png("green")]
