"""What PEFT's adapters can be: those of ours give the logits of PEFT, the others are refused."""

import copy
import functools
import re
import warnings

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch

from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.adapters.fields import check_base
from tests.parity import pairs, tiny_llava
from tests.weights import test_adapters as tools

pytestmark = pytest.mark.torch

CONFIGS = {
    "llama": (tiny_llava.tiny_config(), "llama"),
    "tied": (tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True, tie_embeddings=True), "qwen2"),
}


@functools.cache
def pair(name):
    config, decoder = CONFIGS[name]
    return pairs.make_pair(config, decoder=decoder)


def save(name, folder, fields, **options):
    """An adapter with random weights, as PEFT saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied weights that are adapted
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, **fields)
        model = peft.get_peft_model(copy.deepcopy(pair(name).hf), config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += torch.randn(weight.shape, generator=generator) / 8
        model.save_pretrained(folder, **{"save_embedding_layers": False} | options)


def peft_logits(name, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(pair(name).hf), folder).eval()
    return tools.their_logits(model, CONFIGS[name][0])


def read(name, folder):
    config = CONFIGS[name][0]
    names, build = tools.adapter_names(config), functools.partial(tools.abstract, config)
    return tools.reading.read_adapter(folder, config, names, build)


def assert_gives_the_same_logits(name, folder):
    adapter, config = read(name, folder), CONFIGS[name][0]
    flat = paths(pair(name).params) | paths(adapter.params)
    flat |= {path: flat[path] + x for path, x in adapter.added.items()}
    have, want = tools.our_logits(config, adapter.adapters, from_paths(flat)), peft_logits(name, folder)
    print(f"{np.abs(have - want).max():.1e} of {np.abs(want).max():.1f}")
    np.testing.assert_allclose(have, want, rtol=0, atol=5e-5)
    assert np.abs(want - tools.their_logits(pair(name).hf, config)).max() > 0.1
    return adapter


Q = {"target_modules": ["q_proj"]}
READ = {
    "all linear layers, SigLIP's pooling too": ("tied", {"target_modules": "all-linear"}),
    "all linear layers, the projector as a whole": (
        "llama",
        {"target_modules": "all-linear", "modules_to_save": ["multi_modal_projector"]},
    ),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "linear_1"],
            "rank_pattern": {"^model.language_model.*": 4, "linear_1": 2},
            "alpha_pattern": {"vision_tower.*q_proj": 11, "q_proj": 5},
            "use_rslora": True,
        },
    ),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "norms as a whole": ("llama", Q | {"modules_to_save": ["norm"]}),
    "projections as a whole": ("llama", Q | {"modules_to_save": ["k_proj"]}),
    "encoder as a whole": ("tied", {"target_modules": ["o_proj"], "modules_to_save": ["vision_tower"]}),
    "tied embedding": ("tied", Q | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "another start": ("llama", {"target_modules": ["v_proj"], "init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_gives_the_same_logits(case, tmp_path):
    name, fields = READ[case]
    save(name, tmp_path, fields)
    assert_gives_the_same_logits(name, tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_saved_beside_the_adapters(name, tmp_path):
    """As after added tokens: embedding and head are no copies, PEFT loads them into the model itself."""
    save(name, tmp_path, Q, save_embedding_layers=True)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    embedding = tensors["base_model.model.model.language_model.embed_tokens.weight"]
    embedding += np.random.default_rng(0).standard_normal(embedding.shape, np.float32) / 8
    if CONFIGS[name][0].language.tie_embeddings:
        tensors["base_model.model.lm_head.weight"] = embedding
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert_gives_the_same_logits(name, tmp_path)


REFUSED = {
    "embedding apart from its head": (
        "tied",
        Q | {"modules_to_save": ["embed_tokens"]},
        "embed_tokens.weight replaces the embedding alone; the base model ties its head to it",
    ),
    "head apart from its embedding": (
        "tied",
        Q | {"modules_to_save": ["lm_head"]},
        "lm_head.weight is not the embedding; the base model ties its head to it",
    ),
    "both apart": (
        "tied",
        Q | {"modules_to_save": ["embed_tokens", "lm_head"]},
        "lm_head.weight is not the embedding; the base model ties its head to it",
    ),
    "adapter of a tied head": (
        "tied",
        {"target_modules": ["q_proj", "lm_head"]},
        "lm_head has an adapter; ours are on linear layers of the model, not on a head that is the embedding",
    ),
    "half of the projector": (
        "llama",
        {"target_modules": ["q_proj", "linear_1"], "modules_to_save": ["linear_2"]},
        "multi_modal_projector.linear_1.weight is missing",
    ),
    "DoRA": ("llama", Q | {"use_dora": True}, "use_dora = true is not supported"),
    "biases of adapters": ("tied", {"target_modules": ["fc1"], "lora_bias": True}, "lora_bias = true is not supported"),
    "biases": ("llama", {"target_modules": ["fc1"], "bias": "lora_only"}, 'bias = "lora_only", expected "none"'),
    "tokens": ("llama", Q | {"trainable_token_indices": [1, 2]}, "trainable_token_indices = [1, 2] is not supported"),
    "parameters": (
        "llama",
        Q | {"target_parameters": ["model.language_model.layers.0.mlp.up_proj.weight"]},
        'target_parameters = ["model.language_model.layers.0.mlp.up_proj.weight"] is not supported',
    ),
    "after an invocation": (
        "llama",
        Q | {"alora_invocation_tokens": [3]},
        "alora_invocation_tokens = [3] is not supported",
    ),
    "embedding": (
        "llama",
        {"target_modules": ["q_proj", "embed_tokens"]},
        "model.language_model.embed_tokens.lora_embedding_A is no weight of adapters",
    ),
    "convolution": (
        "llama",
        {"target_modules": ["q_proj", "patch_embedding"]},
        "model.vision_tower.embeddings.patch_embedding has an adapter; ours are on linear layers",
    ),
    "one layer of another scale": (
        "llama",
        Q | {"alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
        "differ inside language, ours have one of each: r=3, alpha=8 for",
    ),
    "some layers": (
        "llama",
        {"target_modules": ["o_proj"], "layers_to_transform": [0]},
        "of 3 layers, 1, 2 have no adapter",
    ),
    "start that changes the base": (
        "llama",
        Q | {"init_lora_weights": "pissa"},
        'init_lora_weights = "pissa", expected a start that leaves the base model unchanged',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_cannot_be_is_refused(case, tmp_path):
    name, fields, message = REFUSED[case]
    save(name, tmp_path, fields)
    with pytest.raises(UserError, match=re.escape(message)):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("base", "same"),
    [
        ("llava-hf/LLaVA-1.5-7b-hf", True),
        ("/data/models/llava-1.5-7b-hf/", True),
        ("/home/anna/.cache/huggingface/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/0a1b2c", True),
        ("llava-hf/llava-1.5-13b-hf", False),
        ("llava", False),
        (None, True),
    ],
)
def test_another_base_is_told(base, same, tmp_path):
    save("llama", tmp_path, Q)
    tools.change_config(tmp_path, base_model_name_or_path=base)
    notes = check_base(tmp_path, ["llava-hf/llava-1.5-7b-hf@main"])
    expected = f"the adapter was made for {base}, not for llava-hf/llava-1.5-7b-hf@main"
    assert [note.partition(";")[0] for note in notes] == ([] if same else [expected])
