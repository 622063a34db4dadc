"""Results of evaluations: read as they are written, filtered, compared, and shown with their pixels."""

import io
import json

import pytest
from PIL import Image

from jaxvlm.media import Video, picture_files
from jaxvlm.web.evaluation_files import choose, confusion, read_result, wilson
from tests.web.studio_client import make_client

QUESTIONS = [
    ("is it <b>red</b>?", "yes", "yes", "yes/no"),
    ("is it blue?", "no", "yes", "yes/no"),
    ("is it green?", "maybe", "no", "yes/no"),
    ("what is it?", "a circle", "circle", "shape"),
    ("what colour is it?", "red", "red", "colour"),
]


def write_test(run, answers=None, images=()):
    """evaluation.json as `evaluate` writes it."""
    rows = [
        {
            "id": str(number),
            "origin": f"test.json[{number}]",
            "group": group,
            "question": question,
            "answer": (answers or {}).get(number, answer),
            "truth": truth,
            "right": (answers or {}).get(number, answer) == truth,
            "images": list(images),
        }
        for number, (question, answer, truth, group) in enumerate(QUESTIONS)
    ]
    right = sum(row["right"] for row in rows) / len(rows)
    about = {"data": "test.json", "stage": "finetune", "step": 7, "limit": None}
    about |= {"exact_match": right, "count": len(rows), "by_group": {"shape": {"exact_match": 0.0, "count": 1}}}
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text("{}")
    (run / "evaluation.json").write_text(json.dumps(about | {"answers": rows}))


def suite_row(number, credit):
    row = {"id": str(number), "text": f"answer {number}", "truncated": False, "origin": "", "groups": {"kind": "a"}}
    return row | {"question": "q", "choices": [], "value": "x", "truth": ["a", "b"], "credit": credit, "images": [None]}


def write_suite(run):
    found = {"benchmark": "pope", "title": "POPE: test", "metric": "F1", "split": "test", "dialect": "llava"}
    found |= {
        "scoring": "generate",
        "model": {"stage": "finetune", "step": 7},
        "published": [{"model": "m", "value": 85.9}],
    }
    found |= {"scores": {"f1": 80.0, "accuracy": 81.0}, "interval": {"level": 0.95, "low": 78.0, "high": 82.0}}
    found |= {"groups": {"kind": {"a": 80.0}}, "answers": [suite_row(1, 1.0), suite_row(2, 0.3), suite_row(3, None)]}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "pope.json").write_text(json.dumps(found))


@pytest.fixture
def client(tmp_path):
    made = make_client(tmp_path)
    Image.new("RGB", (2000, 1000), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "x.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    images = [
        str(tmp_path / "red.png"),
        None,
        str(tmp_path / "secret.txt"),
        str(tmp_path / "x.svg"),
        str(tmp_path / "no.png"),
    ]
    write_test(tmp_path / "runs" / "a", images=images)
    write_suite(tmp_path / "runs" / "a")
    write_test(tmp_path / "runs" / "b", answers={0: "no", 3: "circle"})
    return made


def test_the_list(client):
    test, suite = client.get("evaluations", run="a")
    assert (test["name"], test["count"], test["score"], test["step"]) == ("evaluation.json", 5, {"exact_match": 0.4}, 7)
    assert 0.1 < test["low"] < 0.4 < test["high"] < 0.8
    assert (suite["name"], suite["low"], suite["high"]) == ("evaluations/pope.json", 78.0, 82.0)
    assert suite["dialect"] == "llava" and suite["published"][0]["value"] == 85.9


def test_filters(client):
    found = client.get("evaluation", run="a", name="evaluation.json", verdict="wrong")
    assert [answer["index"] for answer in found["answers"]] == [1, 2, 3] and found["total"] == 3
    assert found["groups"]["group"]["yes/no"]["count"] == 3 and found["groups"]["group"]["yes/no"]["right"] == 1
    assert found["groups"]["group"]["shape"]["score"] == 0.0
    found = client.get("evaluation", run="a", name="evaluation.json", group="group=yes/no", text="GREEN")
    assert [answer["index"] for answer in found["answers"]] == [2]
    found = client.get("evaluation", run="a", name="evaluation.json", sort="longest", limit=1)
    assert found["answers"][0]["answer"] == "a circle" and found["total"] == 5
    found = client.get("evaluation", run="a", name="evaluation.json", offset=4)
    assert [answer["index"] for answer in found["answers"]] == [4]
    found = client.get("evaluation", run="a", name="evaluations/pope.json", sort="worst")
    assert [answer["credit"] for answer in found["answers"]] == [0.3, 1.0, None]
    found = client.get("evaluation", run="a", name="evaluations/pope.json", verdict="unscored")
    assert [answer["index"] for answer in found["answers"]] == [2] and found["answers"][0]["correct"] is None
    assert client.refused("evaluation", run="a", name="evaluation.json", verdict="other") == (422, "bad_field")


def test_confusion_of_yes_and_no(client):
    found = client.get("evaluation", run="a", name="evaluation.json")["confusion"]
    assert found == {"yes": {"yes": 1, "no": 1, "other": 0}, "no": {"yes": 0, "no": 0, "other": 1}}
    assert client.get("evaluation", run="a", name="evaluations/pope.json")["confusion"] is None


def test_flipped_questions(client):
    found = client.get("evaluation/flips", run="a", other="b", name="evaluation.json")
    assert [flip["index"] for flip in found["better"]] == [0] and found["better"][0]["other"]["answer"] == "no"
    assert [flip["index"] for flip in found["worse"]] == [3] and found["counts"] == {"better": 1, "worse": 1}


def test_pixels_and_nothing_else(client):
    reply = client.reply("evaluation/image", run="a", name="evaluation.json", index=0, image=0)
    assert reply.status_code == 200 and reply.headers["content-type"] == "image/png"
    shown = Image.open(io.BytesIO(reply.content))
    assert shown.size == (512, 256) and shown.getpixel((5, 5)) == (200, 10, 10)
    for number in (1, 2, 3, 4, 5):
        assert client.refused("evaluation/image", run="a", name="evaluation.json", index=0, image=number)[0] == 404
    assert client.refused("evaluation/image", run="a", name="evaluation.json", index=99)[0] == 404
    answer = client.get("evaluation", run="a", name="evaluation.json")["answers"][0]
    assert answer["images"] == [0, 2, 3, 4] and answer["missing"] == 1


@pytest.mark.parametrize(
    "name", ["config.json", "../b/evaluation.json", "/etc/passwd", "evaluations/../config.json", ""]
)
def test_names_are_looked_up(client, name):
    assert client.refused("evaluation", run="a", name=name) == (404, "no_evaluation")


def test_a_damaged_result_is_named(client):
    path = client.studio.root / "b" / "evaluation.json"
    for text in (path.read_text()[:100], "[]", '{"answers": [1]}', '{"answers": [{"id": 1}], "data": ""}'):
        path.write_text(text)
        assert client.get("evaluations", run="b")[0]["problem"]
        assert client.refused("evaluation", run="b", name="evaluation.json") == (409, "evaluation_broken")


def test_a_result_is_read_again_when_it_changes(tmp_path):
    write_test(tmp_path)
    path = tmp_path / "evaluation.json"
    first = read_result("x", path)
    assert read_result("x", path) is first
    path.write_text(path.read_text().replace("red?", "very red?"))
    assert read_result("x", path) is not first


def test_results_of_older_versions(tmp_path):
    write_test(tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for row in found["answers"]:
        del row["images"], row["group"]
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    result = read_result("x", tmp_path / "evaluation.json")
    assert result.answers[0].images == () and result.answers[0].groups == {}
    assert len(choose(result.answers, verdict="right")) == 2 and confusion(result.answers)


def test_the_interval_of_a_share():
    """Of Newcombe 1998 (Statistics in Medicine 17), the score interval of 81 in 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 10)[0] == pytest.approx(0.0) and wilson(10, 10)[1] == pytest.approx(1.0)


def test_files_that_show_a_medium(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    media = ["a/b.png", b"bytes", Video("film.mp4"), Video(("1.png", "2.png")), Video((b"1",))]
    assert picture_files(media) == [str(tmp_path / "a/b.png"), None, None, str(tmp_path / "1.png"), None]


def test_suites(client):
    (client.studio.data_roots[0] / "pope").mkdir()
    found = {suite["name"]: suite for suite in client.get("suites", folder=str(client.studio.data_roots[0]))}
    assert found["pope"]["found"] and not found["gqa"]["found"] and found["gqa"]["needs"]
    assert client.refused("suites", folder="/etc") == (404, "no_data")


def test_the_command_of_an_evaluation(client, monkeypatch):
    seen = []
    monkeypatch.setattr(client.studio.tasks, "start", lambda kind, command, about: seen.append((kind, command)) or "id")
    body = {"run": "a", "stage": "finetune", "step": 7, "suite": "vqav2:val", "limit": 50}
    assert client.post("evaluate", body) == {"task": "id"}
    kind, command = seen[0]
    assert kind == "evaluate" and command[1:4] == ["-m", "jaxvlm.evaluate", "--run"]
    assert {"--stage=finetune", "--step=7", "--limit=50", "--suite=vqav2:val"} <= set(command)
    client.post("evaluate", {"run": "a", "source": "easy_vqa:test"})
    assert "--data=easy_vqa:test" in seen[1][1]
    for bad, status in (
        ({"suite": "nope"}, 404),
        ({"suite": "pope:nope"}, 404),
        ({"source": "/etc/passwd"}, 404),
        ({"suite": "pope", "source": "easy_vqa:test"}, 422),
        ({"run": "../a"}, 404),
        ({"step": "7"}, 422),
    ):
        client.post("evaluate", {"run": "a"} | bad, status)
    assert len(seen) == 2
