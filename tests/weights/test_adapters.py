"""PEFT's folders: what we write gives the same logits in PEFT, and what PEFT writes the same in ours."""

import copy
import dataclasses
import functools
import json
import pickle
import re
import warnings

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from jaxvlm.config import LoraConfig
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.weights import adapter_names
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.adapters import reading, writing
from tests.parity import pairs, tiny_llava

pytestmark = pytest.mark.torch

CONFIGS = {
    "clip_llama": (tiny_llava.tiny_config(), "llama"),
    "siglip_qwen2": (tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True, tie_embeddings=True), "qwen2"),
}
CONFIG = CONFIGS["clip_llama"][0]
LANGUAGE, BOTH = {"language": LoraConfig(5, 8)}, {"vision": LoraConfig(4, 6.5), "language": LoraConfig(5, 8.0)}
CASES = {  # name of the config, adapters, whether with a projector
    "language": ("clip_llama", LANGUAGE, False),
    "language_and_projector": ("clip_llama", LANGUAGE, True),
    "both": ("clip_llama", BOTH, True),
    "vision": ("clip_llama", {"vision": LoraConfig(3, 7)}, False),
    "rslora": ("clip_llama", {k: dataclasses.replace(x, rslora=True) for k, x in BOTH.items()}, False),
    "some_targets": (
        "clip_llama",
        {
            "language": LoraConfig(5, 8, 0.25, "blocks/(attention/(q|out)|mlp/down)"),
            "vision": LoraConfig(5, 8, 0.25, "blocks/attention/k"),
        },
        False,
    ),
    "siglip_qwen2": ("siglip_qwen2", BOTH, True),
}


def abstract(config, adapters):
    return build_model(config, adapters).abstract


def read_adapter(folder, config):
    made = reading.read_adapter(folder, config, adapter_names(config), functools.partial(abstract, config))
    assert not made.added
    return made.params, made.adapters


def write_adapter(folder, params, config, adapters, **options):
    names = adapter_names(config)
    return writing.write_adapter(folder, params, abstract(config, adapters), names, adapters, **options)


@functools.cache
def cached_pair(name):
    config, decoder = CONFIGS[name]
    return pairs.make_pair(config, decoder=decoder)


def with_adapters(params, config, adapters, seed=0):
    """The weights with random adapters and another projector, so that it shows if one is left out."""
    random = np.random.default_rng(seed)
    flat = paths(params)
    for path, leaf in paths(build_model(config, adapters).abstract).items():
        if "/lora/" in path or path.startswith("projector/"):
            flat[path] = (random.standard_normal(leaf.shape) / 8).astype(np.float32)
    return from_paths(flat)


def chosen(params, projector):
    return {p: x for p, x in paths(params).items() if "/lora/" in p or (projector and p.startswith("projector/"))}


def our_logits(config, adapters, params):
    def run(params, batch):
        vlm = build_model(config, adapters).bind(params)
        return vlm.logits(vlm.hidden(batch))

    sample = tiny_llava.make_sample(config, 1, images=1, text=8)
    batch = tiny_llava.make_batch(config, [[sample]], tokens=len(sample.tokens), images=1)
    return np.asarray(jax.jit(run)(params, batch))[0]


def their_logits(hf, config):
    batch = pairs.hf_batch(config, [tiny_llava.make_sample(config, 1, images=1, text=8)])
    del batch["labels"]
    with torch.no_grad():
        return hf(**batch).logits[0].numpy()


def load_in_peft(hf, folder):
    """PEFT's model; any warning of its own, such as of keys that it misses, is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(copy.deepcopy(hf), folder).eval()


def saved(folder):
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, rename=lambda name: name, **changes):
    """Renames the tensors (None drops one) and adds some."""
    tensors = {new: x for name, x in saved(folder).items() if (new := rename(name)) is not None} | changes
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def written(tmp_path):
    """A folder with adapters of the decoder and the projector, and the weights in it."""
    params = with_adapters(cached_pair("clip_llama").params, CONFIG, LANGUAGE)
    write_adapter(tmp_path, params, CONFIG, LANGUAGE, base_model="", projector=True)
    return tmp_path, chosen(params, True)


def assert_reads_as(folder, config, want, adapters=None):
    params, found = read_adapter(folder, config)
    flat = paths(params)
    assert flat.keys() == want.keys()
    for path, leaf in flat.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    model = paths(build_model(config, found).abstract)
    assert {path for path in model if "/lora/" in path} == {path for path in flat if "/lora/" in path}
    if adapters is not None:
        assert {part: dataclasses.replace(x, targets="") for part, x in found.items()} == {
            part: dataclasses.replace(x, targets="") for part, x in adapters.items()
        }
    return found


@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_same_logits(case, tmp_path):
    name, adapters, projector = CASES[case]
    pair, config = cached_pair(name), CONFIGS[name][0]
    made = with_adapters(pair.params, config, adapters)
    assert not write_adapter(tmp_path, made, config, adapters, base_model="", projector=projector)
    model = load_in_peft(pair.hf, tmp_path)

    # PEFT would write what we wrote: no key is missing, and none is too much.
    theirs = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = saved(tmp_path)
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy(), err_msg=key)

    here = made if projector else made | {"projector": pair.params["projector"]}
    have, want = our_logits(config, adapters, here), their_logits(model, config)
    print(f"{case}: {np.abs(have - want).max():.1e} of {np.abs(want).max():.1f}")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)
    assert np.abs(want - their_logits(pair.hf, config)).max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bit_equal(case, tmp_path):
    name, adapters, projector = CASES[case]
    config = CONFIGS[name][0]
    params = with_adapters(cached_pair(name).params, config, adapters)
    write_adapter(tmp_path, params, config, adapters, base_model="owner/llava", projector=projector)
    found = assert_reads_as(tmp_path, config, chosen(params, projector), adapters)
    assert {part: x.targets for part, x in found.items()} == {part: x.targets for part, x in adapters.items()}

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = jax.tree.map(jax.numpy.asarray, params)
    write_adapter(tmp_path, again, config, found, base_model="owner/llava", projector=projector)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_config_says_what_peft_needs(tmp_path):
    params = with_adapters(cached_pair("clip_llama").params, CONFIG, BOTH)
    write_adapter(tmp_path, params, CONFIG, BOTH, base_model="owner/llava", projector=True)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    vision = r"model\.vision_tower\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    language = (
        r"model\.language_model\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
    assert values["target_modules"] == f"({vision}|{language})"
    assert (values["r"], values["lora_alpha"]) == (5, 8) and isinstance(values["lora_alpha"], int)
    assert values["rank_pattern"] == {r"vision_tower\..*": 4} and values["alpha_pattern"] == {r"vision_tower\..*": 6.5}
    assert values["modules_to_save"] == ["multi_modal_projector"]
    assert values["base_model_name_or_path"] == "owner/llava"
    tensors = saved(tmp_path)
    assert tensors["base_model.model.model.language_model.layers.2.self_attn.o_proj.lora_A.weight"].shape == (5, 60)
    assert tensors["base_model.model.model.language_model.layers.2.self_attn.k_proj.lora_B.weight"].shape == (20, 5)
    assert "base_model.model.model.multi_modal_projector.linear_2.bias" in tensors
    fields = peft.LoraConfig.from_pretrained(tmp_path)
    assert values.keys() <= fields.to_dict().keys()


def test_dropouts_that_differ_are_told(tmp_path):
    adapters = {part: dataclasses.replace(x, dropout=x.rank / 100) for part, x in BOTH.items()}
    params = with_adapters(cached_pair("clip_llama").params, CONFIG, adapters)
    notes = write_adapter(tmp_path, params, CONFIG, adapters, base_model="", projector=False)
    assert notes == ["PEFT has one dropout for all parts: 0.05 of language, not 0.04 of vision"]
    assert read_adapter(tmp_path, CONFIG)[1]["vision"].dropout == 0.05


def randomised(model, seed=0):
    """PEFT's model with random values in all that it trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
    return model.eval()


THEIRS = {  # PEFT's config, and which adapters of ours these are
    "suffixes_hit_both": (
        {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
        {part: LoraConfig(3, 7, 0.0, "blocks/attention/(q|v)") for part in ("vision", "language")},
    ),
    "ranks_differ": (
        {
            "r": 3,
            "lora_alpha": 7,
            "target_modules": ["q_proj", "fc1", "down_proj"],
            "rank_pattern": {"language_model.*": 4},
            "alpha_pattern": {"(self_attn.q_proj|mlp.fc1|mlp.down_proj)": 9},
            "use_rslora": True,
            "lora_dropout": 0.125,
            "init_lora_weights": "gaussian",
        },
        {
            "vision": LoraConfig(3, 9, 0.125, "blocks/(attention/q|mlp/up)", rslora=True),
            "language": LoraConfig(4, 9, 0.125, "blocks/(attention/q|mlp/down)", rslora=True),
        },
    ),
    "projector_and_layers": (
        {
            "r": 3,
            "target_modules": ["o_proj"],
            "layers_to_transform": [0, 1, 2],
            "modules_to_save": ["multi_modal_projector"],
        },
        {"language": LoraConfig(3, 8, 0.0, "blocks/attention/out")},
    ),
    "regex": (
        {"r": 3, "target_modules": r".*language_model\.layers\.\d+\.(self_attn|mlp)\..*_proj"},
        {"language": LoraConfig(3, 8)},
    ),
}


@pytest.mark.parametrize("case", THEIRS)
def test_adapters_of_peft_give_the_same_logits(case, tmp_path):
    fields, adapters = THEIRS[case]
    pair = cached_pair("clip_llama")
    model = randomised(peft.get_peft_model(copy.deepcopy(pair.hf), peft.LoraConfig(task_type="CAUSAL_LM", **fields)))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    params, found = read_adapter(tmp_path, CONFIG)
    assert found == adapters
    whole = from_paths(paths(pair.params) | paths(params))
    have, want = our_logits(CONFIG, found, whole), their_logits(model, CONFIG)
    print(f"{case}: {np.abs(have - want).max():.1e} of {np.abs(want).max():.1f}")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)
    assert np.abs(want - their_logits(pair.hf, CONFIG)).max() > 0.1


def test_an_adapter_of_a_decoder_alone(tmp_path):
    pair = cached_pair("clip_llama")
    decoder = transformers.AutoModelForCausalLM.from_config(pair.hf.config.text_config).eval()
    decoder.model.load_state_dict(pair.hf.model.language_model.state_dict())
    decoder.lm_head.load_state_dict(pair.hf.lm_head.state_dict())
    fields = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["k_proj", "gate_proj"], task_type="CAUSAL_LM")
    model = randomised(peft.get_peft_model(decoder, fields))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    params, found = read_adapter(tmp_path, CONFIG)
    assert found == {"language": LoraConfig(3, 7, 0.0, "blocks/(attention/k|mlp/gate)")}

    sample = tiny_llava.make_sample(CONFIG, 1, images=0, text=9)
    with torch.no_grad():
        want = model(torch.from_numpy(sample.tokens[None].astype(np.int64))).logits[0].numpy()
    whole = from_paths(paths(pair.params) | paths(params))
    vlm = build_model(CONFIG, found).bind(whole)
    have = vlm.logits(vlm.hidden(tiny_llava.make_batch(CONFIG, [[sample]], tokens=9, images=0)))[0]
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("vision", "projector", "language"),
    [
        ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."),
        ("model.vision_tower.vision_model.", "model.multi_modal_projector.", "model.language_model."),
    ],
    ids=["before_4_52", "before_5"],
)
def test_older_spellings(vision, projector, language, tmp_path):
    params = with_adapters(cached_pair("clip_llama").params, CONFIG, BOTH)
    write_adapter(tmp_path, params, CONFIG, BOTH, base_model="", projector=True)
    pairs_of_names = {
        "base_model.model.model.vision_tower.": vision,
        "base_model.model.model.multi_modal_projector.": projector,
        "base_model.model.model.language_model.": language,
    }

    def rename(name):
        old = next(old for old in pairs_of_names if name.startswith(old))
        return name.replace(old, f"base_model.model.{pairs_of_names[old]}")

    change_tensors(tmp_path, rename)
    assert_reads_as(tmp_path, CONFIG, chosen(params, True), BOTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_original_llava(dtype, written):
    folder, want = written
    adapters, projector = {}, {}
    for name, tensor in saved(folder).items():
        if "projector" in name:
            i, kind = re.search(r"linear_(\d)\.(\w+)", name).groups()
            name, into = f"base_model.model.model.mm_projector.{2 * (int(i) - 1)}.{kind}", projector
        else:
            name, into = name.replace("model.language_model.", "model."), adapters
        into[name] = torch.from_numpy(tensor).to(dtype)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in adapters
    (folder / "adapter_model.safetensors").unlink()
    torch.save(adapters, folder / "adapter_model.bin")
    torch.save(projector, folder / "non_lora_trainables.bin")
    change_config(folder, modules_to_save=None, target_modules=["q_proj", "up_proj"])
    want = {path: torch.from_numpy(x).to(dtype).float().numpy() for path, x in want.items()}
    assert_reads_as(folder, CONFIG, want, LANGUAGE)


def test_half_precision_becomes_float32(written):
    folder, want = written
    halves = {name: x.astype(jax.numpy.bfloat16) for name, x in saved(folder).items()}
    safetensors.numpy.save_file(halves, folder / "adapter_model.safetensors")
    assert_reads_as(folder, CONFIG, {p: x.astype(jax.numpy.bfloat16).astype(np.float32) for p, x in want.items()})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peft_type", "ADALORA", 'peft_type = "ADALORA", expected "LORA"'),
        ("bias", "all", 'bias = "all", expected "none"'),
        ("use_dora", True, "use_dora = true is not supported"),
        ("lora_bias", True, "lora_bias = true is not supported"),
        ("fan_in_fan_out", True, "fan_in_fan_out = true, expected false"),
        ("init_lora_weights", "pissa_niter_4", 'init_lora_weights = "pissa_niter_4", expected a start that leaves'),
        ("layer_replication", [[0, 2]], "layer_replication = [[0, 2]] is not supported"),
        ("target_parameters", ["weight"], 'target_parameters = ["weight"] is not supported'),
        ("trainable_token_indices", [5], "trainable_token_indices = [5] is not supported"),
        ("of_the_future", {"a": 1}, 'of_the_future = {"a": 1} is not supported'),
        ("r", 0, "r = 0, expected 1 or more"),
        ("lora_alpha", "8", 'lora_alpha = "8", expected a number'),
        ("lora_dropout", 1.0, "lora_dropout = 1.0, expected 0 <= lora_dropout < 1"),
        ("use_rslora", "yes", 'use_rslora = "yes", expected true or false'),
        ("rank_pattern", {"q_proj": "4"}, 'rank_pattern = {"q_proj": "4"}, expected regexes and ranks'),
        ("alpha_pattern", {"(": 4}, 'alpha_pattern = {"(": 4}, expected regexes and numbers'),
        ("modules_to_save", ["lm_head"], "modules_to_save has 'lm_head', which has no tensor"),
        ("modules_to_save", "lm_head", 'modules_to_save = "lm_head", expected null or a list of names'),
    ],
)
def test_fields_that_ours_has_not(field, value, message, written):
    folder, _ = written
    change_config(folder, **{field: value})
    with pytest.raises(UserError, match=re.escape(message)):
        read_adapter(folder, CONFIG)


def test_empty_fields_and_those_of_the_training_are_no_matter(written):
    folder, want = written
    change_config(
        folder,
        use_dora=False,
        corda_config=None,
        layer_replication=None,
        megatron_core="megatron.core",
        loftq_config={},
    )
    change_config(folder, rank_pattern=None, peft_version="0.21.0", exclude_modules=["lm_head"], of_the_future=False)
    assert_reads_as(folder, CONFIG, want, LANGUAGE)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "rank_pattern",
            "differ inside language, ours have one of each: r=4, alpha=8 for model.language_model.layers.0",
        ),
        ("alpha_pattern", "r=5, alpha=4 for model.language_model.layers.0.self_attn.q_proj"),
    ],
)
def test_ranks_that_differ_inside_a_part(field, message, written):
    folder, _ = written
    change_config(folder, **{field: {"q_proj": 4}})
    with pytest.raises(UserError, match=re.escape(message)):
        read_adapter(folder, CONFIG)


def test_all_problems_come_in_one_message(written):
    folder, _ = written
    block = "base_model.model.model.language_model.layers"
    ones = np.ones((5, 48), np.float32)
    change_tensors(
        folder,
        lambda name: None if f"{block}.1.self_attn.q_proj" in name or f"{block}.2.mlp.up_proj.lora_A" in name else name,
        **{
            f"{block}.3.self_attn.q_proj.lora_A.weight": ones,
            "base_model.model.model.vision_tower.embeddings.patch_embedding.lora_A.weight": ones,
            "base_model.model.model.language_model.scale.weight": ones,
            "base_model.model.model.vision_tower.head.mlp.fc1.lora_B.weight": ones,
            f"{block}.0.self_attn.q_proj.lora_magnitude_vector": ones,
        },
    )
    change_config(folder, rank_pattern={"o_proj": 3}, modules_to_save=["multi_modal_projector", "embed_tokens"])
    with pytest.raises(UserError) as error:
        read_adapter(folder, CONFIG)
    for part in (
        "cannot be used, 8 problems",
        "r=3, alpha=8 for model.language_model.layers.0.self_attn.o_proj",
        "modules_to_save has 'embed_tokens'",
        "language/blocks/attention/q: of 3 layers, 1 have no adapter",
        "model.language_model.layers.3.self_attn.q_proj: the model has 3 layers",
        "model.vision_tower.embeddings.patch_embedding has an adapter; ours are on linear layers of the model",
        "model.vision_tower.head.mlp.fc1 has an adapter; ours are on linear layers of the model",
        "model.language_model.scale.weight is no weight of adapters, projector, encoder, embedding or head",
        "layers.0.self_attn.q_proj.lora_magnitude_vector is no weight",
        "merge_and_unload",
    ):
        assert part in str(error.value), str(error.value)
    change_config(folder, use_dora=True, bias="all")
    with pytest.raises(
        UserError, match="8 problems: bias = .*; use_dora = true .*; model.vision_tower.*patch_embedding has an"
    ):
        read_adapter(folder, CONFIG)


def test_tensors_that_do_not_fit(written):
    folder, _ = written
    block = "base_model.model.model.language_model.layers.2.mlp.up_proj"
    change_tensors(
        folder,
        lambda name: None if name == f"{block}.lora_A.weight" or name.endswith("linear_1.bias") else name,
        **{f"{block}.lora_B.weight": np.ones((57, 5), np.float32)},
    )
    with pytest.raises(UserError, match="is of another model: weights do not fit, 3 problems") as error:
        read_adapter(folder, CONFIG)
    assert "up_proj.lora_A.weight is missing" in str(error.value)
    assert "up_proj.lora_B.weight is (57, 5), expected (56, 5)" in str(error.value)
    assert "linear_1.bias is missing" in str(error.value)
    change_config(folder, r=4)
    with pytest.raises(UserError, match=re.escape("is (5, 48), expected (4, 48)")):
        read_adapter(folder, CONFIG)


def test_two_spellings_of_one_adapter(written):
    folder, _ = written
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    change_tensors(folder, **{name.replace("language_model.", ""): saved(folder)[name]})
    with pytest.raises(UserError, match="tensors with the same meaning"):
        read_adapter(folder, CONFIG)


def test_files_that_are_no_adapter(written):
    folder, _ = written
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    torch.save({"a": torch.ones(2)}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="1 problems: a is no weight of adapters, projector"):
        read_adapter(folder, CONFIG)
    torch.save({name: torch.from_numpy(x) for name, x in saved(folder).items()}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="are in both .*adapter_model.safetensors and .*non_lora_trainables.bin"):
        read_adapter(folder, CONFIG)
    (folder / "non_lora_trainables.bin").unlink()
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="adapter_model.safetensors .* is truncated or corrupt"):
        read_adapter(folder, CONFIG)
    weights.unlink()
    with pytest.raises(
        UserError, match="has no weights of adapters; looked for adapter_model.safetensors, adapter_mod"
    ):
        read_adapter(folder, CONFIG)
    for content in (pickle.dumps(print, 2), b"", b"version https"):
        (folder / "adapter_model.bin").write_bytes(content)
        with pytest.raises(UserError, match="adapter_model.bin is refused"):
            read_adapter(folder, CONFIG)
    torch.save([torch.ones(2)], folder / "adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.bin is refused"):
        read_adapter(folder, CONFIG)
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="no tensor is of an adapter"):
        read_adapter(folder, CONFIG)
    config.write_text("[]")
    with pytest.raises(UserError, match="holds a list, expected a JSON object; give the folder"):
        read_adapter(folder, CONFIG)
    config.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_adapter(folder, CONFIG)
    config.unlink()
    with pytest.raises(UserError, match="adapter_config.json does not exist; give the folder"):
        read_adapter(folder, CONFIG)


def test_adapters_that_cannot_be_written(tmp_path):
    adapters = {"vision": LoraConfig(4, 8, targets="patch|blocks/mlp/up"), "language": LoraConfig(5, 8, rslora=True)}
    params = paths(with_adapters(cached_pair("clip_llama").params, CONFIG, adapters))
    del params["vision/blocks/mlp/up/lora/a"]
    params["language/blocks/attention/q/lora/b"] = np.ones((3, 4, 6, 10))
    params["projector/fc1/lora/a"] = np.ones((3, 4))
    with pytest.raises(UserError, match="adapters cannot be written, 5 problems") as error:
        write_adapter(tmp_path, from_paths(params), CONFIG, adapters, base_model="", projector=False)
    for part in (
        "vision/patch is not a projection of a block",
        "vision/blocks/mlp/up/lora/a (4, 40, 4) is missing",
        "language/blocks/attention/q/lora/b is (3, 4, 6, 10), expected (3, 5, 6, 10)",
        "projector/fc1/lora/a has no adapter in the config",
        "one rslora for all parts, not vision: rslora=False, language: rslora=True",
    ):
        assert part in str(error.value), str(error.value)
    with pytest.raises(UserError, match="there are no adapters"):
        write_adapter(tmp_path, {}, CONFIG, {}, base_model="", projector=False)
    assert not list(tmp_path.iterdir())
