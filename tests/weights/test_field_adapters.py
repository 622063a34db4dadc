"""Adapters as people train them with PEFT: on the projector too, and with weights saved as a whole."""

import dataclasses
import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

from jaxvlm import generate
from jaxvlm.command import run
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from jaxvlm.source_model import open_model, read_sources
from tests import hf_folders
from tests.parity import tiny_llava
from tests.test_convert import call, fail, with_vocab

CONFIG = with_vocab(tiny_llava.tiny_config())


pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A LLaVA's folder, its model in torch, and an image."""
    folder = tmp_path_factory.mktemp("base") / "Tiny-LLaVA"
    model = hf_folders.write_llava(folder, CONFIG)
    hf_folders.write_image(folder.parent / "a.png")
    return folder, model, folder.parent / "a.png"


def train(base, to, **fields):
    """Adapters with random weights as PEFT saves them; returns the logits of the adapted model for one question."""
    folder, _, image = base
    config = peft.LoraConfig(task_type="CAUSAL_LM", **fields)
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    model = peft.get_peft_model(loaded, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) / 10
    model.save_pretrained(to)
    call("import", "--from", folder, "--to", to / "plain")
    call("export", "--run", to / "plain", "--out", to / "out")
    model.merge_and_unload().save_pretrained(to / "out", max_shard_size="1GB")  # the processor of the export stays
    return logits_of_folder(to / "out", [image], "is it red?")


FIELDS = {
    "all-linear": {"r": 3, "target_modules": "all-linear"},
    "projector": {"r": 3, "lora_alpha": 7, "target_modules": ["linear_1", "linear_2"], "use_rslora": True},
    "ranks": {
        "r": 3,
        "target_modules": ["q_proj", "linear_2"],
        "rank_pattern": {"linear_2": 5},
        "alpha_pattern": {"linear_2": 9},
    },
    "embedding and head": {"r": 3, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


# "all-linear" has the projector too, test_adapters.py rslora and ranks of their own.
CASES = [pytest.param(case, marks=pytest.mark.nightly) if case in ("projector", "ranks") else case for case in FIELDS]


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_peft(base, tmp_path, case):
    want = train(base, tmp_path, **FIELDS[case])
    call("import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    have = logits_of_run(open_run(tmp_path / "run"), [base[2]], "is it red?")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)
    opened = open_model(read_sources([str(base[0])], adapter=str(tmp_path)))  # without a run
    np.testing.assert_array_equal(logits_of_run(opened, [base[2]], "is it red?"), have)
    call("import", "--from", base[0], "--to", tmp_path / "bare")
    assert np.abs(want - logits_of_run(open_run(tmp_path / "bare"), [base[2]], "is it red?")).max() > 0.01


def test_it_is_asked_over_its_base(base, tmp_path, capsys):
    train(base, tmp_path, **FIELDS["all-linear"])
    call("import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    asked = ["--image", str(base[2]), "--prompt", "is it red?", "--max-new-tokens", "9"]
    over = generate.main(["--from", str(base[0]), "--adapter", str(tmp_path), *asked])
    assert over == generate.main(["--run", str(tmp_path / "run"), *asked]) and over["answer"]
    assert run(generate.main, ["--run", str(tmp_path / "run"), "--adapter", str(tmp_path), *asked]) == 2
    assert "--adapter goes with --from" in capsys.readouterr().err
    shutil.copytree(tmp_path, tmp_path / "alone", ignore=shutil.ignore_patterns("run", "plain", "out"))
    assert run(generate.main, ["--from", str(tmp_path / "alone"), *asked]) == 2
    assert "has only adapters (adapter_config.json); pass it as --adapter" in capsys.readouterr().err


def test_an_adapter_of_another_projector(base, tmp_path, capsys):
    train(base, tmp_path, r=3, target_modules=["linear_1"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 4}))
    error = fail(capsys, "import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    assert "multi_modal_projector.linear_1.lora_A.weight is (3, 40), expected (4, 40)" in error
    assert "multi_modal_projector.linear_1.lora_B.weight is (48, 3), expected (48, 4)" in error


def test_another_base_is_told(base, tmp_path, capsys):
    train(base, tmp_path, r=3, target_modules=["q_proj"])
    path = tmp_path / "adapter_config.json"

    def made_for(name):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
        run = tmp_path / name.replace("/", "_")
        written = call("import", "--from", base[0], "--adapter", tmp_path, "--to", run, capsys=capsys)
        return "the adapter was made for" in written.out + written.err

    assert made_for("somebody/llava-1.5-7b-hf")
    assert not made_for("somebody/tiny-llava")


def test_adapters_over_replaced_weights_are_merged_or_refused(base, tmp_path, capsys):
    """PEFT's form of ours has adapters and projector; the embedding would be lost."""
    train(base, tmp_path, **FIELDS["embedding and head"])
    call("import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    error = fail(capsys, "export", "--run", tmp_path / "run", "--out", tmp_path / "again", "--adapter")
    assert "language/embed/w, language/head/w are not those of the base model" in error
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "merged", "--merge")

    # A run that started from it has the replaced weights, too.
    shutil.copytree(tmp_path / "run", tmp_path / "later")
    later = RunFolder(tmp_path / "later")
    later.origin_file.unlink()
    config = later.load_config()
    later.save_config(dataclasses.replace(config, init=dataclasses.replace(config.init, model=str(tmp_path / "run"))))
    error = fail(capsys, "export", "--run", tmp_path / "later", "--out", tmp_path / "again", "--adapter")
    assert "language/embed/w, language/head/w are not those of the base model" in error


def test_an_export_says_what_its_base_must_have(base, tmp_path, capsys):
    """Before the adapters another run trained the decoder; without a word their base would be taken for the first."""
    train(base, tmp_path, r=3, target_modules=["q_proj"])
    call("import", "--from", base[0], "--to", tmp_path / "full")
    call("import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    export = ("export", "--run", tmp_path / "run", "--adapter", "--base", "me/mine", "--out")
    assert "must have" not in call(*export, tmp_path / "a", capsys=capsys).err

    full, lora = RunFolder(tmp_path / "full"), RunFolder(tmp_path / "run")
    config = full.load_config()
    stage = config.stage["imported"]
    trained = dataclasses.replace(stage, parts=dataclasses.replace(stage.parts, language="full"))
    full.save_config(dataclasses.replace(config, stage={"imported": trained}))
    config = lora.load_config()
    lora.save_config(dataclasses.replace(config, init=dataclasses.replace(config.init, model=str(full.path))))
    said = call(*export, tmp_path / "b", capsys=capsys).err
    assert f"me/mine must have the weights that were trained in stage imported of {full.path} (language)" in said


def test_an_adapted_projector_is_written_back(base, tmp_path):
    want = train(base, tmp_path, **FIELDS["all-linear"])
    call("import", "--from", base[0], "--adapter", tmp_path, "--to", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "again", "--adapter")
    call("import", "--from", base[0], "--adapter", tmp_path / "again", "--to", tmp_path / "back")
    have = logits_of_run(open_run(tmp_path / "back"), [base[2]], "is it red?")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)


def test_an_embedding_apart_from_its_head_is_merged_by_peft(base, tmp_path, capsys):
    """What the error advises gives the logits of PEFT: the merged model has a head of its own."""
    tied = with_vocab(tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True, tie_embeddings=True))
    folder = tmp_path / "base"
    model = hf_folders.write_llava(folder, tied, decoder="qwen2")
    want = train((folder, model, base[2]), tmp_path, r=3, target_modules=["v_proj"], modules_to_save=["embed_tokens"])
    error = fail(capsys, "import", "--from", folder, "--adapter", tmp_path, "--to", tmp_path / "run")
    assert "embed_tokens.weight replaces the embedding alone" in error and "merge_and_unload" in error
    call("import", "--from", tmp_path / "out", "--to", tmp_path / "run")
    have = logits_of_run(open_run(tmp_path / "run"), [base[2]], "is it red?")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)
