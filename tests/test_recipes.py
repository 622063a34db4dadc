"""The recipes: LLaVA-1.5's against its published values, written out here a second time and not taken from configs/."""

import dataclasses
import runpy

import jax
import numpy as np
import pytest

from jaxvlm.command import load_config
from jaxvlm.config import StageConfig
from jaxvlm.data.recipe_tokenizer import build_tokenizer
from jaxvlm.data.rows.packing import plan_rows
from jaxvlm.data.rows.schedule import RowSchedule
from jaxvlm.data.sources.mix import load_mix
from jaxvlm.data.text.templates import TEMPLATES
from jaxvlm.errors import UserError
from jaxvlm.families.build import stage_model
from jaxvlm.training.optimizer import group_of, schedule
from jaxvlm.training.state import split
from jaxvlm.trees import paths

# scripts/v1_5, and the defaults of transformers 4.37.2 that also apply.
COMMON = {
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 0.03,
    "optimizer.weight_decay": 0.0,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.epsilon": 1e-8,
    "optimizer.clip_norm": 1.0,
    "epochs": 1.0,
    "micro_batches": 1,
    "frozen_dtype": "bfloat16",
    "data.heldout": 0.0,
    "data.system": None,
    "data.on_bad": "fail",
    "data.workers": 4,
    "data.augment.flip": False,
    "data.augment.shift": 0,
    "data.augment.shuffle_turns": False,
    "parts.vision": "frozen",
    "parts.projector": "full",
}
CONVERSATIONS = {
    "data.template": "vicuna_v1",
    "data.media.aspect": "pad",
    "data.tokens": 2048,
    "data.media.units": 3,
    "data.pack": True,
    "global_batch_size": 64,
    "data.source": "data/llava_v1_5_mix665k.json",
}
VALUES = {
    "align": {
        "optimizer.learning_rate": 1e-3,
        "parts.language": "frozen",
        "data.template": "plain",
        "data.media.aspect": "square",
        "data.tokens": 768,
        "data.media.units": 1,
        "data.pack": False,
        "global_batch_size": 256,
        "data.source": "data/blip_laion_cc_sbu_558k.json",
    },
    "finetune": {"optimizer.learning_rate": 2e-5, "parts.language": "full"} | CONVERSATIONS,
    "lora": {"optimizer.learning_rate": 2e-4, "parts.language": "lora"} | CONVERSATIONS,
}
STAGE = {"align": "align", "finetune": "finetune", "lora": "finetune"}

# In millions: LLaMA's sizes as published, CLIP without its projection head, two linear layers with biases, and of the
# adapters 128 * (in + out) for each of the seven linear layers of a block.
MILLIONS = {
    "7b": {"vision": 303.5, "projector": 20.98, "language": 6738.4, "adapters": 319.8},
    "13b": {"vision": 303.5, "projector": 31.47, "language": 13015.9, "adapters": 500.7},
}

# VQAv2, GQA, VizWiz, SQA, TextVQA, POPE, MME, MMB, MMB-CN, SEED, LLaVA-W, MM-Vet; docs/MODEL_ZOO.md of LLaVA.
PUBLISHED = {
    "7b_finetune": "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.3 58.6 65.4 31.1",
    "13b_finetune": "80.0 63.3 53.6 71.6 61.3 85.9 1531.3 67.7 63.6 61.6 72.5 36.1",
    "7b_lora": "79.1 63.0 47.8 68.4 58.2 86.4 1476.9 66.1 58.9 60.1 67.9 30.2",
    "13b_lora": "80.0 63.3 58.9 71.2 60.2 86.7 1541.7 68.5 61.5 61.3 69.5 38.3",
}

every_recipe = pytest.mark.parametrize("kind", VALUES)
every_size = pytest.mark.parametrize("size", MILLIONS)


def path_of(size: str, kind: str) -> str:
    return f"configs/llava15_{size}_{kind}.py"


def load(size: str, kind: str, *overrides: str):
    config = load_config(path_of(size, kind), overrides)
    return config, config.stage[STAGE[kind]]


def at(value, path: str):
    for name in path.split("."):
        value = getattr(value, name)
    return value


@every_size
@every_recipe
def test_values(size, kind):
    config, stage = load(size, kind)
    expected = COMMON | VALUES[kind]
    assert {path: at(stage, path) for path in expected} == expected
    assert config.stages == (STAGE[kind],) == tuple(config.stage)
    assert config.seed == 42 and config.steps is None and not config.evaluation.source


@every_size
@every_recipe
def test_model_and_start(size, kind):
    config, _ = load(size, kind)
    vision, language = config.model.vision, config.model.language
    assert (vision.image_size, vision.patch_size, vision.features_per_image) == (336, 14, 576)
    assert (vision.embed_dim, vision.num_layers, vision.feature_layer) == (1024, 24, -2)
    assert (vision.class_token, vision.pool, vision.activation) == (True, False, "quick_gelu")
    assert [int(255 * mean) for mean in vision.image_mean] == [122, 116, 104]
    sizes = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}[size]
    assert (language.embed_dim, language.mlp_dim, language.num_layers, language.num_heads) == sizes
    assert (language.vocab_size, language.norm_epsilon, language.tie_embeddings) == (32000, 1e-5, False)
    assert config.model.projector.kind == "mlp2x_gelu"
    assert config.model.compute_dtype == "bfloat16"
    assert config.model.remat == "full"  # LLaVA's gradient checkpointing

    decoder = f"lmsys/vicuna-{size}-v1.5"
    assert config.tokenizer.source == config.init.language == decoder
    assert config.init.vision == "openai/clip-vit-large-patch14-336"
    assert config.init.model == "" and not config.init.resize_vocab
    # The default workdir of the align recipe.
    assert config.init.projector == ("" if kind == "align" else f"runs/llava15_{size}_align")


@every_size
@every_recipe
def test_parameters_and_their_rates(size, kind):
    config, stage = load(size, kind)
    model = stage_model(config, stage)
    trained, frozen = split(model.abstract, stage.parts)
    millions = dict(MILLIONS[size])
    adapters = millions.pop("adapters")
    assert _millions(trained.get("language", {})) == pytest.approx(
        {"align": 0, "finetune": millions["language"], "lora": adapters}[kind], abs=0.06
    )
    assert _millions(trained["projector"]) == pytest.approx(millions["projector"], abs=0.006)
    assert "vision" not in trained and "projector" not in frozen
    base = {"vision": frozen["vision"], "projector": trained["projector"]}
    base["language"] = trained["language"] if kind == "finetune" else frozen["language"]
    assert {part: _millions(tree) for part, tree in base.items()} == pytest.approx(millions, abs=0.06)

    groups = group_of(stage.optimizer, list(paths(trained)), list(paths(frozen)))
    rates = {part: {g.learning_rate for p, g in groups.items() if p.startswith(part)} for part in trained}
    expected = {
        "align": {"projector": {1e-3}},
        "finetune": {"projector": {2e-5}, "language": {2e-5}},
        "lora": {"projector": {2e-5}, "language": {2e-4}},
    }
    assert rates == expected[kind]
    assert {group.weight_decay for group in groups.values()} == {0.0}


def _millions(tree: dict) -> float:
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


@every_size
def test_adapters_are_at_every_linear_layer_of_the_blocks_and_nowhere_else(size):
    config, stage = load(size, "lora")
    lora = stage.parts.adapters()
    assert {part: dataclasses.astuple(adapter)[:3] for part, adapter in lora.items()} == {"language": (128, 256, 0.05)}
    assert lora["language"].scale == 2.0
    trained, _ = split(stage_model(config, stage).abstract, stage.parts)
    linear = ["attention/k", "attention/out", "attention/q", "attention/v", "mlp/down", "mlp/gate", "mlp/up"]
    adapters = [f"language/blocks/{name}/lora/{matrix}" for name in linear for matrix in "ab"]
    assert sorted(path for path in paths(trained) if path.startswith("language")) == adapters


@pytest.mark.parametrize("kind", VALUES)
def test_norms_and_biases_would_not_be_decayed(kind):
    config, stage = load("7b", kind, f"--config.stage.{STAGE[kind]}.optimizer.weight_decay=0.1")
    trained, frozen = split(stage_model(config, stage).abstract, stage.parts)
    groups = group_of(stage.optimizer, list(paths(trained)), list(paths(frozen)))
    undecayed = {path for path, group in groups.items() if group.weight_decay == 0}
    assert undecayed == {path for path in groups if "norm" in path or path.endswith("bias")} != set()


def test_captions_take_as_many_steps_as_in_llava():
    config, stage = load("7b", "align")
    assert _steps(stage, 558_128, config.seed) == 2181
    # A caption has room for what is not image and <s>.
    assert stage.data.tokens - 576 - 1 == 191


def test_one_conversation_a_row_takes_as_many_steps_as_in_llava():
    data = "--config.stage.finetune.data."
    overrides = (f"{data}pack=False", f"{data}media.units=1", "--config.stage.finetune.global_batch_size=128")
    config, stage = load("7b", "finetune", *overrides)
    assert _steps(stage, 5198 * 128, config.seed) == 5198
    assert round(5198 * 128 / 1000) == 665  # thousand samples, as the data's name says


def _steps(stage: StageConfig, samples: int, seed: int) -> int:
    lengths, images = np.full(samples, 600, np.int32), np.ones(samples, np.int32)
    rows = RowSchedule(lengths, images, [(np.arange(samples), 1.0)], stage.data, seed).end(0)
    assert stage.epochs == 1
    return -(-rows // stage.global_batch_size)


@pytest.mark.parametrize(("length", "rows"), [(682, 43), (683, 64), (1024, 64)])
def test_a_step_of_packed_rows_is_about_llavas_128_samples(length, rows):
    data = load("7b", "finetune")[1].data
    lengths, images = np.full(128, length, np.int32), np.ones(128, np.int32)
    planned = plan_rows(lengths, images, np.arange(128), tokens=data.tokens, budget=data.media.units, pack=data.pack)
    assert len(planned) == rows


def test_a_row_has_slots_for_all_images_that_fit():
    config, stage = load("7b", "finetune")
    before = 35  # tokens of vicuna_v1 before the image
    assert TEMPLATES[stage.data.template].opening.startswith("{system} USER:")
    assert stage.data.media.units == stage.data.tokens // (before + config.model.vision.features_per_image + 1)
    # 128 samples lie between what rows of two and of three hold.
    assert 2 * stage.global_batch_size <= 128 <= 3 * stage.global_batch_size


def test_schedule():
    stage = load("7b", "finetune")[1]
    multiplier = schedule(stage.optimizer, 5198)
    assert [float(multiplier(step)) for step in (0, 156, 5198)] == pytest.approx([0, 1, 0], abs=1e-6)


@every_size
@every_recipe
def test_docstring(size, kind):
    """Says what it is, the command that runs it, hardware, and the numbers to expect."""
    doc = runpy.run_path(path_of(size, kind))["__doc__"]
    script = {"align": "pretrain", "finetune": "finetune", "lora": "finetune_lora"}[kind]
    needed = [f"LLaVA-1.5 {size.upper()}", "arXiv:2310.03744", f"scripts/v1_5/{script}.sh"]
    needed += [f"python -m jaxvlm.train --config {path_of(size, kind)}", "measured neither hours nor scores on TPUs"]
    hardware = {
        "align": {"7b": "3.5 hours on 8 A100", "13b": "5.5 hours on 8 A100"},
        "finetune": {"7b": "10 hours on 8 A100 of 40 GB", "13b": "20 hours on 8 A100 of 80 GB"},
        "lora": {"7b": "8 RTX 3090", "13b": "8 A100 of 40 GB or 8 A6000"},
    }
    needed += [hardware[kind][size], *PUBLISHED.get(f"{size}_{kind}", "").split()]
    assert [text for text in needed if text not in " ".join(doc.split())] == []


@every_size
@every_recipe
def test_unknown_keys_are_named(size, kind):
    with pytest.raises(UserError, match=f"unknown key config.stage.{STAGE[kind]}.data.token .did you mean .*tokens"):
        load(size, kind, f"--config.stage.{STAGE[kind]}.data.token=1024")


def test_another_projector():
    assert load("7b", "lora", "--config.init.projector=llava")[0].init.projector == "llava"


def test_quickstart_has_a_token_for_each_answer():
    """Its tokenizer learns from both stages: the answers "yes" and "no" are in the second alone."""
    config = load_config("configs/quickstart.py")
    tokenizer, data = build_tokenizer(config), config.stage["finetune"].data
    source = load_mix(data)
    said = {turn.text for at in range(len(source)) for turn in source[at].turns if turn.role == "assistant"}
    assert len(said) == 13 and {"yes", "no"} < said
    tokens = {answer: tokenizer.encode(answer, add_special_tokens=False) for answer in said}
    assert [answer for answer in said if len(tokens[answer]) != 1] == []
