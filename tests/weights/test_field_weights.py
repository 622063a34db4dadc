"""Folders of people who do this job, on which an import, an export or a comparison gave a wrong result in silence."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.image_utils import load_image

from jaxvlm import convert, generate
from jaxvlm.command import run
from jaxvlm.data.media.images import decode
from jaxvlm.families.registry import media_layout
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from tests import hf_folders
from tests.parity import tiny_llava
from tests.test_convert import call, fail, with_vocab

CONFIG = with_vocab(tiny_llava.tiny_config())
TIED = with_vocab(tiny_llava.tied_config())
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
UP = "language_model.model.layers.1.mlp.up_proj.weight"


pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


@pytest.fixture
def image(tmp_path):
    hf_folders.write_image(tmp_path / "a.png")
    return tmp_path / "a.png"


def change(folder, function):
    """Writes a folder's tensors again after `function` has changed their dict."""
    values = load_file(folder / "model.safetensors")
    function(values)
    save_file(values, folder / "model.safetensors", {"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def imported(folder, to, *arguments):
    call("import", "--from", folder, "--to", to, *arguments)
    return open_run(to)


def test_a_head_that_differs_from_a_tied_embedding_is_used(tmp_path, image):
    """transformers unties such a model, whatever config.json says."""
    hf_folders.write_llava(tmp_path / "in", TIED)
    noise = np.random.default_rng(1).standard_normal((TIED.language.vocab_size, TIED.language.embed_dim))
    change(tmp_path / "in", lambda values: values.update({HEAD: values[EMBEDDING] + noise.astype(np.float32) / 10}))
    opened = imported(tmp_path / "in", tmp_path / "run")
    assert not opened.config.model.language.tie_embeddings
    ours = logits_of_run(opened, [image], "is it red?")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    assert not json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    call("verify", tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(logits_of_folder(tmp_path / "out", [image], "is it red?"), ours, atol=1e-5)


def test_a_head_that_repeats_the_embedding_stays_tied(tmp_path):
    hf_folders.write_llava(tmp_path / "in", TIED)
    change(tmp_path / "in", lambda values: values.update(dict.fromkeys((HEAD, "lm_head.weight"), values[EMBEDDING])))
    assert imported(tmp_path / "in", tmp_path / "run").config.model.language.tie_embeddings
    call("verify", tmp_path / "in", tmp_path / "run")


def test_tokens_without_a_row_are_an_error_in_every_command(tmp_path, capsys):
    """JAX would read the last row for them."""
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    imported(tmp_path / "in", tmp_path / "run")
    words = hf_folders.tokenizer(CONFIG.language.vocab_size)
    words.add_tokens([f"<t{i}>" for i in range(80)])
    for folder in (tmp_path / "in", RunFolder(tmp_path / "run").tokenizer):
        words.save_pretrained(folder)
    error = fail(capsys, "import", "--from", tmp_path / "in", "--to", tmp_path / "other")
    rows = CONFIG.language.vocab_size
    assert f"the tokenizer has {rows + 80} tokens, the model has room for {rows}: '<t0>'" in error
    assert not (tmp_path / "other").exists()
    for command in (
        lambda: run(generate.main, ["--run", str(tmp_path / "run"), "--prompt", "what <t70>"]),
        lambda: run(convert.main, ["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]),
    ):
        assert command() == 2
        assert "have no row in the embedding" in capsys.readouterr().err


def test_buffers_that_import_ignores_are_ignored_by_verify(tmp_path):
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    buffers = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32),
        "vision_tower.embeddings.position_ids": np.arange(10),
    }
    change(tmp_path / "in", lambda values: values.update(buffers))
    imported(tmp_path / "in", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    call("verify", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("both", [False, True])
def test_nan_is_equal_to_nothing(tmp_path, capsys, both):
    for name in ("a", "b"):
        hf_folders.write_llava(tmp_path / name, CONFIG)
    for name in ("a", "b") if both else ("b",):
        change(tmp_path / name, lambda values: values[UP].__setitem__((0, 1), np.nan))
    error = fail(capsys, "verify", tmp_path / "a", tmp_path / "b")
    assert (
        f"{UP} has NaN: " in error
        and f"1 in {tmp_path / 'b'}" in error
        and (f"1 in {tmp_path / 'a'} and" in error) == both
    )
    assert "1 tensors differ, by up to inf" in error


def test_infinities_of_one_sign_are_equal(tmp_path, capsys):
    for name in ("a", "b", "c"):
        hf_folders.write_llava(tmp_path / name, CONFIG)
        sign = -1 if name == "c" else 1
        change(tmp_path / name, lambda values, sign=sign: values[UP].__setitem__((0, 1), sign * np.inf))
    call("verify", tmp_path / "a", tmp_path / "b")
    assert "1 tensors differ, by up to inf" in fail(capsys, "verify", tmp_path / "a", tmp_path / "c")


def test_an_export_says_that_transparent_files_are_read_otherwise_there(tmp_path, capsys):
    """An opened image gives equal pixels; a path does not, and no file of the folder can change that."""
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    opened = imported(tmp_path / "in", tmp_path / "run")
    written = call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", capsys=capsys)
    assert "transformers drops the transparency of a file" in written.out + written.err
    rgba = np.random.default_rng(0).integers(0, 256, (42, 42, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(np.arange(42 * 42, dtype=np.uint16).reshape(42, 42) * 37).save(tmp_path / "deep.png")
    layout = media_layout(opened.config.model, opened.stage.data)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    for name in ("rgba", "deep"):
        ours = layout.load(str(tmp_path / f"{name}.png"), name, exact=True)
        rgb = decode(str(tmp_path / f"{name}.png"), name)
        theirs = processor(rgb, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        mean, std = (np.array(getattr(processor, f"image_{x}"), np.float32) for x in ("mean", "std"))
        np.testing.assert_allclose((ours / np.float32(255) - mean) / std, theirs, atol=1e-5)
        by_path = np.asarray(load_image(str(tmp_path / f"{name}.png")))
        assert (by_path != np.asarray(rgb)).any()


def test_an_encoder_wider_than_a_float16_decoder_keeps_its_values(tmp_path, capsys):
    hf_folders.write_vision(tmp_path / "vision", CONFIG)
    hf_folders.write_language(tmp_path / "language", CONFIG)
    norm = "encoder.layers.1.layer_norm1.weight"
    change(tmp_path / "vision", lambda values: values.update({norm: values[norm] * 1e6}))
    change(tmp_path / "language", lambda values: values.update({k: x.astype(np.float16) for k, x in values.items()}))
    call("import", "--from", tmp_path / "vision", "--from", tmp_path / "language", "--to", tmp_path / "run")
    assert "opened in float32: vision/blocks/attention_norm/scale have values beyond" in capsys.readouterr().err
    scale = open_run(tmp_path / "run").params["vision"]["blocks"]["attention_norm"]["scale"]
    assert scale.dtype == np.float32 and 1e5 < np.abs(np.asarray(scale)).max() < 1e7


def test_values_beyond_float16_are_named(tmp_path, capsys):
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    change(tmp_path / "in", lambda values: [values[name].__setitem__((0, 1), 1e6) for name in (UP, HEAD)])
    imported(tmp_path / "in", tmp_path / "run")
    error = fail(capsys, "export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--dtype", "float16")
    assert "2 tensors have values beyond float16, which ends at 65504" in error
    assert f"{UP} (up to 1e+06)" in error and HEAD in error and "take bfloat16 or float32" in error
    assert not (tmp_path / "out").exists()
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--dtype", "bfloat16")


def test_logits_that_differ_are_an_error(tmp_path, capsys, image):
    """The tensors are the same; another feature layer and another base of the rotary positions make another model."""
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    imported(tmp_path / "in", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    question = ("--logits", "--image", image, "--prompt", "is it red?")
    call("verify", tmp_path / "out", tmp_path / "run", *question)
    change_json(tmp_path / "out/config.json", vision_feature_layer=-1)
    error = fail(capsys, "verify", tmp_path / "out", tmp_path / "run", *question)
    assert "logits differ by up to" in error and "tensors differ" not in error


@pytest.mark.parametrize("images", [0, 1, 2])
def test_logits_through_a_template_of_parts(tmp_path, capsys, image, images):
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    imported(tmp_path / "in", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "hub")
    (tmp_path / "hub/chat_template.jinja").write_text(hf_folders.PARTS_TEMPLATE)
    imported(tmp_path / "hub", tmp_path / "again", "--template", "tokenizer")
    question = ("--logits", *["--image", image] * images, "--prompt", "what color is it?")
    written = call("verify", tmp_path / "hub", tmp_path / "again", *question, capsys=capsys)
    assert "logits of" in written.out


def test_a_template_that_drops_the_question_is_one_message(tmp_path, capsys):
    hf_folders.write_llava(tmp_path / "in", CONFIG)
    imported(tmp_path / "in", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    (tmp_path / "out/chat_template.jinja").write_text("{{ 'USER: ASSISTANT:' }}")
    error = fail(capsys, "verify", tmp_path / "out", tmp_path / "run", "--logits")
    assert "does not write a question with 0 images" in error
