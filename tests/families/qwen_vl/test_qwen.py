"""A tiny Qwen-VL of each kind from a folder to a folder: trained packed, resumed, asked, exported, loaded in torch."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

from jaxvlm import convert, generate, inspect_data, train
from jaxvlm.data.records import Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.processor import VIDEO_TOKEN
from jaxvlm.families.qwen_vl.reference import ReferenceProcessor
from jaxvlm.families.qwen_vl.weights import KNOWN
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.prompts import build_prompts
from jaxvlm.restore import open_run
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.spelling import find_spelling, respelled
from tests.families.qwen_vl import folders, pairs
from tests.metrics import losses
from tests.videos import video

RECIPE = __file__.replace("test_qwen.py", "recipe.py")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


def talk(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def write_data(folder):
    """Records of one image, of two of different sizes with text between them, of text alone, and of a video."""
    names, records = folders.write_images(folder), []
    questions = ["how many?", "<image>what is it?", "<image> and <image>?", "look: <video>what is it?"]
    for number in range(32):
        question = questions[number % len(questions)]
        images = [names[(number + k) % len(names)] for k in range(question.count("<image>"))]
        messages = talk(question, ("one", "two")[number % 2], "and now?", ("red", "blue")[number % 2])
        record = {"id": str(number), "messages": messages} | ({"images": images} if images else {})
        records.append(record | ({"videos": [[names[0]] * 5], "fps": 2.0} if "<video>" in question else {}))
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# The gate runs the kind with DeepStack; the kinds differ in what test_parity.py and test_hf_config.py hold for all.
NIGHTLY = [pytest.param(kind, marks=pytest.mark.nightly) for kind in ("qwen2_vl", "qwen2_5_vl")]


@pytest.fixture(scope="module", params=("qwen3_vl", *NIGHTLY))
def made(request, tmp_path_factory):
    """(kind, folder of the base model, data, run)."""
    folder = tmp_path_factory.mktemp(request.param)
    folders.write_folder(folder / "base", request.param)
    data = write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVLM_TEST_FOLDER", str(folder / "base"))
        patch.setenv("JAXVLM_TEST_DATA", str(data))
        patch.setattr("jaxvlm.sharding.available_devices", lambda: __import__("jax").devices()[:1])
        train.main(["--config", RECIPE, "--workdir", str(folder / "run")])
        yield request.param, folder / "base", data, folder / "run"


def test_it_learns_and_resumes_bit_equal(made, tmp_path):
    *_, run = made
    first = losses(run)
    assert sorted(first) == [1, 2, 3, 4] and first[4][0] < first[1][0]
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/sft/4")
    (again / "ledger.json").unlink()
    train.main(["--config", RECIPE, "--workdir", str(again), "--resume"])
    assert losses(again) == first


def test_its_export_answers_as_the_run_does(made, tmp_path, capsys):
    kind, base, data, run = made
    exported = tmp_path / "exported"
    convert.main(["export", "--run", str(run), "--out", str(exported)])
    images = [str(data.parent / "0.png"), str(data.parent / "1.png")]
    flags = [argument for image in images for argument in ("--image", image)]
    result = convert.main(["verify", str(run), str(exported), "--logits", "--prompt", "how many?", *flags])
    assert result["differing"] == 0
    capsys.readouterr()
    answer = generate.main(["--run", str(run), "--prompt", "how many?", "--max-new-tokens", "6", *flags])["answer"]
    processor = ReferenceProcessor.from_pretrained(exported)
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported).eval()
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "how many?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor.inputs(text, images)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer
    if kind != "qwen3_vl":  # test_timed_videos.py has its ids and logits
        check_video(run, model, processor)
    values = json.loads((exported / "preprocessor_config.json").read_text())
    assert values["size"] == {"shortest_edge": 128, "longest_edge": 2560} and values["max_pixels"] == 2560
    written, given = (json.loads((path / "video_preprocessor_config.json").read_text()) for path in (exported, base))
    del given["image_processor_type"]
    assert {name: written[name] for name in given} == given


def check_video(run, model, processor):
    """Logits and answer of a question about a video of 14 seconds, the time of which exceeds its rows and columns."""
    one = pairs.make_medium(np.random.default_rng(0), 33, 21, frames=14)
    engine, record = Engine.of(open_run(run)), Record("0", (Turn("user", "<video>how many?"),), (one,), "test")
    (prompt,) = build_prompts(engine.renderer, [record], engine.layout, 160)
    content = [{"type": "video"}, {"type": "text", "text": "how many?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    text = text.replace(VIDEO_TOKEN, VIDEO_TOKEN * prompt.media.positions)
    inputs = pairs.video_inputs(engine.model.config, engine.data.media.video, [one])
    inputs |= {"input_ids": processor.tokenizer(text, return_tensors="pt")["input_ids"]}
    logits, answer = answer_at(model, inputs, prompt.piece.positions, 6)
    np.testing.assert_allclose(engine.logits(record), logits, rtol=0, atol=1e-4)
    (found,) = engine.answer([record], max_new_tokens=6, batch_size=1)
    assert found == processor.tokenizer.decode(answer).split("<|im_end|>")[0].strip()


def answer_at(model, inputs, positions, count):
    """Logits after each token of the prompt, and the greedy answer, of transformers' model with the positions given.

    Its `generate` would continue a video at other positions than those of the training.
    """
    ids, at, logits = inputs["input_ids"], pairs.position_ids(positions), []
    for _ in range(count):
        with torch.no_grad():
            logits.append(model(**inputs | {"input_ids": ids}, position_ids=at).logits)
        ids = torch.cat([ids, logits[-1][:, -1:].argmax(-1)], 1)
        at = torch.cat([at, at.max().expand(3, 1, 1) + 1], 2)
    return logits[0][0].numpy(), ids[0, -count:]


def test_a_folder_comes_back_as_it_was(made, tmp_path):
    _, base, _, _ = made
    convert.main(["import", "--from", str(base), "--to", str(tmp_path / "run")])
    convert.main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert convert.main(["verify", str(base), str(tmp_path / "out")])["differing"] == 0
    (tmp_path / "a.mp4").write_bytes(video(count=8, fps=4))
    ask = ["--prompt", "how many?", "--video", str(tmp_path / "a.mp4"), "--max-new-tokens", "4"]
    answers = [generate.main([*of, *ask]) for of in (["--from", str(base)], ["--run", str(tmp_path / "run")])]
    assert answers[0] == answers[1] and answers[0].keys() == {"answer"}


def test_its_rows_are_checked_and_shown(made, tmp_path, capsys):
    inspect_data.main(["check", "--config", RECIPE, "--out", str(tmp_path / "out")])
    assert "patches" in capsys.readouterr().out
    shown = inspect_data.main(["show", "--config", RECIPE, "--out", str(tmp_path), "--rows", "3"])
    page = (tmp_path / "rows.html").read_text()
    assert shown["rows"] == 3 and "Not as a row should be" not in page and "32 × 24 pixels" not in page[:0]


def test_boxes_are_rewritten_counted_and_drawn(made, tmp_path, capsys):
    """0.png has 33 x 21 pixels (height first); 2.5 writes pixels of the resized image, the others thousandths."""
    kind, _, data, _ = made
    records = [
        {"id": str(n), "image": "0.png", "messages": talk("<image>where?", f'{{"bbox_2d": [0, 11, {21 + n}, 33]}}')}
        for n in (0, 0, 5)
    ]
    source = data.parent / "boxes.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = [f"--config.stage.sft.data.source={source}", "--config.stage.sft.data.boxes=pixels"]
    flags += ["--config.stage.sft.data.heldout=0", "--out", str(tmp_path)]
    inspect_data.main(["check", "--config", RECIPE, *flags])
    found = json.loads((tmp_path / "report.json").read_text())["boxes"]
    assert found == {"count": 3, "outside": [f"{source}:3"]}
    assert "3 boxes and points are rewritten for the model" in capsys.readouterr().out
    inspect_data.main(["show", "--config", RECIPE, *flags])
    page = (tmp_path / "rows.html").read_text()
    assert ("[0, 11, 24, 32]" if kind == "qwen2_5_vl" else "[0, 333, 1000, 1000]") in page
    with pytest.raises(UserError, match="would move images away from the boxes"):
        inspect_data.main(["check", "--config", RECIPE, *flags, "--config.stage.sft.data.augment.flip=True"])


def test_adapters_of_peft_come_in_and_go_out(made, tmp_path):
    _, base, _, _ = made
    fields = {"r": 3, "target_modules": ["q_proj", "down_proj", "qkv"]}
    model = peft.get_peft_model(load(base), peft.LoraConfig(**fields))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) / 10
    model.save_pretrained(tmp_path / "theirs")
    run, out = tmp_path / "run", tmp_path / "adapter"
    convert.main(["import", "--from", str(base), "--adapter", str(tmp_path / "theirs"), "--to", str(run)])
    convert.main(["export", "--run", str(run), "--out", str(out), "--adapter", "--base", str(base)])
    convert.main(["export", "--run", str(run), "--out", str(tmp_path / "merged"), "--merge"])
    again = peft.PeftModel.from_pretrained(load(base), str(out))
    assert_merged_are(again, tmp_path / "merged", base)
    assert_merged_are(model, tmp_path / "merged", base)


def load(base):
    return transformers.AutoModelForImageTextToText.from_pretrained(base).float()


def assert_merged_are(adapted, merged, base):
    """PEFT's merged weights are those that `export --merge` wrote."""
    folder = merged.parent / "merged_by_peft"
    adapted.merge_and_unload().save_pretrained(folder)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    theirs, ours = open_tensors(folder), open_tensors(merged)
    spelled = respelled(theirs, find_spelling(theirs, KNOWN), find_spelling(ours, KNOWN))
    assert set(spelled) - {"lm_head.weight"} == set(ours) - {"lm_head.weight"}
    for name in ours:
        np.testing.assert_allclose(spelled[name], ours[name], rtol=0, atol=1e-6)


@pytest.mark.nightly  # above without the training
def test_adapters_go_to_peft_and_back(made, tmp_path):
    _, base, data, _ = made
    lora = ["--config.stage.sft.parts.language=lora", "--config.stage.sft.parts.lora.language.rank=4"]
    lora += ["--config.stage.sft.parts.vision=lora", "--config.stage.sft.parts.lora.vision.rank=2", "--config.steps=2"]
    run, out = tmp_path / "run", tmp_path / "adapter"
    train.main(["--config", RECIPE, "--workdir", str(run), *lora, "--config.evaluation.source="])
    convert.main(["export", "--run", str(run), "--out", str(out), "--adapter", "--base", str(base)])
    convert.main(["export", "--run", str(run), "--out", str(tmp_path / "merged"), "--merge"])
    assert_merged_are(peft.PeftModel.from_pretrained(load(base), str(out)), tmp_path / "merged", base)
    convert.main(["import", "--from", str(base), "--adapter", str(out), "--to", str(tmp_path / "again")])
