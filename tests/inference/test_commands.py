"""`evaluate` and `generate` on a tiny run with random weights."""

import dataclasses
import io
import json
import shutil
import sys

import pytest
from PIL import Image

from jaxvlm import evaluate, generate
from jaxvlm.command import run
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.errors import UserError
from jaxvlm.evaluation.questions import load_questions
from jaxvlm.inference.conversation import Conversation
from jaxvlm.runs import RunFolder
from tests import tiny
from tests.inference import tiny_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    config = tiny.config(tiny_run.recipe(data))
    return tiny_run.make_run(tmp_path_factory.mktemp("runs") / "tiny", config)


def test_evaluate_counts_by_group_and_leaves_answers_and_samples(folder, data, capsys):
    assert run(evaluate.main, ["--run", str(folder), "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result["count"] == 5 and result["by_group"] == {}
    saved = json.loads((folder / "evaluation.json").read_text())
    assert {name: saved[name] for name in result} == result
    assert (saved["data"], saved["stage"], saved["step"], saved["limit"]) == (str(data), "finetune", 0, None)
    assert [row["truth"] for row in saved["answers"]] == ["green", "no", "blue", "no", "hello"]
    assert [row["question"] for row in saved["answers"]][:2] == ["what color is it?", "is it red?"]
    assert sum(row["right"] for row in saved["answers"]) == round(result["exact_match"] * 5)
    assert any("exact match" in line for line in printed) and any("what color is it?  ->" in line for line in printed)
    assert Image.open(folder / "samples.png").size[0] > 1000


def test_evaluate_keeps_results_of_different_things_apart(folder, data, capsys):
    main = ["--run", str(folder), "--limit", "2", "--batch-size", "8", "--max-new-tokens", "2"]
    assert evaluate.main(main)["count"] == 2
    out = folder / "evaluation" / "data-finetune-0-first2"
    assert len(json.loads((out / "evaluation.json").read_text())["answers"]) == 2
    other = out / "other"
    evaluate.main([*main, "--data", str(data), "--out", str(other)])
    assert (other / "evaluation.json").is_file() and "replaced" not in capsys.readouterr().err
    saved = json.loads((other / "evaluation.json").read_text())
    (other / "evaluation.json").write_text(json.dumps(saved | {"data": "elsewhere.json"}))
    evaluate.main([*main, "--data", str(data), "--out", str(other)])
    assert "held the result for elsewhere.json; it is replaced" in capsys.readouterr().err
    (other / "evaluation.json").write_text(json.dumps(saved)[:100])  # by a disk that was full
    evaluate.main([*main, "--data", str(data), "--out", str(other)])
    assert json.loads((other / "evaluation.json").read_text()) == saved


def test_a_recipe_that_cannot_be_read_is_one_message(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model": ')
    assert run(evaluate.main, ["--run", str(tmp_path)]) == 2
    assert f"error: {tmp_path / 'config.json'} is damaged (Expecting value" in capsys.readouterr().err


def test_easy_vqa_is_scored_by_kind_of_question(folder, capsys):
    result = evaluate.main(["--run", str(folder), "--data", "easy_vqa:test", "--limit", "11", "--max-new-tokens", "2"])
    groups = result["by_group"]
    assert list(groups) == ["color", "shape", "yes/no"] and sum(g["count"] for g in groups.values()) == 11
    assert (folder / "evaluation" / "easy_vqa-test-finetune-0-first11" / "samples.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no.json"], "no such file"),
        (["--stage", "pretrain"], "pretrain"),
        (["--step", "-1"], "--step -1"),
        (["--image-folder", "x"], "goes with --data"),
        (["--batch-size", "0"], "batch_size 0"),
        (["--bogus"], "--bogus"),
    ],
)
def test_evaluate_mistakes(folder, arguments, message, capsys):
    assert run(evaluate.main, ["--run", str(folder), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_evaluate_names_every_broken_record(folder, tmp_path):
    records = [{"conversations": [{"from": "human", "value": "a"}]}, {"id": "x"}, 7]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=r"broken.json\[1\].*broken.json\[2\]"):
        load_questions(str(path))
    path.write_text(json.dumps(records[:1]))
    with pytest.raises(UserError, match="holds no question"):
        load_questions(str(path))


def test_evaluate_without_a_test_in_the_recipe(folder, tmp_path, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["evaluation"]["source"] = ""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(evaluate.main, ["--run", str(tmp_path)]) == 2
    assert "name a data set with --data" in capsys.readouterr().err


def test_generate_answers_about_several_images(folder, data, capsys):
    images = [f"--image={data.parent / name}.png" for name in ("red", "blue")]
    arguments = ["--run", str(folder), *images, "--max-new-tokens", "5"]
    assert run(generate.main, [*arguments, "--prompt", "what color?", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    answer = json.loads(last)["answer"]
    assert answer and "\n".join(text) == answer
    assert generate.main([*arguments, "--prompt", "<image>\n<image>\nwhat color?"]) == {"answer": answer}
    sampled = [*arguments, "--prompt", "what color?", "--temperature", "5", "--seed"]
    drawn = [generate.main([*sampled, seed])["answer"] for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_takes_another_system_message(folder, data, monkeypatch):
    written = []
    render = Renderer.render_prompt

    def noted(self, record):
        sample = render(self, record)
        written.append(self.decode(sample.tokens))
        return sample

    monkeypatch.setattr(Renderer, "render_prompt", noted)
    arguments = ["--run", str(folder), "--max-new-tokens", "1", "--prompt", "is it red?"]
    for system in ("Be kind.", "", "Be brief."):
        generate.main([*arguments, "--system", system])
    assert [text.partition("USER:")[0].strip() for text in written] == ["Be kind.", "", "Be brief."]


def test_a_system_message_that_captions_would_lose_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    run_folder = RunFolder(tmp_path / "run")
    config = run_folder.load_config()
    (name, stage), *_ = config.stage.items()
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, template="plain"))
    run_folder.save_config(dataclasses.replace(config, stage={name: stage}))
    with pytest.raises(UserError, match='--system: the template "plain" writes no system message; leave it out'):
        generate.main(["--run", str(tmp_path / "run"), "--prompt", "", "--system", "Be kind."])


def test_generate_holds_a_conversation(folder, data, monkeypatch, capsys):
    red, blue = (data.parent / f"{name}.png" for name in ("red", "blue"))
    lines = ["what color is it?", "", "is it red?", f"/image {blue}", "what color?", "/reset", f"/image {red}"]
    lines += ["what color is it?", "/quit", "never asked"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    arguments = ["--run", str(folder), "--max-new-tokens", "3"]
    turns = generate.main([*arguments, "--image", str(red)])["turns"]
    asked = [line for line in lines[:-2] if line and not line.startswith("/")]
    assert [turn["question"] for turn in turns] == asked
    assert capsys.readouterr().out.splitlines() == [turn["answer"] for turn in turns]
    assert turns[3] == turns[0]


def test_ctrl_c_cancels_an_answer_and_keeps_the_conversation(folder, data, monkeypatch, capsys):
    lines = iter(["what color is it?", "is it red?", "what color?"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/quit"))
    stream, asked = Conversation.stream, []

    def interrupted(self, text):
        asked.append(text)
        for piece in stream(self, text):
            yield piece
            if len(asked) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "stream", interrupted)
    arguments = ["--run", str(folder), "--image", str(data.parent / "red.png"), "--max-new-tokens", "20"]
    turns = generate.main(arguments)["turns"]
    assert [turn["question"] for turn in turns] == ["what color is it?", "what color?"]
    assert "cancelled" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("what color is it?\nwhat color?\n"))
    assert generate.main(arguments)["turns"] == turns


def test_a_conversation_ends_with_the_input(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert generate.main(["--run", str(folder)]) == {"turns": []}


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--image", "no.png", "--prompt", "a"], "", "no.png is missing"),
        (["--image", __file__, "--prompt", "a"], "", "no image"),
        (["--prompt", "<image> <image> a"], "", "has <image> <image> for no images"),
        (["--prompt", "say hello " * 99], "", "(data.tokens)"),
        (["--prompt", "a", "--temperature", "-1"], "", "temperature is -1"),
        (["--prompt", "a", "--top-p", "2"], "", "top_p is 2"),
        (["--prompt", "a", "--max-new-tokens", "0"], "", "max_new_tokens is 0"),
        (["--prompt", " "], "", "empty"),
        (["--prompt", "a", "--temperature", "warm"], "", "warm"),
        ([], "/image no.png\n", "no.png is missing"),
        ([], "/rest\n", '"/rest" is no command'),
        ([], "/image\n", '"/image" is no command'),
    ],
)
def test_generate_mistakes(folder, arguments, text, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert run(generate.main, ["--run", str(folder), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_terminal_goes_on_after_a_mistake(folder, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("/image no.png\n/quit\n"))
    assert generate.main(["--run", str(folder)]) == {"turns": []}
    assert "error: --image: image no.png is missing" in capsys.readouterr().err


def test_generate_without_a_run(tmp_path, capsys):
    assert run(generate.main, ["--run", str(tmp_path), "--prompt", "a"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
