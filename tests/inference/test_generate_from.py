"""`generate --from`: published weights are asked without a run, and answer as the run that `convert import` makes."""

import io
import json
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxvlm import convert, generate
from jaxvlm.command import run
from jaxvlm.data.records import Record, Turn
from jaxvlm.families.registry import resolve
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import open_run
from jaxvlm.source_model import open_model, read_sources
from jaxvlm.trees import paths
from tests import tiny
from tests.families.text import recipe as text_recipe
from tests.inference import tiny_run
from tests.smollm2 import smollm2_file

FRANCE = ["--prompt", "What is the capital of France?"]
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of Hugging Face: a LLaVA, a decoder alone with its own chat template, and the LLaVA's encoder."""
    root = tmp_path_factory.mktemp("from")
    data = tiny_run.write_data(root)
    tiny_run.make_run(root / "run", tiny.config(tiny_run.recipe(data)))
    (root / "text.json").write_text(json.dumps([{"id": "a", "conversations": tiny_run.turns("how many?", "three")}]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_DATA", str(root / "text.json"))
        c = text_recipe.get_config()
    c.stage.sft.data.heldout, c.mesh.fsdp = 0.0, -1
    tiny_run.make_run(root / "text_run", resolve(c.to_dict()))
    for name, source in (("llava", "run"), ("text", "text_run")):
        convert.main(["export", "--run", str(root / source), "--out", str(root / name)])
    convert.main(["export", "--run", str(root / "run"), "--out", str(root / "encoder"), "--part", "vision"])
    convert.main(["export", "--run", str(root / "run"), "--out", str(root / "decoder"), "--part", "language"])
    return root


def in_dtypes(folder, new, most, projector, *, large=False):
    """A copy of a folder with its projector in another dtype than the rest, perhaps with a value beyond float16."""
    shutil.copytree(folder, new)
    tensors = load_file(new / "model.safetensors")
    for name, x in tensors.items():
        is_projector = "projector" in name
        tensors[name] = x.astype(DTYPES[projector if is_projector else most])
        if is_projector and large and x.ndim == 1:
            tensors[name][0] = 1e5
    save_file(tensors, new / "model.safetensors", {"format": "pt"})
    return new


def answer(*arguments):
    return generate.main([*map(str, arguments), "--max-new-tokens", "12"])["answer"]


def fail(capsys, *arguments):
    capsys.readouterr()
    assert run(generate.main, list(map(str, arguments))) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    ("name", "most", "projector", "large"),
    [
        pytest.param("text", "float32", "float32", False, marks=pytest.mark.nightly),
        ("text", "float16", "float16", False),
        pytest.param("llava", "float32", "float32", False, marks=pytest.mark.nightly),
        pytest.param("llava", "bfloat16", "float32", False, marks=pytest.mark.nightly),
        pytest.param("llava", "float16", "float32", False, marks=pytest.mark.nightly),
        pytest.param("llava", "float16", "float32", True, marks=pytest.mark.nightly),
    ],
)
def test_it_answers_as_the_imported_run(folders, tmp_path, capsys, name, most, projector, large):
    source = in_dtypes(folders / name, tmp_path / "hf", most, projector, large=large)
    convert.main(["import", "--from", str(source), "--to", str(tmp_path / "run")])
    imported = capsys.readouterr().err
    opened, wanted = open_model(read_sources([str(source)])), open_run(tmp_path / "run")
    assert opened.stage.frozen_dtype == ("float32" if large else most)
    assert (opened.stage, opened.config.generation) == (wanted.stage, wanted.config.generation)
    have, want = paths(opened.params), paths(wanted.params)
    assert have.keys() == want.keys()
    for path in want:
        assert have[path].dtype == want[path].dtype and have[path].sharding == want[path].sharding, path
        np.testing.assert_array_equal(np.asarray(have[path]), np.asarray(want[path]), err_msg=path)
    record = Record("a", (Turn("user", "how many?"),), (), "a")
    logits = [Engine.of(model).logits(record) for model in (opened, wanted)]
    np.testing.assert_array_equal(*logits)

    images = [f"--image={folders / 'red.png'}"] if name == "llava" else []
    for more in (
        ["--temperature", "0"],
        ["--temperature", "2", "--top-k", "9", "--seed", "3"],
        ["--system", "Be kind."],
    ):
        asked = ["--prompt", "what color is it?", *images, *more]
        capsys.readouterr()
        said = answer("--from", source, *asked)
        logged = capsys.readouterr().err.splitlines()
        assert said and said == answer("--run", tmp_path / "run", *asked)
        assert logged and all(line in imported for line in logged)
        assert any(line.startswith("settings: template ") for line in logged)
        assert any("opened in float32" in line for line in logged) == large


def test_parts_in_different_folders(folders, capsys):
    error = fail(capsys, "--from", folders / "encoder", "--from", folders / "decoder", "--prompt", "a")
    assert "no --from has a projector" in error and "`python -m jaxvlm.convert import` makes a run" in error
    assert "no --from has a language" in fail(capsys, "--from", folders / "encoder", "--prompt", "a")
    error = fail(capsys, "--from", folders / "llava", "--from", folders / "decoder", "--prompt", "a")
    assert "both have a language; leave one out" in error


def test_a_conversation_and_a_template(folders, monkeypatch, capsys):
    lines = ["how many?", "/reset", "how many?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    turns = generate.main(["--from", str(folders / "text"), "--max-new-tokens", "5"])["turns"]
    assert len(turns) == 2 and turns[0] == turns[1]
    arguments = ["--from", folders / "text", "--prompt", "how many?", "--template", "chatml", "--system", ""]
    error = fail(capsys, *arguments)
    assert "chatml" in error
    answer(*arguments[:4], "--template", "vicuna_v1", "--system", "")
    assert "settings: template vicuna_v1" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["--from", "--run"])
def test_an_answer_ends_before_a_stop_text(folders, capsys, model):
    arguments = [model, folders / ("llava" if model == "--from" else "run"), "--prompt", "what color is it?"]
    whole = answer(*arguments)
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    capsys.readouterr()
    said = answer(*arguments, "--stop", "no such text", "--stop", stop)
    assert said == whole[: whole.find(stop)].rstrip() and capsys.readouterr().out == f"{said}\n"
    assert answer(*arguments, "--stop", "no such text") == whole
    assert answer(*arguments, "--stop", "</s>") == whole  # a special token ends the answer, and is no text
    assert "a stop text is empty" in fail(capsys, *arguments, "--stop", "")


def test_a_stop_text_ends_the_decoding(folders):
    engine = Engine.of(open_run(folders / "run"))
    record = Record("a", (Turn("user", "what color is it?"),), (), "a")
    with engine.stream(record, max_new_tokens=64) as whole:
        text = "".join(whole)
    stop = text[1:3]
    with engine.stream(record, max_new_tokens=64, stop_texts=(stop,)) as stream:
        said = "".join(stream)
    assert said == stream.text == text[: text.find(stop)].rstrip() and stream.finish_reason == "stop"
    assert len(stream.tokens) < len(whole.tokens) and next(stream, None) is None
    with engine.stream(record, max_new_tokens=64, stop_texts=(text + "!",)) as stream:
        assert [*stream] == [text] and stream.finish_reason == whole.finish_reason  # held until the end


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("count", "answer"),
    [(2, "The capital"), pytest.param(24, "The capital of France is Paris.", marks=pytest.mark.nightly)],
)
def test_a_gguf_file_knows_the_capital_of_france(capsys, count, answer):
    source = ["--from", str(smollm2_file())]
    assert generate.main([*source, *FRANCE, "--max-new-tokens", str(count)]) == {"answer": answer}
    captured = capsys.readouterr()
    assert captured.out == f"{answer}\n"
    assert "settings: template" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one model is needed, --run DIR or --from SOURCE, and neither was given"),
        (["--run", "RUN", "--from", "TEXT"], "one model is needed, --run DIR or --from SOURCE, and both were given"),
        (["--from", "./nothing"], "./nothing is neither a folder or file that is here nor a name on the hub"),
        (["--from", "RUN"], "is a run, which `generate --run` and a recipe's init.model open as it is"),
        (
            ["--run", "TEXT"],
            "is a Hugging Face folder, not that of a run; ask it with `python -m jaxvlm.generate --from",
        ),
        (["--from", "TEXT", "--step", "3"], "--stage and --step choose among a run's checkpoints"),
        (["--from", "TEXT", "--stage", "sft"], "--stage and --step choose among a run's checkpoints"),
        (["--run", "RUN", "--template", "plain"], "--template goes with --from"),
        (["--from", "TEXT", "--template", "nonsense"], "nonsense"),
        (["--from", "TEXT", "--image", "IMAGE"], 'it has an image, and a model of the family "text" has no encoder'),
        (["--from", "TEXT", "--top-p", "2"], "top_p is 2"),
    ],
)
def test_mistakes(folders, arguments, message, capsys):
    names = {"RUN": folders / "run", "TEXT": folders / "text", "IMAGE": folders / "red.png"}
    assert message in fail(capsys, *(names.get(x, x) for x in arguments), "--prompt", "how many?")
