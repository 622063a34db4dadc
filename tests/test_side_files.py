"""The files beside a folder's weights: taken over by `convert import`, used, and written by `convert export`."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jaxvlm import convert, generate
from jaxvlm.command import run
from jaxvlm.data.records import Record, Turn
from jaxvlm.families.llava.config import LlavaMedia
from jaxvlm.inference.conversation import Conversation
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.sampling import GREEDY
from jaxvlm.initial_weights import find_origins, overridden_settings
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from tests import hf_folders
from tests.parity import tiny_llava

STOP = 50
QUESTION = "what color is it?"
VOCAB = len(hf_folders.tokenizer(400))
PIXELS = {"image_mean": list(tiny_llava.MEAN), "image_std": list(tiny_llava.STD), "processor_class": "LlavaProcessor"}
SIDES = {"height": 23, "width": 23}
PROCESSORS = {
    "square": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 23}, "crop_size": SIDES},
    "squeeze": {"image_processor_type": "SiglipImageProcessor", "size": SIDES, "resample": 3},
    "pad": {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "size": {"shortest_edge": 23},
        "crop_size": SIDES,
    },
}


pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


def write_folder(folder, aspect="square", *, template=hf_folders.PARTS_TEMPLATE, generation=None):
    """A LLaVA folder of transformers with all its small files; its decoder takes 4,096 positions."""
    config = tiny_llava.siglip_config() if aspect == "squeeze" else tiny_llava.tiny_config()
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=VOCAB))
    hf_folders.write_llava(folder, config)
    change(folder / "config.json", lambda values: values["text_config"].update(max_position_embeddings=4096))
    write(folder / "preprocessor_config.json", PROCESSORS[aspect] | PIXELS)
    strategy = "full" if aspect == "squeeze" else "default"
    extra = {"num_additional_image_tokens": int(aspect != "squeeze"), "vision_feature_select_strategy": strategy}
    written = {"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 7}
    write(folder / "processor_config.json", written | extra)
    write(folder / "generation_config.json", generation or {"bos_token_id": 1, "eos_token_id": [2, STOP]})
    if template:
        write(folder / "chat_template.json", {"chat_template": template})
    return folder


def write(path, values):
    path.write_text(json.dumps(values))


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    write(path, values)


def call(*arguments, code=0):
    assert run(convert.main, list(map(str, arguments))) == code


def pictures(folder, count):
    paths = [folder / f"{number}.png" for number in range(count)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((41, 30), Image.Resampling.BICUBIC).save(path)
    return paths


def ask_transformers(folder, images, tokens=12):
    """The ids and pixels of a folder's processor, and its greedy answer."""
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    content = [*({"type": "image", "path": str(image)} for image in images), {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    answer = out[0, inputs["input_ids"].shape[1] :]
    return inputs, processor.tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    # families/llava/test_processor.py has the pixels of all
    "aspect",
    [x if x == "pad" else pytest.param(x, marks=pytest.mark.nightly) for x in PROCESSORS],
)
def test_an_imported_folder_answers_as_in_transformers_and_comes_back(tmp_path, aspect, capsys):
    folder = write_folder(tmp_path / "in", aspect)
    call("import", "--from", folder, "--to", tmp_path / "run")
    said = capsys.readouterr().err
    assert f"settings: template tokenizer, aspect {aspect}, stop tokens <0x2D>, up to 4096 tokens" in said
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "transparency" in notes[0]

    images = pictures(tmp_path, 2)
    wanted, answer = ask_transformers(folder, images)
    engine = Engine.of(open_run(tmp_path / "run"))
    assert set(engine.renderer.stop_ids) == {2, STOP}
    arguments = ["--run", tmp_path / "run", "--prompt", QUESTION, "--max-new-tokens", 12]
    arguments += [argument for image in images for argument in ("--image", image)]
    assert generate.main(list(map(str, arguments)))["answer"] == answer

    again, answer_again = ask_transformers(tmp_path / "out", images)
    assert again["input_ids"].tolist() == wanted["input_ids"].tolist() and answer_again == answer
    assert torch.allclose(again["pixel_values"], wanted["pixel_values"], atol=1e-5)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert sorted(generation.eos_token_id) == [2, STOP]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["max_position_embeddings"] == 4096


def test_a_stop_token_of_the_folder_ends_an_answer(tmp_path):
    """The first token that transformers answers with, named as a stop token, leaves nothing in either."""
    folder = write_folder(tmp_path / "in", generation={"bos_token_id": 1, "eos_token_id": 2})
    images = pictures(tmp_path, 1)
    inputs, _ = ask_transformers(folder, images, tokens=1)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    first = int(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    change(folder / "generation_config.json", lambda values: values.update(eos_token_id=[2, first]))
    call("import", "--from", folder, "--to", tmp_path / "run")
    conversation = Conversation(Engine.of(open_run(tmp_path / "run")), GREEDY, 12)
    conversation.add(list(map(str, images)))
    assert conversation.ask(QUESTION) == ""


def test_the_sampling_of_the_folder_is_used_and_given_back(tmp_path, capsys):
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    folder = write_folder(tmp_path / "in", generation={"eos_token_id": [2, STOP]} | sampling)
    call("import", "--from", folder, "--to", tmp_path / "run")
    ask = ["--run", str(tmp_path / "run"), "--prompt", QUESTION, "--image", str(pictures(tmp_path, 1)[0])]
    capsys.readouterr()
    answer = generate.main(ask)["answer"]
    assert "sampling: temperature 0.6, top-p 0.9, top-k 50" in capsys.readouterr().err
    assert generate.main([*ask, "--temperature", "0.6", "--top-p", "0.9", "--top-k", "50"])["answer"] == answer
    assert generate.main([*ask, "--temperature", "0"])["answer"] != answer
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert sampling | {"top_k": 50} == {name: written[name] for name in (*sampling, "top_k")}


def test_rows_of_an_imported_run_are_as_long_as_the_decoder_allows(tmp_path):
    folder = write_folder(tmp_path / "in")
    call("import", "--from", folder, "--to", tmp_path / "run")
    assert RunFolder(tmp_path / "run").load_config().stage["imported"].data.tokens == 4096
    conversation = Conversation(Engine.of(open_run(tmp_path / "run")), GREEDY, 1)
    conversation.add(list(map(str, pictures(tmp_path, 1))))
    conversation.ask("what " * 1400)  # some 2,800 tokens: more than the 2,048 of a recipe


def test_what_is_not_taken_over_is_said(tmp_path, capsys):
    """Another template by choice, sampling, and an image processor of another size."""
    sampling = {"eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    sampling |= {"repetition_penalty": 1.05, "stop_strings": ["END"], "num_beams": 1, "typical_p": 1.0}
    folder = write_folder(tmp_path / "in", generation=sampling)
    odd = {"size": {"shortest_edge": 30}}
    change(folder / "preprocessor_config.json", lambda values: values.update(odd))
    call("import", "--from", folder, "--to", tmp_path / "run", "--template", "vicuna_v1")
    said = capsys.readouterr().err
    assert "not used: the chat template of" in said and "vicuna_v1 replaces it" in said
    assert "temperature 0.6, top_p 0.9, top_k 50\n" in said
    assert "not used: repetition_penalty 1.05, stop_strings ['END'] of generation_config.json" in said
    assert "not used: CLIPImageProcessor with {'size': {'shortest_edge': 30}" in said
    data = RunFolder(tmp_path / "run").load_config().stage["imported"].data
    assert (data.template, data.media.aspect, data.stop_tokens) == ("vicuna_v1", "pad", ())


def test_a_stage_says_what_it_has_otherwise_than_its_start(tmp_path):
    """From the folder itself, and from a run that was imported from it; a stage with the same settings says nothing."""
    folder = write_folder(tmp_path / "in", "square")
    call("import", "--from", folder, "--to", tmp_path / "run")
    imported = RunFolder(tmp_path / "run").load_config()
    same = imported.stage["imported"].data
    other = dataclasses.replace(same, template="vicuna_v1", stop_tokens=(), media=LlavaMedia(1, "pad"))
    for start in (folder, tmp_path / "run"):
        config = dataclasses.replace(imported, init=dataclasses.replace(imported.init, model=str(start)))
        origins = find_origins(RunFolder(tmp_path / "new"), config, "imported")
        assert overridden_settings(origins, same) == []
        assert overridden_settings(origins, other) == [
            f'not used of {start}: template "tokenizer" (here: "vicuna_v1"), stop_tokens <0x2D> (here: none), '
            'aspect "square" (here: "pad")'
        ]


@pytest.mark.parametrize("template", ["", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_folder_without_a_template_that_can_be_used(tmp_path, capsys, template):
    call("import", "--from", write_folder(tmp_path / "in", template=template), "--to", tmp_path / "run")
    said = capsys.readouterr().err
    assert ("vicuna_v1 replaces it" if template else "conversations are written as vicuna_v1") in said
    assert RunFolder(tmp_path / "run").load_config().stage["imported"].data.template == "vicuna_v1"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("config.json", {"image_token_index": 7}, "has image_token_index = 7 and its tokenizer <image> = 4"),
        ("generation_config.json", {"eos_token_id": [2, 99999]}, "eos_token_id has [99999] and the tokenizer no such"),
        ("chat_template.json", {"chat_template": 5}, "chat_template = 5, expected a text"),
    ],
)
def test_side_files_that_contradict_the_tokenizer(tmp_path, capsys, name, edit, message):
    folder = write_folder(tmp_path / "in")
    change(folder / name, lambda values: values.update(edit) or values.pop("image_token_id", None))
    call("import", "--from", folder, "--to", tmp_path / "run", code=2)
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("template", "system"),
    [
        ("vicuna_v1", None),
        ("llama2", 'Say "cat".\n'),
        pytest.param("vicuna_v1", "", marks=pytest.mark.nightly),
        pytest.param("vicuna_v1", 'Say "cat".\n', marks=pytest.mark.nightly),
        pytest.param("llama2", None, marks=pytest.mark.nightly),
        pytest.param("llama2", "", marks=pytest.mark.nightly),
    ],
)
def test_an_export_of_ours_comes_back_with_its_template(tmp_path, template, system):
    """Read as a template of its own it would lose the BOS that training had."""
    folder = write_folder(tmp_path / "in", template=None)
    call("import", "--from", folder, "--to", tmp_path / "run", "--template", template)
    change(tmp_path / "run" / "config.json", lambda values: values["stage"]["imported"]["data"].update(system=system))
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    call("import", "--from", tmp_path / "out", "--to", tmp_path / "again")
    engines = [Engine.of(open_run(tmp_path / name)) for name in ("run", "again")]
    assert engines[1].data.template == template
    image = str(pictures(tmp_path, 1)[0])
    record = Record("0", (Turn("user", f"<image>\n{QUESTION}"),), (image,), "here")
    one, two = (engine.renderer.render_prompt(record).tokens for engine in engines)
    assert one.tolist() == two.tolist()
    call("verify", tmp_path / "out", tmp_path / "again", "--logits", "--image", image, "--prompt", QUESTION)


def test_logits_of_odd_images_are_compared_by_our_rule(tmp_path):
    """Transparent, of 16 bits, and turned by EXIF: both sides get the image as training reads it."""
    folder = write_folder(tmp_path / "in")
    call("import", "--from", folder, "--to", tmp_path / "run")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 31, 4), dtype=np.uint8)).save(tmp_path / "rgba.png")
    Image.fromarray(random.integers(0, 2**16, (40, 31), dtype=np.uint16)).save(tmp_path / "deep.png")
    turned = Image.fromarray(random.integers(0, 256, (40, 31, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for name in ("rgba", "deep", "turned"):
        image = tmp_path / f"{name}.png"
        call("verify", folder, tmp_path / "run", "--logits", "--image", image, "--prompt", QUESTION)
    call("verify", folder, tmp_path / "run", "--logits", "--image", tmp_path / "none.png", code=2)
