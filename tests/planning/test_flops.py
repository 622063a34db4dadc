import pytest

from jaxvlm.command import load_config
from jaxvlm.families.build import stage_model
from jaxvlm.families.registry import family_file
from jaxvlm.flops import Work
from jaxvlm.planning.flops import decoder_block_weights, model_flops, total_flops
from jaxvlm.training.state import split
from tests import tiny

# tests/tiny.py: vision D=36 F=44 L=4 (3 used) of 9 patches of 147 values; projector 36 -> 48 -> 48;
# language D=48 N=6 K=2 H=10 F=56 L=3 V=101.
BLOCK = 48 * 60 + 2 * 48 * 20 + 60 * 48 + 3 * 48 * 56
WORK = Work(rows=8, tokens=30, samples=2, units=2, images=2, supervised=5)


def flops_of(work=WORK, **parts):
    stage = tiny.stage(parts={"vision": "full", "projector": "full", "language": "full"} | parts)
    config = tiny.config(tiny.recipe())
    trained, _ = split(stage_model(config, stage).abstract, stage.parts)
    return {x.name: x for x in model_flops(config.model, stage.parts, trained, work)}


def test_the_forward_of_the_tiny_model_by_hand():
    found = {name: x.forward for name, x in flops_of().items()}
    assert found == {
        "vision: patches": 2 * 16 * 9 * 147 * 36,
        "vision: blocks": 2 * 16 * 10 * 3 * (4 * 36 * 36 + 2 * 36 * 44),
        "vision: attention": 4 * 16 * 3 * 10 * 10 * 36,
        "projector: first": 2 * 16 * 9 * 36 * 48,
        "projector: rest": 2 * 16 * 9 * 48 * 48,
        "language: blocks": 2 * 240 * 3 * BLOCK,
        # Two samples of 15: 120 pairs each, two products of 60 numbers a pair.
        "language: attention": 8 * 2 * 120 * 4 * 60 * 3,
        "language: head": 2 * 40 * 101 * 48,
    }


def backward(**parts):
    return {name: x.backward for name, x in flops_of(**parts).items()}


def test_backward_of_what_is_trained():
    assert backward() == dict.fromkeys(flops_of(), 2) | {"vision: patches": 1}
    assert backward(vision="frozen") == dict.fromkeys(flops_of(), 2) | {
        "vision: patches": 0,
        "vision: blocks": 0,
        "vision: attention": 0,
        "projector: first": 1,
    }


def test_gradients_pass_through_a_frozen_decoder():
    found = backward(vision="frozen", language="frozen")
    assert found["language: blocks"] == found["language: head"] == 1 and found["language: attention"] == 2
    assert (found["projector: first"], found["projector: rest"]) == (1, 2)


def test_adapters_are_counted_apart():
    found = flops_of(vision="frozen", language="lora", lora={"language": {"rank": 4, "alpha": 8.0}})
    assert found["language: blocks"].backward == 1 and found["language: adapters"].backward == 2
    ends = [48 + 60, 48 + 20, 48 + 20, 60 + 48, 48 + 56, 48 + 56, 56 + 48]
    assert found["language: adapters"].forward == 2 * 240 * 3 * 4 * sum(ends)


def test_without_images_there_is_no_encoder():
    found = flops_of(Work(8, 30, 1, 0, 1, 5))
    assert {name.split(":")[0] for name in found} == {"language"}


def test_llama_2_7b_as_published():
    """About 2 x 6.6e9 operations a token and forward, without attention: 32 blocks and the head."""
    config = load_config("configs/llava15_7b_finetune.py")
    language = config.model.language
    head = language.vocab_size * language.embed_dim
    assert 32 * decoder_block_weights(language) + head == pytest.approx(6.607e9, rel=1e-3)
    stage = config.stage["finetune"]
    trained, _ = split(stage_model(config, stage).abstract, stage.parts)
    work = Work(rows=1, tokens=2048, samples=1, units=0, images=1, supervised=2048)
    lines = model_flops(config.model, stage.parts, trained, work)
    without_attention = [x for x in lines if "attention" not in x.name]
    assert total_flops(without_attention) / 2048 == pytest.approx(6 * 6.607e9, rel=1e-3)


def test_clip_l_14_at_336_as_published():
    """ViT-L/14 at 336 pixels takes 191 G multiply-adds an image for its 24 blocks; 23 of them are used."""
    config = load_config("configs/llava15_7b_finetune.py")
    work = Work(rows=1, tokens=2048, samples=1, units=1, images=1, supervised=0)
    lines = model_flops(config.model, config.stage["finetune"].parts, {}, work)
    vision = sum(x.forward for x in lines if x.name.startswith("vision"))
    assert vision / 2 == pytest.approx(191e9 * 23 / 24, rel=0.01)


def test_segments_of_an_encoder_with_windows():
    work = Work(rows=8, tokens=30, samples=2, units=1000, images=2.5, supervised=5)
    model = load_config("configs/qwen25_vl_7b.py", []).model
    full, windows = family_file(model.family, "flops").vision_segments(model, work)
    assert full == (4 / 32, (400, 400, pytest.approx(200)))
    assert windows == (28 / 32, (*[64.0] * 15, pytest.approx(40)))
    (only,) = family_file(model.family, "flops").vision_segments(load_config("configs/qwen2_vl_7b.py", []).model, work)
    assert only == (1.0, full.lengths)
