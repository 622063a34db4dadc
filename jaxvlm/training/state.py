"""The state of a training run: trained and frozen leaves, and their placement."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.batch import Array
from jaxvlm.config import LoraConfig, PartsConfig, StageConfig
from jaxvlm.models.vlm import Model, make_model
from jaxvlm.objectives.objective import Objective
from jaxvlm.objectives.registry import find_objective
from jaxvlm.sharding import Rules, named_shardings
from jaxvlm.training.optimizer import build_optimizer, group_of
from jaxvlm.trees import map_paths, paths
from jaxvlm.tuning import Options, compiler_options


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that a run needs to resume, except its position in the data."""

    step: Array  # int32[], updates done
    trained: dict  # nested dict of float32 leaves
    frozen: dict  # nested dict of the other leaves; no gradient, no moments, never changed
    optimizer: Any
    key: Array  # uint32[2], root of the run's random numbers; a step folds its number in
    # An objective's reference is the frozen leaves and these: copies of the trained leaves (without adapters) as
    # they were when the stage started, in the frozen dtype. Empty without a reference, or if only adapters train.
    reference: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The abstract state of a stage: shapes, dtypes and shardings, with the model and the optimizer; uses no memory."""

    model: Model
    mesh: Mesh
    rules: Rules
    optimizer: optax.GradientTransformation
    state: State  # of jax.ShapeDtypeStruct with shardings
    compiler_options: Options
    objective: Objective
    reference: Model | None  # the objective's: the model without adapters; None if it needs none


def split(params: dict, parts: PartsConfig) -> tuple[dict, dict]:
    """Splits a nested dict into (trained, frozen): whole parts, or a part's adapters and the weights they adapt.

    Raises:
      UserError: an unknown policy.
    """
    policies, adapters = parts.policies, parts.adapters()
    trained = {part: params[part] for part, policy in policies.items() if policy == "full"}
    frozen = {part: params[part] for part, policy in policies.items() if policy == "frozen"}
    for part in adapters:
        trained[part], frozen[part] = _pick(params[part], adapters=True), without_adapters(params[part])
    return trained, frozen


def without_adapters(tree: dict) -> dict:
    """The leaves of a nested dict without those of adapters."""
    return _pick(tree, adapters=False)


def _pick(tree: dict, *, adapters: bool) -> dict:
    """The leaves of a nested dict with or without those of adapters."""
    picked: dict = {}
    for name, value in tree.items():
        if name == "lora":
            picked |= {name: value} if adapters else {}
        elif isinstance(value, dict):
            rest = _pick(value, adapters=adapters)
            picked |= {name: rest} if rest else {}
        elif not adapters:
            picked[name] = value
    return picked


def merge(trained: dict, frozen: dict) -> dict:
    """The whole model's nested dict; inverse of `split`."""
    merged = dict(trained)
    for name, value in frozen.items():
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def merge_adapters(params: dict, adapters: Mapping[str, LoraConfig]) -> dict:
    """The same model without adapters: each weight that has one becomes `w + scale * a b`, in float32.

    Args:
      params: nested dict of the whole model; weights without an adapter are unchanged.
      adapters: part -> LoRA settings.
    """

    def fold(tree: dict, scale: float, stack: int) -> dict:
        folded: dict[str, Any] = {
            name: fold(value, scale, stack or name == "blocks") if isinstance(value, dict) else value
            for name, value in tree.items()
        }
        if lora := folded.pop("lora", None):
            a, b, layers = lora["a"], lora["b"], tuple(lora["a"].shape[:stack])
            a, b = a.reshape(*layers, -1, a.shape[-1]), b.reshape(*layers, a.shape[-1], -1)
            folded["w"] = folded["w"].astype(jnp.float32) + (scale * (a @ b)).reshape(folded["w"].shape)
        return folded

    return {part: fold(tree, adapters[part].scale, 0) if part in adapters else tree for part, tree in params.items()}


def state_layout(model: Model, stage: StageConfig, steps: int, mesh: Mesh, rules: Rules) -> Layout:
    """Shapes, dtypes and shardings of a stage's state; `steps` is the length of its schedule."""
    shardings = named_shardings(mesh, rules, model.abstract, model.axes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract, shardings)
    trained, frozen = split(abstract, stage.parts)
    frozen_dtype = jnp.dtype(stage.frozen_dtype)

    def kept(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, frozen_dtype, sharding=x.sharding)

    frozen, objective = jax.tree.map(kept, frozen), find_objective(stage.objective)
    optimizer = build_optimizer(stage.optimizer, steps, trained, frozen)
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
        reference=jax.tree.map(kept, without_adapters(trained)) if objective.needs_reference else {},
    )
    reference = make_model(model.module, model.config, ()) if objective.needs_reference else None
    options = compiler_options(mesh, stage.compiler_options)
    return Layout(model, mesh, rules, optimizer, state, options, objective, reference)


def initial_state(layout: Layout, seed: int, params: dict | None = None) -> State:
    """The state before the first step, made in place by one compiled program.

    Args:
      params: initial weights, donated; missing ones (a part, or adapters) are random; None: all are.
    """

    def make(key: Array, params: dict | None) -> State:
        given = paths(params or {})
        # Not traced where nothing is missing: random numbers are most of the program's size.
        is_whole = paths(layout.model.abstract).keys() <= given.keys()
        made = {} if is_whole else paths(layout.model.init(jax.random.wrap_key_data(key)))

        def start(path: str, leaf: jax.ShapeDtypeStruct) -> Array:
            return (given[path] if path in given else made[path]).astype(leaf.dtype)

        trained, frozen = (map_paths(start, tree) for tree in (layout.state.trained, layout.state.frozen))
        leaves = paths(trained)
        reference = map_paths(lambda path, like: leaves[path].astype(like.dtype), layout.state.reference)
        return State(jnp.zeros((), jnp.int32), trained, frozen, layout.optimizer.init(trained), key, reference)

    shardings = jax.tree.map(lambda x: x.sharding, layout.state)
    if params is not None:
        # Place them first: no copy if they are placed already, and only then can they be donated.
        placed = paths(merge(shardings.trained, shardings.frozen))
        params = map_paths(lambda path, x: jax.device_put(x, placed[path]), params)
    # Run once: with less optimisation a CPU compiles the random numbers of a tiny model in 2.6 s instead of 8.6 s.
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    level = "xla_backend_optimization_level"
    options = {level: 1} if on_cpu and level not in os.environ.get("XLA_FLAGS", "") else None
    with jax.set_mesh(layout.mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")  # buffers of another dtype
        return jax.jit(make, out_shardings=shardings, compiler_options=options, donate_argnums=1)(
            jax.random.key_data(jax.random.key(seed)), params
        )


def table_of_parts(layout: Layout, stage: StageConfig) -> str:
    """The table that a run prints at its start: each part's parameters, trained parameters and learning rates."""
    rows = [("part", "parameters", "trained", "learning rate", "weight decay", "dtype", "MiB")]
    groups = group_of(stage.optimizer, list(paths(layout.state.trained)), list(paths(layout.state.frozen)))
    for part in stage.parts.policies:
        trained = paths({part: layout.state.trained.get(part, {})})
        leaves = trained | paths({part: layout.state.frozen.get(part, {})})
        rows.append(
            (
                part,
                f"{sum(leaf.size for leaf in leaves.values()):,}",
                f"{sum(leaf.size for leaf in trained.values()):,}",
                ", ".join(f"{rate:g}" for rate in sorted({groups[path].learning_rate for path in trained})) or "-",
                ", ".join(f"{decay:g}" for decay in sorted({groups[path].weight_decay for path in trained})) or "-",
                ", ".join(sorted({str(leaf.dtype) for leaf in leaves.values()})),
                f"{sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) / 2**20:,.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
