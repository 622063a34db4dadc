"""Folders of PEFT to adapters and weights of ours.

Source: PEFT, `utils/save_and_load.py` (the names), `utils/other.py`, `ModulesToSaveWrapper` (a copy of a module that
replaces it); the original LLaVA, `llava/train/train.py`, `get_peft_state_non_lora_maybe_zero_3` (the projector's file).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import jax
import numpy as np

from jaxvlm.config import LoraConfig, ModelConfig
from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.adapters.fields import CONFIG_FILE, field_problems, looked_up, read_fields
from jaxvlm.weights.adapters.names import (
    BASE,
    WEIGHT_FILES,
    adapter_rules,
    module_name,
    one_of,
    projections,
    single_modules,
)
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.compare import without_copies
from jaxvlm.weights.reading import open_file
from jaxvlm.weights.rules import Rule, import_tensors
from jaxvlm.weights.spelling import Spelling, find_heads
from jaxvlm.weights.tensors import RenamedSource, TensorSource, as_source, listed

PROJECTOR_FILE = "non_lora_trainables.bin"  # of the original LLaVA, next to the adapters

_WEIGHT = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(default\.)?weight")


class Adapter(NamedTuple):
    """What a folder of PEFT changes of a model."""

    params: dict[str, Any]  # nested dict, float32: weights of adapters, and weights that replace the base model's
    adapters: dict[str, LoraConfig]  # by part
    added: dict[str, np.ndarray]  # path of a weight outside of the blocks -> float32, to add to the base model's

    @property
    def replaced(self) -> list[str]:
        """Paths of weights that are not the base model's; without the projector's, which `write_adapter` writes."""
        changed = [path for path in paths(self.params) if "/lora/" not in path] + list(self.added)
        return [path for path in changed if not path.startswith("projector/")]


class _Places(NamedTuple):
    """Where the tensors of a folder belong, by their names without `BASE`."""

    blocks: dict[str, dict[int, str]]  # path of each adapted projection of the blocks -> layer -> module
    singles: dict[str, tuple[Rule, str]]  # path of each adapted weight outside of the blocks -> its row, its module
    renamed: dict[str, str]  # name of a tensor of an adapter -> its name in the rows of `adapter_rules`, without BASE
    unknown: set[str]  # adapted modules that ours does not have
    whole: list[str]  # tensors that are of no adapter


def read_adapter(
    folder: Path,
    config: ModelConfig,
    names: AdapterNames,
    build: Callable[[Mapping[str, LoraConfig]], Mapping[str, Any]],
) -> Adapter:
    """Reads adapters written by PEFT, the original LLaVA or `write_adapter`.

    Their base may be the model in any spelling of its modules, or a decoder or an encoder alone. Adapters outside of
    the blocks, which ours cannot have, become weights to add. Weights that are saved as a whole (`modules_to_save`,
    `non_lora_trainables.bin`) are read, too.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors or adapter_model.bin.
      config: of the whole model.
      names: of the family's modules.
      build: (part -> LoRA settings) -> nested dict of the model's leaves with them, `build_model(...).abstract`.

    Returns:
      The weights, [layers, ...in..., rank] at `lora/a` and [layers, rank, ...out...] at `lora/b`, for example at
      `language/blocks/attention/q/lora/a`, and LoRA settings such that `build_model(config, adapters)` has these
      leaves. Their `targets` match exactly the adapted projections.

    Raises:
      UserError: absent, truncated or corrupt files. Everything that ours cannot express: fields that change the
        computation, other kinds of adapters, ranks that differ inside a part, stacks of which only some layers have an
        adapter, an embedding that is no longer the head of a model that ties them, weights of other modules. Tensors
        of wrong shapes.
    """
    values = read_fields(folder / CONFIG_FILE)
    tensors = {name.removeprefix(BASE): tensor for name, tensor in _read_tensors(folder).items()}
    places = _find_places(tensors, names, paths(build({})))
    whole, problems = places.whole, list[str]()
    if config.language.tie_embeddings:
        whole, problems = _without_tied_head(values, {name: tensors[name] for name in whole}, names)
    replaced = _replaced_rules(whole, names)
    known = {name: name for name in whole if any(_is_of(rule, name) for rule in replaced)}
    problems += [
        f"{x} is no weight of adapters, projector, encoder, embedding or head" for x in whole if x not in known
    ]

    adapters, faults = _adapters(values, places, list(projections(names)))
    problems = [*faults, *_place_problems(places, config), *problems]
    if problems:
        raise UserError(
            f"the adapter in {folder} cannot be used, {len(problems)} problems: {listed(problems, '; ')}; merge it "
            "into its base model with PEFT (merge_and_unload) and import that, or take another"
        )
    settings = {path: _settings(values, module) for path, (_, module) in places.singles.items()}
    source = RenamedSource(as_source(tensors), (places.renamed | known).get)
    try:
        flat = _load(source, places, replaced, settings, names, paths(build(adapters)))
    except UserError as error:
        raise UserError(f"the adapter in {folder} is of another model: {error}") from error
    added = {
        row.ours: _product(row, flat.pop(f"{path}/lora/a"), flat.pop(f"{path}/lora/b"), settings[path].scale)
        for path, (row, _) in places.singles.items()
    }
    return Adapter(from_paths(flat), adapters, added)


def _find_places(names_of_tensors: Iterable[str], names: AdapterNames, leaves: Mapping[str, Any]) -> _Places:
    """Where the tensors belong; `leaves` are those of the model, by path."""
    modules, rows = re.compile(names.module), projections(names)
    of_blocks = {(path.partition("/")[0], module_name(row)): path for path, row in rows.items()}
    singles = {module: row for module, row in single_modules(names).items() if row.ours in leaves}
    places = _Places({}, {}, {}, set(), [])
    for name in names_of_tensors:
        weight = _WEIGHT.fullmatch(name)
        if weight is None:
            places.whole.append(name)
            continue
        module = modules.fullmatch(weight["module"])
        part = "vision" if module and module["vision"] is not None else "language"
        if module is not None and (part, module["name"]) in of_blocks:
            path = of_blocks[part, module["name"]]
            places.blocks.setdefault(path, {})[int(module["layer"])] = weight["module"]
            hf = rows[path].hf.replace("{i}", module["layer"])
        elif weight["module"] in singles:
            row = singles[weight["module"]]
            places.singles[row.ours.removesuffix("/w")] = row, weight["module"]
            hf = row.hf
        else:
            places.unknown.add(weight["module"])
            continue
        places.renamed[name] = f"{hf.removesuffix('weight')}lora_{weight['side']}.weight"
    return places


def _place_problems(places: _Places, config: ModelConfig) -> list[str]:
    """Adapters of modules or layers that the model does not have, and layers without one."""
    problems = [
        f"{module} has an adapter; ours are on linear layers of the model, not on a head that is the embedding"
        for module in sorted(places.unknown)
    ]
    if not places.renamed:
        problems.append("no tensor is of an adapter of LoRA (lora_A.weight, lora_B.weight)")
    for path, layers in places.blocks.items():
        length = getattr(config, path.partition("/")[0]).num_layers
        if lacking := [str(i) for i in range(length) if i not in layers]:
            problems.append(f"{path}: of {length} layers, {', '.join(lacking)} have no adapter; ours have all or none")
        problems += [f"{layers[i]}: the model has {length} layers" for i in sorted(layers) if i >= length]
    return problems


def _without_tied_head(
    values: Mapping[str, Any], whole: Mapping[str, np.ndarray], names: AdapterNames
) -> tuple[list[str], list[str]]:
    """Names of weights for a model whose head is its embedding, and faults if the adapter has made them two.

    PEFT replaces either module by a copy: the other keeps the base model's values unless `ensure_weight_tying` is set.
    """
    heads = find_heads(whole, names.known)
    kept = list(without_copies(as_source(whole), names.known, ()))
    problems = [
        f"{name} is not the embedding; the base model ties its head to it, and so do ours"
        for name in kept
        if name in heads
    ]
    saved = values["modules_to_save"] if isinstance(values["modules_to_save"], list) else []
    prefixes, marker = names.known["language"]
    for name in (prefix + marker for prefix in prefixes if prefix + marker in kept):
        alone = len(kept) == len(whole) and not problems and not values.get("ensure_weight_tying")
        if alone and any(f".{module}." in f".{name}" for module in saved):
            problems.append(f"{name} replaces the embedding alone; the base model ties its head to it, and so do ours")
    return [name for name in kept if name not in heads], problems


def _replaced_rules(whole: Iterable[str], names: AdapterNames) -> list[Rule]:
    """The rows, in the folder's spelling, of weights that are saved as a whole; all rows of a projector."""
    found: list[Rule] = []
    for part, (prefixes, _) in names.known.items():
        for prefix in prefixes:
            rules = names.rules(Spelling(**{part: prefix}))
            saved = [rule for rule in rules if any(_is_of(rule, name) for name in whole)]
            found += rules if saved and part == "projector" else saved
    return found


def _is_of(rule: Rule, name: str) -> bool:
    """Whether a tensor is of a row."""
    start, _, end = rule.hf.partition("{i}")
    return name == rule.hf or (
        rule.stacked and re.fullmatch(rf"{re.escape(start)}\d+{re.escape(end)}", name) is not None
    )


def _adapters(
    values: Mapping[str, Any], places: _Places, projections: Sequence[str]
) -> tuple[dict[str, LoraConfig], list[str]]:
    """Part -> LoRA settings, and the faults of the fields; none are looked up in faulty fields."""
    if problems := field_problems(values):
        return {}, problems
    adapters, found = {}, places.blocks
    absent = [x for x in values["modules_to_save"] or () if not any(f".{x}." in f".{y}" for y in places.whole)]
    problems = [f"modules_to_save has {module!r}, which has no tensor" for module in absent]
    for part in sorted({path.partition("/")[0] for path in found}, key=("vision", "language").index):
        adapted = [path for path in projections if path in found and path.startswith(f"{part}/")]
        sizes: dict[tuple[int, float], list[str]] = {}
        for module in (module for path in adapted for module in found[path].values()):
            one = _settings(values, module)
            sizes.setdefault((one.rank, one.alpha), []).append(module)
        if len(sizes) > 1:
            given = "; ".join(f"r={r}, alpha={alpha:g} for {listed(modules)}" for (r, alpha), modules in sizes.items())
            problems.append(f"rank_pattern and alpha_pattern differ inside {part}, ours have one of each: {given}")
            continue
        (rank, alpha) = next(iter(sizes))
        everything = [path.partition("/")[2] for path in projections if path.startswith(f"{part}/")]
        names = [path.partition("/")[2] for path in adapted]
        targets = "blocks/.*" if names == everything else one_of(names, "/")
        adapters[part] = LoraConfig(rank, alpha, values["lora_dropout"], targets, bool(values["use_rslora"]))
    return adapters, problems


def _settings(values: Mapping[str, Any], module: str) -> LoraConfig:
    """The settings of one module's adapter; ranks and alphas are looked up as in PEFT."""
    rank = looked_up(values["rank_pattern"], module, values["r"])
    alpha = looked_up(values["alpha_pattern"], module, values["lora_alpha"])
    return LoraConfig(rank, alpha, values["lora_dropout"], rslora=bool(values["use_rslora"]))


def _load(
    source: TensorSource,
    places: _Places,
    replaced: Sequence[Rule],
    settings: Mapping[str, LoraConfig],
    names: AdapterNames,
    leaves: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Path -> float32, all that the folder has.

    Args:
      source: the tensors, those of adapters under the names of `adapter_rules`.
      settings: of the adapters outside of the blocks, by path.
      leaves: of the model with its adapters, by path.
    """
    wanted = {path: leaf for path, leaf in leaves.items() if "/lora/" in path}
    wanted |= {rule.ours: leaves[rule.ours] for rule in replaced if rule.ours in leaves}
    rows = [row for path, row in projections(names).items() if path in places.blocks]
    for path, (row, _) in places.singles.items():
        out, inner = row.pattern.split("->")[0].split()
        sizes = dict(zip(row.pattern.split("->")[1].split(), leaves[row.ours].shape, strict=True))
        shapes = {"a": (sizes[inner], settings[path].rank), "b": (settings[path].rank, sizes[out])}
        wanted |= {f"{path}/lora/{side}": jax.ShapeDtypeStruct(x, np.float32) for side, x in shapes.items()}
        rows.append(row)
    rules = [rule for row in rows for rule in adapter_rules(row)]
    rules = [*(dataclasses.replace(rule, hf=rule.hf.removeprefix(BASE)) for rule in rules), *replaced]
    params = import_tensors(rules, source, from_paths(wanted), names.sizes, progress=False)
    return {path: x.astype(np.float32) for path, x in paths(params).items()}


def _product(row: Rule, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """What an adapter adds to the weight of a row: a float32[in, rank], b float32[rank, out]."""
    return einops.rearrange(scale * (a @ b).T, row.pattern)


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of adapters and projector."""
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no weights of adapters; looked for {', '.join(WEIGHT_FILES)}")
    tensors = _read_file(file)
    other = folder / PROJECTOR_FILE
    more = _read_file(other) if other.is_file() else {}
    if twice := sorted(set(tensors) & set(more)):
        raise UserError(f"{listed(twice)} are in both {file} and {other}; keep one of each")
    return tensors | more


def _read_file(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(open_file(path))
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
