"""A decoder alone in every command: train, resume, evaluate, generate, check, show, prepare, plan, export, import."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxvlm import convert, evaluate, generate, inspect_data, plan, train
from jaxvlm.command import load_config
from jaxvlm.config_reading import to_dict
from jaxvlm.errors import UserError
from jaxvlm.families.registry import resolve
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.planning.program import build_step
from jaxvlm.planning.report import Assumptions, work_of
from jaxvlm.planning.slices import find_slice
from jaxvlm.preflight import set_up
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from jaxvlm.trees import paths
from tests.families.text import recipe
from tests.metrics import losses

RECIPE = __file__.replace("test_text.py", "recipe.py")
pytestmark = pytest.mark.usefixtures("one_device")


def talk(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "data.jsonl"
    records = [{"id": str(n), "messages": talk("how many?", "ab"[n % 2], "and now?", "cd"[n % 2])} for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_DATA", str(path))
        patch.setattr("jaxvlm.sharding.available_devices", lambda: __import__("jax").devices()[:1])
        yield path


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train.main(["--config", RECIPE, "--workdir", str(folder)])
    return folder


def test_a_run_has_a_decoder_and_nothing_else(trained):
    opened = open_run(trained)
    assert opened.params.keys() == {"language"} and opened.model.config.parts == ("language",)
    assert np.isfinite([loss for loss, _ in losses(trained).values()]).all() and len(losses(trained)) == 6
    saved = json.loads((trained / "config.json").read_text())
    assert json.loads(json.dumps(to_dict(resolve(saved)))) == saved
    assert json.loads((trained / "evaluation.json").read_text())["exact_match"] >= 0
    assert (trained / "samples.png").is_file()


@pytest.mark.nightly  # below in pre-training
def test_it_resumes_bit_equal(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints" / "sft" / "6")
    (folder / "ledger.json").unlink()
    train.main(["--config", RECIPE, "--workdir", str(folder), "--resume"])
    assert losses(folder) == losses(trained)


def test_pre_training_resumes_bit_equal(tmp_path, monkeypatch):
    """On documents that are longer than a row."""
    corpus, flags = tmp_path / "corpus.jsonl", ["--config", RECIPE, "--config.stage.sft.data.template=document"]
    lines = (" ".join(f"word{(7 * n + k) % 19}" for k in range(40)) for n in range(12))
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    monkeypatch.setenv("JAXVLM_TEST_DATA", str(corpus))
    flags += ["--config.evaluation.source="]
    train.main([*flags, "--workdir", str(tmp_path / "run")])
    first = losses(tmp_path / "run")
    assert len(first) == 6 and first[6][0] < first[1][0]
    shutil.rmtree(tmp_path / "run/checkpoints/sft/6")
    (tmp_path / "run/ledger.json").unlink()
    train.main([*flags, "--workdir", str(tmp_path / "run"), "--resume"])
    assert losses(tmp_path / "run") == first


def test_it_is_asked_without_an_image(trained, capsys):
    assert generate.main(["--run", str(trained), "--prompt", "how many?", "--max-new-tokens", "3"]).keys() == {"answer"}
    picture = trained.parent / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(UserError, match='it has an image, and a model of the family "text" has no encoder'):
        generate.main(["--run", str(trained), "--prompt", "how many?", "--image", str(picture)])
    assert evaluate.main(["--run", str(trained)])["exact_match"] >= 0


def test_its_data_is_checked_shown_and_prepared(data, trained, tmp_path, capsys):
    inspect_data.main(["check", "--config", RECIPE])
    assert not re.search(r"\n +48 +[12] ", capsys.readouterr().out)  # rows with images are not proposed
    inspect_data.main(["show", "--config", RECIPE, "--out", str(tmp_path / "page")])
    (page,) = (tmp_path / "page").rglob("*.html")
    assert "how" in page.read_text() and "<img" not in page.read_text()
    inspect_data.main(["prepare", "--config", RECIPE, "--out", str(tmp_path / "prepared")])
    prepared = [f"--config.stage.sft.data.source={tmp_path / 'prepared'}", "--config.steps=2"]
    train.main(["--config", RECIPE, "--workdir", str(tmp_path / "again"), "--config.evaluation.source=", *prepared])
    first = {step: loss for step, (loss, _) in losses(trained).items()}
    assert {step: loss for step, (loss, _) in losses(tmp_path / "again").items()} == {s: first[s] for s in (1, 2)}


def test_its_step_can_be_planned(data):
    step = build_step(load_config(RECIPE), "sft", find_slice("v5e-1"))
    work = work_of(step, Assumptions())
    assert work.units == 0 and step.batch.tokens.shape == (8, 48)


@pytest.mark.nightly  # the step above, compiled; tests/planning has the plans
@pytest.mark.tpu_compiler
def test_it_is_planned(data, capsys):
    result = plan.main(["--config", RECIPE, "--topology", "v5e-1", "--json"])
    assert "vision" not in json.dumps(result)
    assert "language: blocks" in capsys.readouterr().out


def test_a_record_with_a_picture_is_named(data, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    records = [{"id": str(n), "messages": talk("how many?", "a")} for n in range(9)]
    records[4] |= {"image": "a.png", "messages": talk("<image>\nhow many?", "a")}
    (tmp_path / "data.json").write_text(json.dumps(records))
    arguments = ["--config", RECIPE, "--workdir", str(tmp_path / "run"), "--config.evaluation.source="]
    arguments += [f"--config.stage.sft.data.source={tmp_path / 'data.json'}"]
    with pytest.raises(
        UserError, match=r"1 of 9 records break a rule \(1 image_without_encoder\)(.|\n)*data.json\[4\]"
    ):
        train.main(arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, s: s.parts.update(vision="full"), r"no such part: config.stage.sft.parts.vision; take them out"),
        (lambda c, s: c.init.update(vision="clip"), r"no such part: config.init.vision"),
        (lambda c, s: c.model.update(projector={"kind": "linear"}), r"no such part: config.model.projector"),
        (lambda c, s: s.data.update(media={"units": 3}), r"data.media.units = 3, expected 0: a model of text alone"),
        (lambda c, s: s.data.augment.update(shift=2), r"data.augment.shift = 2, expected 0"),
        (
            lambda c, s: s.parts.update(language="frozen"),
            r"every part is frozen \(config.stage.sft.parts.lang",
        ),
    ],
)
def test_options_of_images_in_a_recipe_of_text(data, change, message):
    c = recipe.get_config()
    change(c, c.stage.sft)
    with pytest.raises(UserError, match=message):
        set_up(resolve(c.to_dict()), ["sft"], test=True)


def give_eyes(folder, *flags):
    train.main(["--config", RECIPE.replace("recipe.py", "multimodal.py"), "--workdir", str(folder), *flags])


@pytest.fixture(scope="module")
def eyes(data, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_RUN", str(trained))
        give_eyes(folder)
    return folder


def test_its_decoder_gets_eyes_without_an_export(trained, eyes):
    have, want = paths(open_run(eyes).params["language"]), paths(open_run(trained).params["language"])
    for path in want:
        np.testing.assert_array_equal(have[path], want[path])
    vocab = [json.loads((run / "tokenizer" / "tokenizer.json").read_text()) for run in (trained, eyes)]
    assert vocab[0] == vocab[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.tokenizer.source=train", "--config.stage.align.data.template=llama2"],
            "its tokenizer is not the rec",
        ),
        (["--config.model.language.mlp_dim=57"], "config.model.language.mlp_dim is 57, there it is 56"),
        (["--config.init.model=RUN", "--config.init.language="], 'family "text" and has no vision and no projector'),
    ],
)
def test_a_run_of_text_that_does_not_fit(data, trained, tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("JAXVLM_TEST_RUN", str(trained))
    with pytest.raises(UserError, match=message):
        give_eyes(tmp_path / "run", *(flag.replace("RUN", str(trained)) for flag in flags))


@pytest.fixture(scope="module")
def lora(data, trained, tmp_path_factory):
    start = [f"--config.init.model={trained}", f"--config.tokenizer.source={trained}", "--config.evaluation.source="]
    flags = ["--config.stage.sft.parts.language=lora", "--config.stage.sft.parts.lora.language.rank=3"]
    folder = tmp_path_factory.mktemp("lora") / "run"
    train.main(["--config", RECIPE, "--workdir", str(folder), *start, *flags])
    return folder


def test_adapters(trained, lora, tmp_path):
    folder = lora
    assert open_run(folder).model.adapters[0][0] == "language"
    convert.main(["export", "--run", str(folder), "--out", str(tmp_path / "peft"), "--adapter"])
    convert.main(["export", "--run", str(trained), "--out", str(tmp_path / "base")])
    values = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert values["r"] == 3 and values["modules_to_save"] is None
    convert.main(
        [
            "import",
            "--from",
            str(tmp_path / "base"),
            "--adapter",
            str(tmp_path / "peft"),
            "--to",
            str(tmp_path / "back"),
        ]
    )
    have, want = paths(open_run(tmp_path / "back").params), paths(open_run(folder).params)
    assert have.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(have[path], want[path])


def test_out_and_in_again(trained, tmp_path):
    convert.main(["export", "--run", str(trained), "--out", str(tmp_path / "hf")])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    convert.main(["import", "--from", str(tmp_path / "hf"), "--to", str(tmp_path / "back")])
    assert convert.main(["verify", str(trained), str(tmp_path / "back")])["differing"] == 0
    config = RunFolder(tmp_path / "back").load_config()
    assert config.model.family == "text" and config.stage["imported"].data.template == "vicuna_v1"


def test_an_encoder_moves_to_another_decoder(trained, eyes, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVLM_TEST_RUN", str(trained))
    other = ["--config.init.language=", "--config.model.language.mlp_dim=57"]
    give_eyes(tmp_path / "second", *other, f"--config.init.vision={eyes}")
    have, want = (paths(open_run(run).params["vision"]) for run in (tmp_path / "second", eyes))
    for path in want:
        np.testing.assert_array_equal(have[path], want[path])
    narrow = ["--config.init.language=", "--config.model.language.embed_dim=36"]
    with pytest.raises(UserError, match=r"projector/fc1/w is \(36, 48\), here \(36, 36\)"):
        give_eyes(tmp_path / "third", *narrow, f"--config.init.projector={eyes}")


@pytest.mark.torch
def test_transformers_reads_the_export(trained, tmp_path):
    convert.main(["export", "--run", str(trained), "--out", str(tmp_path / "hf")])
    have = logits_of_run(open_run(trained, keep_dtypes=True), [], "how many?")
    want = logits_of_folder(tmp_path / "hf", [], "how many?")
    np.testing.assert_allclose(have, want, atol=1e-4)


@pytest.mark.torch
def test_peft_reads_the_adapters(trained, lora, tmp_path):
    import peft
    import torch
    import transformers

    convert.main(["export", "--run", str(trained), "--out", str(tmp_path / "base")])
    convert.main(["export", "--run", str(lora), "--out", str(tmp_path / "peft"), "--adapter"])
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "how many?"}], add_generation_prompt=True, tokenize=False
    )
    with torch.no_grad():
        want = adapted(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0].numpy()
    np.testing.assert_allclose(logits_of_run(open_run(lora, keep_dtypes=True), [], "how many?"), want, atol=1e-4)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
