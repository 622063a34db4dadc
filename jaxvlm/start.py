"""The weights that a stage starts from: of an earlier stage or run, of Hugging Face checkpoints, or random ones."""

from __future__ import annotations

import functools
from pathlib import Path

import jax

from jaxvlm.config import Config, LoraConfig
from jaxvlm.errors import UserError
from jaxvlm.run import has_begun, load_params, load_saved_config, stage_folder
from jaxvlm.training.state import Layout, merge, merge_adapters, without_adapters
from jaxvlm.weights.source import PARTS, check_fit, load_weights, open_source


def starting_params(workdir: Path, config: Config, name: str, layout: Layout) -> tuple[dict | None, list[str]]:
    """The weights that stage `name` starts from.

    Adapters of an earlier stage are gone on with if this one has the same, and merged into the weights if not.

    Args:
      layout: of the stage; weights of Hugging Face's files are placed in its shardings and dtypes.

    Returns:
      nested dict of the parts that there are (None: none), and what was taken from where, in sentences.

    Raises:
      UserError: every source that does not fit the recipe.
    """
    init, adapters = config.init, dict(layout.model.adapters)
    earlier = config.stages[: config.stages.index(name)]
    done = [stage for stage in earlier if stage_folder(workdir, stage).exists()]
    if done:
        params, step = _of_run(workdir, config, layout, adapters, done[-1])
        return params, [f"stage {name} starts from step {step} of {done[-1]}"]
    notes, params = [], {}
    if init.model and has_begun(Path(init.model)):
        saved = load_saved_config(Path(init.model))
        params, step = _of_run(Path(init.model), config, layout, adapters)
        notes.append(f"stage {name} starts from step {step} of {saved.stages[-1]} in {init.model}")
    elif init.model:
        params = _of_source(init.model, PARTS, config, layout)
        notes.append(f"stage {name} starts from {init.model}")
    for part in PARTS:
        if spec := getattr(init, part):
            if has_begun(Path(spec)):
                params |= {part: _of_run(Path(spec), config, layout, adapters)[0][part]}
            else:
                params |= _of_source(spec, (part,), config, layout)
            notes.append(f"{part} starts from {spec}")
    random = [part for part in PARTS if part not in params]
    if params and random:
        notes.append(f"{' and '.join(random)} start{'s' if len(random) == 1 else ''} from random weights")
    return params or None, notes


def _of_run(
    folder: Path, config: Config, layout: Layout, adapters: dict[str, LoraConfig], stage: str = ""
) -> tuple[dict, int]:
    params, found, step = load_params(folder, config, layout.mesh, layout.rules, stage)
    saved = load_saved_config(folder).stage[found].parts.adapters()
    if saved and saved != adapters:
        shardings = jax.tree.map(lambda x: x.sharding, merge(layout.state.trained, layout.state.frozen))
        merged = jax.jit(
            functools.partial(merge_adapters, adapters=saved),
            out_shardings=without_adapters(shardings),
            donate_argnums=0,
        )
        params = merged(params)
    return params, step


def _of_source(spec: str, parts: tuple[str, ...], config: Config, layout: Layout) -> dict:
    source = open_source(spec)
    if parts == PARTS and set(source.configs) != set(PARTS):
        have = ", ".join(source.configs)
        raise UserError(f"config.init.model = {spec!r} has only {have}; name it as config.init.{have.split(', ')[0]}")
    check_fit(source, config.model, parts, resize_vocab=config.init.resize_vocab)
    whole = without_adapters(merge(layout.state.trained, layout.state.frozen))
    wanted = {part: whole[part] for part in parts}
    return load_weights(source, config.model, wanted, resize_vocab=config.init.resize_vocab)
