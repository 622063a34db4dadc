"""AdamW whose learning rate and decay are set by (path pattern, values) pairs."""

from __future__ import annotations

import re
from typing import NamedTuple

import optax

from jaxvlm.config import OptimizerConfig
from jaxvlm.errors import UserError, nearest
from jaxvlm.trees import map_paths, paths


class Group(NamedTuple):
    """Learning rate and weight decay of a parameter."""

    learning_rate: float
    weight_decay: float


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Multiplier of every learning rate: from 0 to 1 in the warm-up, then to 0 by a cosine or linearly, or constant.

    "wsd" (warm-up, stable, decay; arXiv:2404.06395) is constant, and linear to 0 over the last fifth.

    As HF `get_cosine_schedule_with_warmup`, the first update has multiplier 0 if there is a warm-up, and
    `ceil(warmup * steps)` updates are the warm-up.

    Raises:
      UserError: an unknown schedule.
    """
    warmup = -int(-config.warmup * steps // 1)
    rest = max(1, steps - warmup)
    shapes = {
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "constant": optax.constant_schedule(1.0),
        "wsd": optax.linear_schedule(1.0, 0.0, -(-rest // 5), transition_begin=rest - -(-rest // 5)),
    }
    if config.schedule not in shapes:
        raise UserError(f'unknown schedule "{config.schedule}" (optimizer.schedule); known: {", ".join(shapes)}')
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, max(1, warmup)), shapes[config.schedule]], [warmup])


def group_of(config: OptimizerConfig, trained: list[str], frozen: list[str]) -> dict[str, Group]:
    """Learning rate and weight decay of each trained parameter.

    Args:
      trained: paths of the trained parameters.
      frozen: paths of the other parameters, which a pattern may match too.

    Raises:
      UserError: patterns that match no parameter, each with the nearest path.
    """
    patterns = [(pattern, f"optimizer.groups[{i}]") for i, (pattern, _) in enumerate(config.groups)]
    patterns += [(pattern, f"optimizer.no_weight_decay[{i}]") for i, pattern in enumerate(config.no_weight_decay)]
    unmatched, known = [], [*trained, *frozen]
    for pattern, where in patterns:
        if not any(re.fullmatch(pattern, path) for path in known):
            near = nearest(pattern, known, cutoff=0.0)
            unmatched.append(f'pattern "{pattern}" matches no parameter; nearest path: {near} ({where})')
    if unmatched:
        raise UserError("; ".join(unmatched))
    return {path: _group(config, path) for path in trained}


def _group(config: OptimizerConfig, path: str) -> Group:
    given = next((group for pattern, group in config.groups if re.fullmatch(pattern, path)), None)
    rate, decay = (given.learning_rate, given.weight_decay) if given else (None, None)
    if any(re.fullmatch(pattern, path) for pattern in config.no_weight_decay):
        decay = 0.0
    return Group(
        config.learning_rate if rate is None else rate,
        config.weight_decay if decay is None else decay,
    )


def build_optimizer(config: OptimizerConfig, steps: int, trained: dict, frozen: dict) -> optax.GradientTransformation:
    """The optimizer of the trained leaves.

    Args:
      steps: length of the schedule, in updates.
      trained: nested dict of the trained leaves, abstract or real.
      frozen: nested dict of the other leaves; only their paths count.
    """
    groups = group_of(config, list(paths(trained)), list(paths(frozen)))
    multiplier = schedule(config, steps)
    labels = map_paths(lambda path, _: str(groups[path]), trained)
    transforms = {
        str(group): optax.chain(
            optax.add_decayed_weights(group.weight_decay),
            optax.scale_by_learning_rate(lambda step, rate=group.learning_rate: rate * multiplier(step)),
        )
        for group in groups.values()
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.partition(transforms, labels),
    )
