"""A run's folder: what `train` leaves and the other commands open.

config.json       the resolved recipe            metrics.jsonl, tensorboard/, loss.png   curves
tokenizer/        as transformers saves one      ledger.json       what became of every record, by stage
checkpoints/STAGE/STEP/                          evaluation.json, samples.png            the final test
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxvlm import processes
from jaxvlm.config import Config, DataConfig, MeshConfig, StageConfig, to_dict
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.sources.mix import load_mix
from jaxvlm.data.text.tokenizer import load_tokenizer, training_texts
from jaxvlm.errors import UserError, out_of_memory
from jaxvlm.families.build import build_model
from jaxvlm.families.registry import resolve
from jaxvlm.files import replace_text
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import Checkpoints, whole_steps
from jaxvlm.training.state import merge, state_layout

# Options that may change on resume, as patterns of whole paths: a stage may have any name, "mesh" too.
_FREE = re.compile(
    r"config\.(mesh\..+|evaluation\..+|profile|model\.(compute_dtype|remat)|stage\.[^.]+\.("
    r"frozen_dtype|micro_batches|compiler_options|log_every|eval_every|eval_records|checkpoint_every|keep_checkpoints|"
    r"on_nonfinite|nonfinite_limit|data\.(workers|on_bad)))"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready to answer."""

    folder: Path
    config: Config
    stage_name: str
    stage: StageConfig  # the stage whose weights these are; its data settings are those to answer with
    step: int
    model: Model
    params: dict  # of jax.Array on `mesh`
    tokenizer: Any
    mesh: Mesh
    rules: Rules


def stage_folder(folder: Path, stage: str) -> Path:
    """Where a stage's checkpoints are."""
    return folder / "checkpoints" / stage


def check_stage(config: Config, name: str, recipe: str) -> None:
    """Raises `UserError` unless the recipe, a file, has a stage called `name`."""
    if name not in config.stages:
        raise UserError(f"--stage {name}: {recipe} has the stages {', '.join(config.stages)}")


def check_trains(stage: StageConfig, name: str) -> None:
    """Raises `UserError` if every part of a stage is frozen, or a policy is unknown."""
    stage.parts.adapters()
    if set(dataclasses.asdict(stage.parts).values()) == {"frozen"}:
        raise UserError(
            f"every part is frozen; set one of config.stage.{name}.parts.vision, parts.projector, parts.language "
            'to "full"'
        )


def check_batch_size(stage: StageConfig, name: str, devices: int) -> None:
    """Raises `UserError` unless the rows of a micro-batch divide over the devices that share them."""
    pieces = stage.micro_batches * devices
    if stage.global_batch_size % pieces:
        nearest = -(-stage.global_batch_size // pieces) * pieces
        raise UserError(
            f"global_batch_size {stage.global_batch_size} does not divide over {stage.micro_batches} micro-batches "
            f"and {devices} data devices; use a multiple of {pieces} (--config.stage.{name}.global_batch_size="
            f"{nearest}), or give devices to config.mesh.tensor"
        )


def has_begun(folder: Path) -> bool:
    """Whether any stage has started; before that a workdir holds nothing worth keeping."""
    return (folder / "checkpoints").exists()


def save_config(folder: Path, config: Config) -> None:
    """Writes the resolved recipe."""
    replace_text(folder / "config.json", json.dumps(to_dict(config), indent=1) + "\n")


def load_saved_config(folder: Path) -> Config:
    """The resolved recipe of a run.

    Raises:
      UserError: the folder is no run, or its recipe cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it has no config.json; pass the --workdir of a train command"
        )
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); mend it, or start a new run in another folder") from error
    return resolve(saved, str(path))


def differing_keys(saved: Config, now: Config) -> list[str]:
    """`key: old -> new` for every value that a resumed run must not change."""
    old, new = all_keys(saved), all_keys(now)
    names = sorted(old.keys() | new.keys())
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in names
        if old.get(name) != new.get(name) and not _FREE.fullmatch(name)
    ]


def all_keys(config: Config) -> dict[str, Any]:
    """Every value of a recipe by its key, such as `config.model.language.embed_dim`."""
    return dict(_leaves(to_dict(config)))


def _leaves(tree: Any, prefix: str = "config"):
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}")
    else:
        yield prefix, json.loads(json.dumps(tree))


def build_tokenizer(config: Config) -> Any:
    """The tokenizer that a recipe names, or trains on what its stages read.

    Raises:
      UserError: the tokenizer has more tokens than the model.
    """
    tokenizer = load_tokenizer(config.tokenizer, _texts(config) if config.tokenizer.source == "train" else None)
    if len(tokenizer) > config.model.language.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model room for {config.model.language.vocab_size}; "
            f"set config.model.language.vocab_size to {len(tokenizer)} or more"
        )
    return tokenizer


def _texts(config: Config) -> Iterator[str]:
    """What a tokenizer of the recipe's own learns from: the text of all stages, since all must be short in it."""
    for name in config.stages:
        data = config.stage[name].data
        yield from training_texts(_records(data), data.template, data.system)


def _records(data: DataConfig) -> Iterator[Record]:
    """The records that can be read; the index names the others."""
    source = load_mix(data)
    for index in range(len(source)):
        with contextlib.suppress(RecordError):
            yield source[index]


def saved_tokenizer(folder: Path, config: Config) -> Any:
    """The tokenizer that a run saved."""
    return load_tokenizer(dataclasses.replace(config.tokenizer, source=str(folder / "tokenizer")))


def stage_model(config: Config, stage: StageConfig) -> Model:
    """The model of a stage: the recipe's, with the adapters that the stage trains."""
    return build_model(config.model, stage.parts.adapters())


def load_params(
    folder: Path,
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
      parts: those to read; None: all.
      keep_dtypes: whether they have the dtypes they were saved in, not those they are trained in.

    Returns:
      the nested dict of the whole model on `mesh`, the stage and the step it is of.

    Raises:
      UserError: no such checkpoint, a damaged one, or one of another model than `config.model`.
    """
    saved = load_saved_config(folder)
    if stage and stage not in saved.stages:
        raise UserError(f'{folder} has no stage "{stage}"; it has {", ".join(saved.stages)}')
    found = {name: _saved_steps(folder, name) for name in ([stage] if stage else reversed(saved.stages))}
    for name, steps in found.items():
        if steps and (not step or step in steps):
            layout = state_layout(stage_model(config, saved.stage[name]), saved.stage[name], 1, mesh, rules)
            found_step = step or steps[-1]
            checkpoints = Checkpoints(stage_folder(folder, name))
            state = layout.state
            try:
                read = checkpoints.restore_params(
                    state.trained, state.frozen, found_step, parts=parts, keep_dtypes=keep_dtypes
                )
            except UserError:
                raise
            except Exception as error:  # every layer below has its own
                if out_of_memory(error):
                    raise
                raise UserError(
                    f"the checkpoint {checkpoints.folder / str(found_step)} is damaged ({type(error).__name__}: "
                    f"{str(error)[:500]}); move it away to use the one before it, from which train --resume goes on"
                ) from error
            finally:
                checkpoints.close()
            return merge(*read), name, found_step
    kept = "; ".join(f"{name}: {', '.join(map(str, steps)) or 'none'}" for name, steps in found.items())
    raise UserError(f"{folder} has no checkpoint{f' of step {step}' if step else ''}; steps that it has: {kept}")


def _saved_steps(folder: Path, stage: str) -> list[int]:
    return processes.from_first(lambda: whole_steps(stage_folder(folder, stage)))


def open_run(folder: Path, *, stage: str = "", step: int = 0, keep_dtypes: bool = False) -> Run:
    """Opens the weights that `load_params` finds, on all devices that are here, however many the run was trained on."""
    config = load_saved_config(folder)
    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1)), Rules()
    params, name, found = load_params(folder, config, mesh, rules, stage, step, keep_dtypes=keep_dtypes)
    tokenizer = saved_tokenizer(folder, config)
    settings = config.stage[name]
    return Run(folder, config, name, settings, found, stage_model(config, settings), params, tokenizer, mesh, rules)
