"""Makes one model of Hugging Face folders, GGUF files and adapters: settings from small files, then the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base
from jaxvlm.config import PARTS, Config, ModelConfig
from jaxvlm.data.recipe_tokenizer import check_vocab
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model, stage_model
from jaxvlm.families.registry import codec, resolve
from jaxvlm.families.sources import open_source
from jaxvlm.imported_settings import STAGE, side_settings, source_tokenizer
from jaxvlm.processes import log
from jaxvlm.restore import Run
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.state import Layout, merge, state_layout
from jaxvlm.trees import from_paths, map_paths, paths
from jaxvlm.weights.adapters.fields import CONFIG_FILE, check_base
from jaxvlm.weights.adapters.reading import Adapter, read_adapter
from jaxvlm.weights.codec import AdapterNames, WeightSource
from jaxvlm.weights.hub import find_source
from jaxvlm.weights.source import load_weights
from jaxvlm.weights.tensors import listed, overflows


@dataclasses.dataclass(frozen=True)
class SourceModel:
    """A model without its weights, as its sources describe it."""

    sources: tuple[WeightSource, ...]
    owners: Mapping[str, WeightSource]  # part -> the source that has it
    tokenizer: Any
    config: Config  # of a run whose only stage, `STAGE`, has all parts frozen, or with the adapter's low-rank weights
    notes: tuple[str, ...]  # which settings were taken from the files, and which were not
    adapter: Adapter = Adapter({}, {}, {})

    @property
    def missing(self) -> list[str]:
        """Parts of the model that no source has, and not the adapter either."""
        whole = {path.partition("/")[0] for path in paths(self.adapter.params) if "/lora/" not in path}
        return sorted(set(self.config.model.parts) - set(self.owners) - whole)


def read_sources(specs: Sequence[str], template: str | None = None, adapter: str | None = None) -> SourceModel:
    """Opens sources: reads their small files, and only names and shapes of their weights.

    Args:
      specs: folders, GGUF files or names on the hub; together they have at least a decoder.
      template: of conversations; None: the decoder's own chat template.
      adapter: folder or hub name of adapters of these weights, in PEFT's form.

    Raises:
      UserError: one cannot be opened, two have the same part, an encoder or a decoder is missing, the tokenizer does
        not fit the decoder, or the adapter does not fit the model.
    """
    if runs := [spec for spec in specs if RunFolder(spec).has_begun]:
        raise UserError(
            f"--from takes a Hugging Face folder, a GGUF file or a name on the hub; {runs[0]} is a run, which "
            "`generate --run` and a recipe's init.model open as it is"
        )
    if adapters := [
        spec for spec in specs if (Path(spec) / CONFIG_FILE).is_file() and not (Path(spec) / "config.json").exists()
    ]:
        raise UserError(
            f"--from {adapters[0]} has only adapters ({CONFIG_FILE}); pass it as --adapter {adapters[0]}, and with "
            "--from the model that they were made for"
        )
    sources = tuple(open_source(spec) for spec in specs)
    owners = _owners(sources)
    tokenizer = source_tokenizer(owners["language"])
    config, notes = _config(owners, tokenizer, template)
    check_vocab(tokenizer, config.model.language.vocab_size, owners["language"].spec)
    found = SourceModel(sources, owners, tokenizer, config, tuple(notes))
    return _adapted(found, adapter) if adapter else found


def open_model(found: SourceModel) -> Run:
    """Loads the weights on all local devices: the model that `open_run` gives of the same sources, imported.

    Returns:
      the model; its `folder` is the decoder's source.

    Raises:
      UserError: a part is in no source, or tensors do not fit the model.
    """
    if found.missing:
        raise UserError(
            f"no --from has a {' or a '.join(found.missing)}, and with random weights there the answers would mean "
            "nothing; add the source that has it, or train it: `python -m jaxvlm.convert import` makes a run to start "
            "from"
        )
    layout = imported_layout(found.config)
    params = load_sources(found, layout)
    config, notes = wide_enough(found.config, params)
    log(*notes)
    stage = config.stage[STAGE]
    leaves, frozen_dtype = paths(merge(layout.state.trained, layout.state.frozen)), np.dtype(stage.frozen_dtype)

    def cast(path: str, x: Any) -> jax.Array:
        # On the host, where values too small for a normal number are rounded as a checkpoint's reader does.
        dtype = x.dtype if "/lora/" in path else frozen_dtype
        is_placed = isinstance(x, jax.Array) and x.dtype == dtype
        return x if is_placed else jax.device_put(np.asarray(x).astype(dtype), leaves[path].sharding)

    params, path = map_paths(cast, params), found.owners["language"].path
    return Run(path, config, STAGE, stage, 0, layout.model, params, found.tokenizer, layout.mesh, layout.rules)


def imported_layout(config: Config) -> Layout:
    """The layout of an imported run's only stage, on all local devices."""
    stage = config.stage[STAGE]
    return state_layout(stage_model(config, stage), stage, 1, make_mesh(config.mesh), Rules())


def load_sources(found: SourceModel, layout: Layout) -> dict[str, Any]:
    """The weights of all sources, each in its own dtype, in the shardings of `layout`; and of the adapter, in NumPy.

    Raises:
      UserError: tensors that do not fit the model.
    """
    params: dict[str, Any] = {}
    for source in found.sources:
        wanted = {part: layout.state.frozen[part] for part in source.configs}
        params |= load_weights(source, found.config.model, wanted, keep_dtypes=True)
    flat = paths(params) | paths(found.adapter.params)
    merged = {path: np.asarray(flat[path], np.float32) + x for path, x in found.adapter.added.items()}
    return from_paths(flat | merged)


def adapter_names(config: ModelConfig) -> AdapterNames:
    """How PEFT calls the modules of a model.

    Raises:
      UserError: its family has no such names.
    """
    names = codec(config.family).adapters
    if names is None:
        raise UserError(f'family "{config.family}" has no form for PEFT; merge adapters into the weights instead')
    return names(config)


def _adapted(found: SourceModel, spec: str) -> SourceModel:
    """The model with the adapters of a folder."""
    folder, config = find_source(spec), found.config
    names = adapter_names(config.model)
    adapter = read_adapter(folder, config.model, names, lambda parts: build_model(config.model, parts).abstract)
    if "projector" not in found.owners and any(path.startswith("projector/") for path in adapter.added):
        raise UserError(f"{folder} has adapters of a projector, and no --from has a projector; add the base model")
    stage = config.stage[STAGE]
    lora = dataclasses.replace(stage.parts.lora, **adapter.adapters)
    parts = dataclasses.replace(stage.parts, lora=lora, **dict.fromkeys(adapter.adapters, "lora"))
    config = dataclasses.replace(config, stage={STAGE: dataclasses.replace(stage, parts=parts)})
    notes = [f"note: {note}" for note in check_base(folder, [source.spec for source in found.sources])]
    return dataclasses.replace(found, config=config, adapter=adapter, notes=(*found.notes, *notes))


def wide_enough(config: Config, params: dict) -> tuple[Config, list[str]]:
    """A run is opened in one dtype: float32 where the decoder's float16 cannot hold all values; and a line about it."""
    stage = config.stage[STAGE]
    if stage.frozen_dtype != "float16":
        return config, []
    wide = {path: np.asarray(x) for path, x in paths(params).items() if x.dtype != np.float16}
    with np.errstate(over="ignore"):
        beyond = [path for path, x in wide.items() if overflows(x, x.astype(np.float16))]
    if not beyond:
        return config, []
    config = dataclasses.replace(config, stage={STAGE: dataclasses.replace(stage, frozen_dtype="float32")})
    return config, [f"opened in float32: {listed(beyond)} have values beyond the decoder's float16"]


def _owners(sources: Sequence[WeightSource]) -> dict[str, WeightSource]:
    """Part -> the source that has it."""
    owners: dict[str, WeightSource] = {}
    for source in sources:
        for part in source.configs:
            if part in owners:
                raise UserError(
                    f"--from {owners[part].spec} and --from {source.spec} both have a {part}; leave one out"
                )
            owners[part] = source
    missing = [part for part in ("vision", "language") if part not in owners]
    if missing and set(owners) != {"language"}:  # a decoder alone is a model, too
        raise UserError(
            f"no --from has a {' or a '.join(missing)}: add one, such as a CLIP folder next to a LLaMA folder; "
            "a recipe can take one part alone (config.init.vision, config.init.language)"
        )
    return owners


def _config(owners: Mapping[str, WeightSource], tokenizer: Any, template: str | None) -> tuple[Config, list[str]]:
    """The recipe of an imported run, and lines about the settings of the folder."""
    is_text = set(owners) == {"language"}
    c, stage = (base.text_config(), base.text_stage()) if is_text else (base.get_config(), base.stage())
    if named := next((source for source in owners.values() if source.family), None):
        if named.model:  # options of its own, and not those of the base recipe's images
            stage.data.media = ConfigDict()
            del c.model.vision, c.model.projector
        c.model.update({"family": named.family, **named.model})
    for part, source in owners.items():
        c.model[part] = dataclasses.asdict(source.configs[part])
    language = owners["language"]
    c.tokenizer.source = str(language.path)
    stage.parts.update({part: "frozen" for part in PARTS if part in stage.parts})
    dtype = language.pieces[0].tensors.dtype
    stage.frozen_dtype = str(dtype)
    c.model.compute_dtype = "float32" if dtype == np.float32 else "bfloat16"
    settings, notes = side_settings(language, tokenizer, template)
    c.generation.update(settings.pop("generation", {}))
    stage.data.update(settings)
    c.stages, c.stage[STAGE] = (STAGE,), stage
    return resolve(c.to_dict()), notes
