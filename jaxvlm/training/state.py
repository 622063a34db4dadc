"""The state of a training run, trained and frozen leaves apart, and where it lives."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.batch import Array
from jaxvlm.config import PartsConfig, StageConfig
from jaxvlm.errors import UserError
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Rules, named_shardings
from jaxvlm.training.optimizer import build_optimizer, group_of, paths

POLICIES = ("frozen", "full")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that a run needs to go on, but for its position in the data."""

    step: Array  # int32[], updates done
    trained: dict  # nested dict of float32 leaves
    frozen: dict  # nested dict of the other leaves; no gradient, no moments, bit-equal for ever
    optimizer: Any
    key: Array  # uint32[2], root of the run's random numbers; a step folds its number in


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything known of a run before memory is used: shapes, dtypes, shardings, and the program's parts."""

    model: Model
    mesh: Mesh
    rules: Rules
    optimizer: optax.GradientTransformation
    state: State  # of jax.ShapeDtypeStruct with shardings


def split(params: dict, parts: PartsConfig) -> tuple[dict, dict]:
    """Splits the parts of a nested dict into (trained, frozen).

    Raises:
      UserError: an unknown policy, or nothing to train.
    """
    policies = dataclasses.asdict(parts)
    unknown = [f"parts.{part} = {policy!r}" for part, policy in policies.items() if policy not in POLICIES]
    if unknown:
        raise UserError(f"unknown policy: {', '.join(unknown)}; known: {', '.join(POLICIES)}")
    trained = {part: params[part] for part, policy in policies.items() if policy == "full"}
    if not trained:
        raise UserError('every part is frozen; set one of parts.vision, parts.projector, parts.language to "full"')
    return trained, {part: params[part] for part in policies if part not in trained}


def merge(trained: dict, frozen: dict) -> dict:
    """The whole model's nested dict; inverse of `split`."""
    merged = dict(trained)
    for name, value in frozen.items():
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def state_layout(model: Model, stage: StageConfig, steps: int, mesh: Mesh, rules: Rules) -> Layout:
    """Shapes, dtypes and shardings of a stage's state; `steps` is the length of its schedule."""
    shardings = named_shardings(mesh, rules, model.abstract, model.axes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract, shardings)
    trained, frozen = split(abstract, stage.parts)
    frozen_dtype = jnp.dtype(stage.frozen_dtype)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, frozen_dtype, sharding=x.sharding), frozen)
    optimizer = build_optimizer(stage.optimizer, steps, trained)
    replicated = NamedSharding(mesh, PartitionSpec())

    def whole(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

    optimizer_state = optax.tree.map_params(
        optimizer,
        lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=whole,
    )
    state = State(
        step=whole(jax.ShapeDtypeStruct((), jnp.int32)),
        trained=trained,
        frozen=frozen,
        optimizer=optimizer_state,
        key=whole(jax.ShapeDtypeStruct((2,), jnp.uint32)),
    )
    return Layout(model, mesh, rules, optimizer, state)


def initial_state(layout: Layout, seed: int, params: dict | None = None) -> State:
    """State before the first step, made in place by one compiled program.

    Args:
      params: weights to start from; None makes random ones.
    """

    def make(key: Array, params: dict | None) -> State:
        params = layout.model.init(jax.random.wrap_key_data(key)) if params is None else params
        flat, abstract = paths(params), merge(layout.state.trained, layout.state.frozen)
        cast = jax.tree.unflatten(
            jax.tree.structure(abstract),
            [flat[path].astype(leaf.dtype) for path, leaf in paths(abstract).items()],
        )
        trained = {part: cast[part] for part in layout.state.trained}
        frozen = {part: cast[part] for part in layout.state.frozen}
        return State(jnp.zeros((), jnp.int32), trained, frozen, layout.optimizer.init(trained), key)

    shardings = jax.tree.map(lambda x: x.sharding, layout.state)
    # Run once: a CPU compiles the random numbers of a tiny model in 2.6 s instead of 8.6 s if it optimises them less.
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    with jax.set_mesh(layout.mesh):
        return jax.jit(make, out_shardings=shardings, compiler_options=options)(
            jax.random.key_data(jax.random.key(seed)), params
        )


def table_of_parts(layout: Layout, stage: StageConfig) -> str:
    """The table that a run prints at its start: what each part holds, what is trained of it, and how fast."""
    rows = [("part", "parameters", "trained", "learning rate", "weight decay", "dtype", "MiB")]
    groups = group_of(stage.optimizer, list(paths(merge(layout.state.trained, layout.state.frozen))))
    for part in dataclasses.asdict(stage.parts):
        is_trained = part in layout.state.trained
        leaves = paths({part: (layout.state.trained if is_trained else layout.state.frozen)[part]})
        count = sum(leaf.size for leaf in leaves.values())
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) / 2**20
        rates = sorted({groups[path].learning_rate for path in leaves}) if is_trained else []
        decays = sorted({groups[path].weight_decay for path in leaves}) if is_trained else []
        dtypes = sorted({str(leaf.dtype) for leaf in leaves.values()})
        rows.append(
            (
                part,
                f"{count:,}",
                f"{count if is_trained else 0:,}",
                ", ".join(f"{rate:g}" for rate in rates) or "-",
                ", ".join(f"{decay:g}" for decay in decays) or "-",
                ", ".join(dtypes),
                f"{size:,.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
