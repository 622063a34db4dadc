"""The page of the worst answers: which are shown, and that no text of theirs is markup."""

import dataclasses
import re

import numpy as np
import pytest

from jaxvlm.evaluation.answer_log import Reply
from jaxvlm.evaluation.benchmarks.benchmark import Scores
from jaxvlm.evaluation.result import Result
from jaxvlm.evaluation.task import load_tasks
from jaxvlm.evaluation.worst_page import worst, write_worst
from tests.evaluation import colours

EVIL = '</dd><script>alert(1)</script><img src=x onerror="alert(2)">\u202e & "'


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    (task,) = load_tasks(["tests.evaluation.colours.Colours"], colours.write_files(tmp_path_factory.mktemp("b")))
    first = dataclasses.replace(task.items[0], question=EVIL, id=EVIL, origin=EVIL, groups={EVIL: EVIL}, truth=EVIL)
    return dataclasses.replace(task, items=(first, *task.items[1:]))


def result(task, credits):
    replies = tuple(Reply(item.id, EVIL, 6, True) for item in task.items)
    scores = Scores({"accuracy": 12.5}, np.array(credits))
    return Result(task, replies, (None,) * len(replies), scores, None, {}, {})


def test_the_lowest_credits_come_first(task):
    credits = [1.0, 0.3, float("nan"), 0.0, *[1.0] * 19, 0.6]
    assert worst(result(task, credits)) == [(3, 0.0), (1, 0.3), (23, 0.6)]


def test_text_stays_text(task, tmp_path):
    page = tmp_path / "page.html"
    assert write_worst(page, result(task, [0.0] * 24)) == 24
    text = page.read_text()
    assert "<script" not in text and "onerror=&quot;" in text and "⟨U+202E⟩" in text
    assert set(re.findall(r"<([a-z0-9]+)", text)) <= {
        *("html", "head", "meta", "link", "title", "style", "body", "h1", "h3", "p", "main", "article", "header"),
        *("span", "figure", "img", "figcaption", "dl", "dt", "dd"),
    }
    assert text.count('src="data:image/png;base64,') == 24 and "(not parsed)" in text and "truncated" in text


def test_a_missing_image_is_said_in_its_place(task, tmp_path):
    lost = dataclasses.replace(task.items[1], images=(str(tmp_path / "no.png"),))
    changed = dataclasses.replace(task, items=(task.items[0], lost, *task.items[2:]))
    write_worst(tmp_path / "page.html", result(changed, [0.0] * 24))
    assert "no.png is missing" in (tmp_path / "page.html").read_text()
