"""The recipes of LLaVA-1.5 from Hugging Face folders to Hugging Face folders, with a model of few weights."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image

from jaxvlm import convert, generate, train
from jaxvlm.command import run
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from jaxvlm.trees import paths
from jaxvlm.weights.reading import open_tensors
from tests import hf_folders
from tests.e2e.conftest import COLORS
from tests.parity import tiny_llava

pytestmark = pytest.mark.torch

VOCAB = len(hf_folders.tokenizer(400))
MODEL = tiny_llava.tiny_config()
MODEL = dataclasses.replace(MODEL, language=dataclasses.replace(MODEL.language, vocab_size=VOCAB))
QUESTION = "what color is it?"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The commands see one device, whatever the suite has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxvlm.sharding.available_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of an encoder, a decoder and the data."""
    folder = tmp_path_factory.mktemp("llava15")
    hf_folders.write_vision(folder / "clip", MODEL)
    hf_folders.write_language(folder / "vicuna", MODEL, seed=1)
    random = np.random.default_rng(0)
    records = []
    for i in range(24):
        name = str(random.choice(list(COLORS)))
        pixels = np.clip(random.integers(-20, 21, (24, 20, 3)) + COLORS[name], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        turns = [("human", f"<image>\n{QUESTION}"), ("gpt", name), ("human", "is it red?"), ("gpt", "yes")]
        said = [{"from": who, "value": text} for who, text in turns]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (folder / "mix.json").write_text(json.dumps(records))
    captions = [record | {"conversations": record["conversations"][:2]} for record in records]
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def small(world, stage, data, **values):
    """Overrides that make a recipe small: sizes, sources, data; everything else stays the recipe's."""
    sizes = {f"model.vision.{k}": v for k, v in dataclasses.asdict(MODEL.vision).items() if not isinstance(v, tuple)}
    sizes |= {f"model.language.{k}": v for k, v in dataclasses.asdict(MODEL.language).items() if v is not None}
    values = {
        **sizes,
        "model.compute_dtype": "float32",
        "init.vision": world / "clip",
        "init.language": world / "vicuna",
        "tokenizer.source": world / "vicuna",
        "mesh.fsdp": 1,
        f"stage.{stage}.data.source": world / data,
        f"stage.{stage}.data.image_folder": world,
        f"stage.{stage}.data.workers": 0,
        f"stage.{stage}.data.tokens": 192,
        f"stage.{stage}.global_batch_size": 4,
        f"stage.{stage}.epochs": 2.0,
        f"stage.{stage}.frozen_dtype": "float32",
        **values,
    }
    return [f"--config.{name}={value}" for name, value in values.items()]


def call(command, *arguments):
    assert run(command.main, list(map(str, arguments))) == 0


@pytest.fixture(scope="module")
def align(world):
    call(
        train,
        "--config",
        "configs/llava15_7b_align.py",
        "--workdir",
        world / "align",
        *small(world, "align", "captions.json"),
    )
    return world / "align"


@pytest.fixture(scope="module")
def finetune(world, align):
    overrides = small(world, "finetune", "mix.json", **{"init.projector": align})
    call(train, "--config", "configs/llava15_7b_finetune.py", "--workdir", world / "finetune", *overrides)
    return world / "finetune"


@pytest.fixture(scope="module")
def lora(world, finetune):
    sources = {"init.model": finetune, "init.vision": "", "init.language": "", "init.projector": ""}
    # At LLaVA's rates a few steps of so small a model change nothing that one could see.
    rates = {"stage.finetune.optimizer.learning_rate": 1e-2}
    overrides = small(world, "finetune", "mix.json", **sources, **rates)
    call(train, "--config", "configs/llava15_7b_lora.py", "--workdir", world / "lora", *overrides)
    return world / "lora"


def weights(folder):
    return {path: np.asarray(leaf) for path, leaf in paths(open_run(folder, keep_dtypes=True).params).items()}


def test_align_trains_the_projector_alone(world, align):
    trained = weights(align)
    encoder, decoder = open_tensors(world / "clip"), open_tensors(world / "vicuna")
    assert np.array_equal(trained["language/norm/scale"], decoder["model.norm.weight"])
    assert np.array_equal(trained["language/head/w"], decoder["lm_head.weight"])
    assert np.array_equal(trained["vision/positions"], encoder["embeddings.position_embedding.weight"])
    metrics = [json.loads(line) for line in (align / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_finetune_goes_on_from_the_projector(world, align, finetune):
    before, after = weights(align), weights(finetune)
    for path in before:
        same = np.array_equal(before[path], after[path])
        assert same == path.startswith("vision/"), path
    # What Adam can move in so few steps at 2e-5: had the projector started again, it would be far away.
    assert np.abs(before["projector/fc1/w"] - after["projector/fc1/w"]).max() < 2e-5 * 12


def test_a_projector_of_the_original_starts_a_finetune(world, align, tmp_path):
    """`init.projector` takes a folder with LLaVA's mm_projector.bin."""
    folder = tmp_path / "llava-v1.5-7b-pretrain"
    folder.mkdir()
    trained = weights(align)
    torch.save(
        {
            f"model.mm_projector.{2 * (i - 1)}.{kind}": torch.from_numpy(trained[f"projector/fc{i}/{ours}"].T.copy())
            for i in (1, 2)
            for kind, ours in (("weight", "w"), ("bias", "bias"))
        },
        folder / "mm_projector.bin",
    )
    values = json.loads((world / "vicuna" / "config.json").read_text())
    values |= {"model_type": "llava_llama", "mm_vision_tower": "openai/clip", "mm_vision_select_layer": -2}
    values |= {"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 40}
    (folder / "config.json").write_text(json.dumps(values))
    overrides = small(world, "finetune", "mix.json", **{"init.projector": folder, "steps": 1})
    call(train, "--config", "configs/llava15_7b_finetune.py", "--workdir", tmp_path / "run", *overrides)
    # The first step of the warm-up has rate 0.
    after = weights(tmp_path / "run")
    assert np.array_equal(after["projector/fc2/w"], trained["projector/fc2/w"])


@pytest.mark.nightly  # tests/training/test_lora.py has what is trained
def test_lora_keeps_the_base_and_all_that_was_trained(finetune, lora):
    before, after = weights(finetune), weights(lora)
    adapters = {path for path in after if "/lora/" in path}
    assert len(adapters) == 14 and all(after[path].any() for path in adapters)
    assert {after[path].shape[-1] for path in adapters if path.endswith("/a")} == {128}
    for path, leaf in before.items():
        assert np.array_equal(leaf, after[path]) != path.startswith("projector/"), path
    saved = RunFolder(lora).load_config().stage["finetune"]
    assert saved.parts.adapters()["language"].scale == 2.0 and saved.parts.vision == "frozen"


def ask_ours(folder, image):
    arguments = ["--run", folder, "--image", image, "--prompt", QUESTION, "--max-new-tokens", 6]
    return generate.main(list(map(str, arguments)))["answer"].strip()


def ask_theirs(model, folder, image):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    said = processor.apply_chat_template(
        [{"role": "user", "content": f"<image>\n{QUESTION}"}], add_generation_prompt=True, tokenize=False
    )
    pixels = Image.open(image).convert("RGB")
    inputs = processor(text=said, images=[pixels], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        logits = model(**inputs).logits[0].numpy()
    answer = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip(), logits


@pytest.mark.nightly  # tests/weights/test_adapters.py has the logits of merged adapters
def test_merged_adapters_in_transformers(world, lora, tmp_path):
    call(convert, "export", "--run", lora, "--out", tmp_path / "merged", "--merge", "--resize-embeddings")
    image = world / "0.png"
    ours = logits_of_run(open_run(lora), [image], QUESTION)
    theirs = logits_of_folder(tmp_path / "merged", [image], QUESTION)
    print("largest difference of logits, merged:", np.abs(ours - theirs[:, :VOCAB]).max())
    # Logits up to 4, in float32 and summed in another order: XLA optimises little here.
    np.testing.assert_allclose(theirs[:, :VOCAB], ours, atol=5e-5)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert ask_theirs(model, tmp_path / "merged", image)[0] == ask_ours(lora, image)


@pytest.mark.nightly  # tests/weights/test_adapters.py has the logits of PEFT
def test_adapters_in_peft_and_back(world, finetune, lora, tmp_path):
    call(convert, "export", "--run", finetune, "--out", tmp_path / "base", "--resize-embeddings")
    call(convert, "export", "--run", lora, "--out", tmp_path / "adapter", "--adapter", "--base", tmp_path / "base")
    image = world / "0.png"
    base = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base", attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    answer, logits = ask_theirs(model, tmp_path / "base", image)
    ours = logits_of_run(open_run(lora), [image], QUESTION)
    print("largest difference of logits, PEFT:", np.abs(ours - logits[:, :VOCAB]).max())
    np.testing.assert_allclose(logits[:, :VOCAB], ours, atol=3e-5)
    assert answer == ask_ours(lora, image)

    arguments = ["--from", tmp_path / "base", "--adapter", tmp_path / "adapter", "--to", tmp_path / "back"]
    call(convert, "import", *arguments)
    back = logits_of_run(open_run(tmp_path / "back"), [image], QUESTION)
    np.testing.assert_allclose(back[:, :VOCAB], ours, atol=2e-5)


@pytest.mark.nightly  # tests/training/test_lora.py has the merge
def test_a_stage_after_lora_starts_from_merged_weights(world, lora, tmp_path):
    sources = {"init.model": lora, "init.vision": "", "init.language": "", "init.projector": "", "steps": 1}
    overrides = small(world, "finetune", "mix.json", **sources)
    call(train, "--config", "configs/llava15_7b_finetune.py", "--workdir", tmp_path / "on", *overrides)
    image = world / "0.png"
    before = logits_of_run(open_run(lora), [image], QUESTION)
    after = logits_of_run(open_run(tmp_path / "on"), [image], QUESTION)  # one step at rate 0
    # The merged weight rounds once where the adapter adds twice: 2.3e-5 at a logit of 3.5 on one CPU, less on others.
    np.testing.assert_allclose(after, before, atol=3e-5)


def test_sources_are_checked_before_the_data(world, tmp_path, capsys):
    """All values that differ, in one message, and nothing is left in the way."""
    shutil.copytree(world / "clip", tmp_path / "clip")
    values = json.loads((tmp_path / "clip" / "config.json").read_text())
    (tmp_path / "clip" / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3, "layer_norm_eps": 0.1}))
    overrides = small(world, "align", "captions.json", **{"init.vision": tmp_path / "clip"})
    arguments = ["--config", "configs/llava15_7b_align.py", "--workdir", str(tmp_path / "run"), *overrides]
    assert run(train.main, arguments) == 2
    error = capsys.readouterr().err
    assert "config.model.vision.num_layers is 4, there it is 3" in error and "norm_epsilon" in error
    assert not (tmp_path / "run" / "checkpoints").exists()
