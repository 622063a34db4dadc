"""Initial weights of a stage: from an earlier stage or run, from Hugging Face checkpoints, or random."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from jaxvlm.config import Config, DataConfig, LoraConfig
from jaxvlm.config_reading import to_dict
from jaxvlm.data.recipe_tokenizer import saved_tokenizer
from jaxvlm.errors import UserError, listed
from jaxvlm.families.sources import open_source
from jaxvlm.imported_settings import STAGE, overridden, settings_of_folder
from jaxvlm.restore import load_params
from jaxvlm.runs import RunFolder
from jaxvlm.training.checkpoint_files import is_finished, whole_steps
from jaxvlm.training.state import Layout, merge, merge_adapters, without_adapters
from jaxvlm.weights.codec import WeightSource
from jaxvlm.weights.source import check_fit, load_weights


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of some parts: a run or a Hugging Face source."""

    parts: tuple[str, ...]
    name: str  # for messages
    run: RunFolder | None = None
    stage: str = ""  # of the run; "": its last
    source: WeightSource | None = None


def find_origins(folder: RunFolder, config: Config, name: str) -> list[Origin]:
    """Finds and opens the origins of stage `name`'s weights; reads none.

    Raises:
      UserError: a source that is absent, cannot be read, or does not fit the recipe.
    """
    if done := folder.started(config.stages[: config.stages.index(name)]):
        _check_finished(folder, done[-1], name)
        return [Origin(config.model.parts, done[-1], run=folder, stage=done[-1])]
    init = config.init
    own = {part: spec for part in config.model.parts if (spec := getattr(init, part))}
    rest = tuple(part for part in config.model.parts if part not in own)
    origins = [_find(init.model, rest, config, whole=True)] if init.model and rest else []
    return origins + [_find(spec, (part,), config) for part, spec in own.items()]


def _check_finished(folder: RunFolder, before: str, name: str) -> None:
    """Raises `UserError` if stage `name` would start from a stage that has not reached its last step."""
    if whole_steps(folder.checkpoints(name)) or is_finished(folder.checkpoints(before)):
        return
    steps = whole_steps(folder.checkpoints(before))
    reached = f"its newest checkpoint is of step {steps[-1]}" if steps else "it has no checkpoint"
    raise UserError(
        f"stage {name} starts from the result of stage {before}, which is not finished in {folder}: {reached}; finish "
        f"it with --resume, or start from that checkpoint in another --workdir with --config.init.model={folder}"
    )


def _find(spec: str, parts: tuple[str, ...], config: Config, *, whole: bool = False) -> Origin:
    run = RunFolder(spec)
    if run.has_begun:
        run.load_config()
        return Origin(parts, spec, run=run)
    source = open_source(spec)
    if whole and not set(config.model.parts) <= set(source.configs):
        have = list(source.configs)
        raise UserError(f"config.init.model = {spec!r} has only {', '.join(have)}; name it as config.init.{have[0]}")
    check_fit(source, config.model, parts, resize_vocab=config.init.resize_vocab)
    return Origin(parts, spec, source=source)


def check_tokenizer(origins: list[Origin], tokenizer: Any) -> None:
    """Checks that a decoder which comes from a run reads the ids that the recipe's tokenizer gives.

    Raises:
      UserError: its run has tokens that the recipe's tokenizer lacks, or with other ids.
    """
    ours = tokenizer.get_vocab()
    for origin in origins:
        if origin.run is None or origin.stage or "language" not in origin.parts:
            continue
        theirs = saved_tokenizer(origin.run.tokenizer, origin.run.load_config()).get_vocab()
        if differing := [token for token, id in theirs.items() if ours.get(token) != id]:
            raise UserError(
                f"the decoder is that of {origin.name}, and its tokenizer is not the recipe's: "
                f"{listed([repr(token) for token in differing])} have other ids or none; set config.tokenizer.source = "
                f'"{origin.name}"'
            )


def overridden_settings(origins: list[Origin], data: DataConfig) -> list[str]:
    """A line for each origin whose side files have settings that a stage with this data has otherwise."""
    lines = []
    for origin in origins:
        settings = _settings(origin) if "language" in origin.parts else {}
        if differing := overridden(settings, data):
            lines.append(f"not used of {origin.name}: {', '.join(differing)}")
    return lines


def _settings(origin: Origin) -> dict[str, Any]:
    if origin.source is not None:
        return settings_of_folder(origin.source)
    assert origin.run is not None
    stage = origin.run.load_config().stage.get(STAGE)
    return {} if stage is None else to_dict(stage.data)


def starting_params(origins: list[Origin], config: Config, layout: Layout) -> tuple[dict | None, list[str]]:
    """The weights that a stage starts from.

    Adapters of a run are continued if this stage has the same. If it has not, or if the objective has a reference (the
    start without adapters), they are merged into the weights.

    Args:
      origins: from `find_origins`.
      layout: of the stage; weights of Hugging Face's files are placed in its shardings and dtypes.

    Returns:
      nested dict of the parts that have an origin (None: no part has), and notes on the origins.

    Raises:
      UserError: tensors or checkpoints that do not fit the recipe.
    """
    params: dict = {}
    notes: list[str] = []
    for origin in origins:
        what = "weights" if origin.parts == config.model.parts else " and ".join(origin.parts)
        if origin.run is not None:
            found, stage, step = _of_run(origin, config, layout)
            notes.append(f"{what} from step {step} of {stage}" + (f" in {origin.run}" if not origin.stage else ""))
        else:
            assert origin.source is not None
            abstract = without_adapters(merge(layout.state.trained, layout.state.frozen))
            wanted = {part: abstract[part] for part in origin.parts}
            found = load_weights(origin.source, config.model, wanted, resize_vocab=config.init.resize_vocab)
            notes.append(f"{what} from {origin.name}")
        params |= found
    random = [part for part in config.model.parts if part not in params]
    if random:
        notes.append(f"{' and '.join(random)} from random numbers")
    return params or None, notes


def _of_run(origin: Origin, config: Config, layout: Layout) -> tuple[dict, str, int]:
    assert origin.run is not None
    mesh, rules, parts = layout.mesh, layout.rules, origin.parts
    params, stage, step = load_params(origin.run, config, mesh, rules, origin.stage, parts=parts)
    saved = _of_parts(origin.run.load_config().stage[stage].parts.adapters(), parts)
    if saved and (layout.reference is not None or saved != _of_parts(dict(layout.model.adapters), parts)):
        shardings = jax.tree.map(lambda x: x.sharding, without_adapters(params))
        fold = functools.partial(merge_adapters, adapters=saved)
        params = jax.jit(fold, out_shardings=shardings)(params)
    return params, stage, step


def _of_parts(adapters: dict[str, LoraConfig], parts: tuple[str, ...]) -> dict[str, LoraConfig]:
    return {part: lora for part, lora in adapters.items() if part in parts}
