import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.config import GroupConfig, OptimizerConfig
from jaxvlm.errors import UserError
from jaxvlm.training.optimizer import build_optimizer, group_of, schedule


def config(**values):
    defaults = dict(
        learning_rate=1e-2,
        schedule="cosine",
        warmup=0.03,
        weight_decay=0.1,
        no_weight_decay=(r".*/(scale|bias)",),
        groups=(("projector/.*", GroupConfig(learning_rate=3e-2)),),
        b1=0.9,
        b2=0.99,
        epsilon=1e-8,
        clip_norm=1.0,
    )
    return OptimizerConfig(**defaults | values)


PARAMS = {
    "language": {"norm": {"scale": jnp.ones(3)}, "up": {"w": jnp.arange(6.0).reshape(2, 3)}},
    "projector": {"fc1": {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
}


@pytest.mark.torch
@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedule_is_that_of_transformers(name):
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    original = transformers.get_scheduler(
        {"constant": "constant_with_warmup"}.get(name, name), optimizer, num_warmup_steps=3, num_training_steps=50
    )
    ours = schedule(config(schedule=name, warmup=0.05), 50)  # ceil(2.5) updates of warm-up
    for step in range(50):
        np.testing.assert_allclose(ours(step), original.get_last_lr()[0], atol=1e-6)
        optimizer.step()
        original.step()


def test_wsd_holds_the_rate_and_lets_it_fall_in_the_last_fifth():
    rates = [float(schedule(config(schedule="wsd", warmup=0.1), 100)(step)) for step in range(101)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert set(rates[10:83]) == {1.0}  # 18 of the 90 updates behind the warm-up
    assert rates[82:] == pytest.approx([1 - step / 18 for step in range(19)], abs=1e-6)


def test_unknown_schedule_is_named():
    with pytest.raises(UserError, match='unknown schedule "cosin".*cosine, linear, constant, wsd'):
        schedule(config(schedule="cosin"), 10)


def test_groups_give_rate_and_decay():
    groups = group_of(config(), ["language/norm/scale", "language/up/w", "projector/fc1/w", "projector/fc1/bias"], [])
    assert {path: tuple(group) for path, group in groups.items()} == {
        "language/norm/scale": (1e-2, 0.0),
        "language/up/w": (1e-2, 0.1),
        "projector/fc1/w": (3e-2, 0.1),
        "projector/fc1/bias": (3e-2, 0.0),
    }


def test_patterns_that_match_nothing_are_all_named_with_the_nearest_path():
    wrong = config(groups=(("projecter/.*", GroupConfig(1.0)),), no_weight_decay=("norms",))
    with pytest.raises(UserError) as error:
        group_of(wrong, ["projector/fc1/w"], ["language/norm"])
    assert 'pattern "projecter/.*" matches no parameter; nearest path: projector/fc1/w' in str(error.value)
    assert 'pattern "norms" matches no parameter; nearest path: language/norm' in str(error.value)


@pytest.mark.torch
def test_updates_are_those_of_torch_adamw_with_clipping():
    import torch

    optimizer = build_optimizer(config(schedule="constant", warmup=0.0), 5, PARAMS, {})
    state, params = optimizer.init(PARAMS), PARAMS
    rates = {"w": (1e-2, 0.1), "scale": (1e-2, 0.0), "fc1w": (3e-2, 0.1), "fc1b": (3e-2, 0.0)}
    start = {
        "w": PARAMS["language"]["up"]["w"],
        "scale": PARAMS["language"]["norm"]["scale"],
        "fc1w": PARAMS["projector"]["fc1"]["w"],
        "fc1b": PARAMS["projector"]["fc1"]["bias"],
    }
    theirs = {name: torch.nn.Parameter(torch.tensor(np.array(value))) for name, value in start.items()}
    groups = [{"params": [theirs[name]], "lr": lr, "weight_decay": decay} for name, (lr, decay) in rates.items()]
    original = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    random = np.random.default_rng(0)
    for _ in range(4):
        grads = {name: random.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
        tree = {
            "language": {"norm": {"scale": grads["scale"]}, "up": {"w": grads["w"]}},
            "projector": {"fc1": {"w": grads["fc1w"], "bias": grads["fc1b"]}},
        }
        updates, state = optimizer.update(tree, state, params)
        params = {
            part: {k: {n: v + updates[part][k][n] for n, v in leaf.items()} for k, leaf in params[part].items()}
            for part in params
        }
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        original.step()
    np.testing.assert_allclose(params["language"]["up"]["w"], theirs["w"].detach(), atol=2e-6)
    np.testing.assert_allclose(params["language"]["norm"]["scale"], theirs["scale"].detach(), atol=2e-6)
    np.testing.assert_allclose(params["projector"]["fc1"]["bias"], theirs["fc1b"].detach(), atol=2e-6)
    np.testing.assert_allclose(params["projector"]["fc1"]["w"], theirs["fc1w"].detach(), atol=2e-6)
