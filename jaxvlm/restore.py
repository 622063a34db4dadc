"""Restores the weights of a run, for inference, export, or another stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxvlm import processes
from jaxvlm.config import Config, MeshConfig, ModelConfig, StageConfig
from jaxvlm.data.recipe_tokenizer import saved_tokenizer
from jaxvlm.errors import UserError, out_of_memory
from jaxvlm.families.build import build_model, stage_model
from jaxvlm.models.vlm import Model
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.checkpoint_files import whole_steps
from jaxvlm.training.state import Layout, merge, state_layout
from jaxvlm.trees import paths
from jaxvlm.weights.source import part_differences


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with its weights: of a run, or of sources that `source_model` opened."""

    folder: Path  # of the run, or of the decoder's source
    config: Config
    stage_name: str
    stage: StageConfig  # the stage whose weights these are; its data settings are used for inference
    step: int
    model: Model
    params: dict  # of jax.Array on `mesh`
    tokenizer: Any
    mesh: Mesh
    rules: Rules


def open_run(folder: Path, *, stage: str = "", step: int = 0, keep_dtypes: bool = False) -> Run:
    """Opens a run with the weights that `load_params` finds, on all local devices, whatever it was trained on."""
    run = RunFolder(folder)
    config = run.load_config()
    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1)), Rules()
    params, name, found = load_params(run, config, mesh, rules, stage, step, keep_dtypes=keep_dtypes)
    tokenizer, settings = saved_tokenizer(run.tokenizer, config), config.stage[name]
    return Run(folder, config, name, settings, found, stage_model(config, settings), params, tokenizer, mesh, rules)


def load_params(
    run: RunFolder,
    config: Config,
    mesh: Mesh,
    rules: Rules,
    stage: str = "",
    step: int = 0,
    *,
    parts: tuple[str, ...] | None = None,
    keep_dtypes: bool = False,
) -> tuple[dict, str, int]:
    """The weights of a run: of `stage` and `step`, or of the last stage that has a checkpoint and its newest.

    Args:
      config: the model to build; it may differ from the run's where the weights stay the same.
      parts: parts to read; None: all.
      keep_dtypes: whether they have the dtypes they were saved in, not those they are trained in.

    Returns:
      the nested dict of the whole model on `mesh`, the stage and the step of the checkpoint.

    Raises:
      UserError: no such checkpoint, a corrupt one, or one of another model than `config.model`.
    """
    saved = run.load_config()
    if stage and stage not in saved.stages:
        raise UserError(f'{run} has no stage "{stage}"; it has {", ".join(saved.stages)}')
    wanted = parts or config.model.parts
    whole = wanted == config.model.parts == saved.model.parts
    if config.model != saved.model and not whole:
        config = _with_saved_parts(run, saved, config, wanted)
    found = {name: _saved_steps(run, name) for name in ([stage] if stage else reversed(saved.stages))}
    for name, steps in found.items():
        if steps and (not step or step in steps):
            layout = state_layout(stage_model(config, saved.stage[name]), saved.stage[name], 1, mesh, rules)
            chosen = step or steps[-1]
            return _read(run.checkpoints(name), chosen, layout, parts, keep_dtypes=keep_dtypes), name, chosen
    kept = "; ".join(f"{name}: {', '.join(map(str, steps)) or 'none'}" for name, steps in found.items())
    raise UserError(f"{run} has no checkpoint{f' of step {step}' if step else ''}; steps that it has: {kept}")


def _with_saved_parts(run: RunFolder, saved: Config, config: Config, parts: tuple[str, ...]) -> Config:
    """The config with the run's model, of which only `parts` are read, such as the encoder of another decoder's model.

    Raises:
      UserError: it has not all of `parts`, or one of other sizes.
    """
    if lacking := [part for part in parts if part not in saved.model.parts]:
        raise UserError(
            f'{run} is a run of the family "{saved.model.family}" and has no {" and no ".join(lacking)}; name it as '
            f"{' or '.join(f'config.init.{part}' for part in saved.model.parts)}, and another source for the rest"
        )
    problems = [
        difference
        for part in parts
        for difference in part_differences(part, getattr(config.model, part), getattr(saved.model, part)).values()
    ]
    if problems := problems or _other_shapes(saved.model, config.model, parts):
        raise UserError(f"{run} is not what the recipe describes: {'; '.join(problems)}")
    return dataclasses.replace(config, model=saved.model)


def _other_shapes(saved: ModelConfig, now: ModelConfig, parts: tuple[str, ...]) -> list[str]:
    """Weights of `parts` whose shapes follow from other parts, as a projector's do, and differ."""
    there, here = (paths(build_model(model).abstract) for model in (saved, now))
    return [
        f"{path} is {there[path].shape}, here {leaf.shape}"
        for path, leaf in here.items()
        if path.partition("/")[0] in parts and there[path].shape != leaf.shape
    ]


def _read(folder: Path, step: int, layout: Layout, parts: tuple[str, ...] | None, *, keep_dtypes: bool) -> dict:
    checkpoints, state = Checkpoints(folder), layout.state
    try:
        read = checkpoints.restore_params(state.trained, state.frozen, step, parts=parts, keep_dtypes=keep_dtypes)
    except UserError:
        raise
    except Exception as error:  # each layer below raises its own types
        if out_of_memory(error):
            raise
        raise UserError(
            f"the checkpoint {folder / str(step)} is damaged ({type(error).__name__}: {str(error)[:500]}); move it "
            "away to use the one before it, from which train --resume continues"
        ) from error
    finally:
        checkpoints.close()
    return merge(*read)


def _saved_steps(run: RunFolder, stage: str) -> list[int]:
    return processes.from_first(lambda: whole_steps(run.checkpoints(stage)))
