"""Adapters as PEFT folders: `adapter_config.json` with their settings, `adapter_model.safetensors` with the weights.

Names, groups of axes and the layers of each adapter follow the row of the weight that it adapts: of

    Rule("...layers.{i}.self_attn.q_proj.weight", "language/blocks/attention/q/w", "(N H) D -> D N H")

come the rows of `...q_proj.lora_A.weight` ("R D -> D R") and `...q_proj.lora_B.weight` ("(N H) R -> R N H").

Source: PEFT, `tuners/lora/config.py` (the fields), `utils/save_and_load.py` (the names), `utils/other.py`,
`get_pattern_key` (how a pattern finds a module); the original LLaVA, `llava/train/train.py`,
`get_peft_state_non_lora_maybe_zero_3` (the projector's file).
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from jaxvlm.config import LoraConfig, ModelConfig
from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.adapter_fields import CONFIG_FILE, field_problems, looked_up, read_fields
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.reading import open_file
from jaxvlm.weights.rules import Rule, export_tensors, import_tensors, prefixed
from jaxvlm.weights.spelling import Spelling, find_spelling
from jaxvlm.weights.tensors import RenamedSource, as_source, listed
from jaxvlm.weights.writing import write_tensors

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the first that exists is read
PROJECTOR_FILE = "non_lora_trainables.bin"  # of the original LLaVA, next to them

_BASE = "base_model.model."  # PEFT's wrapper module

_WEIGHT = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(default\.)?weight")

_REPLACED = ("language/embed/w", "language/head/w")  # weights that `modules_to_save` may have besides the projector


class Adapter(NamedTuple):
    """What a folder of PEFT changes of a model."""

    params: dict[str, Any]  # nested dict, float32: weights of adapters, and weights that replace the base model's
    adapters: dict[str, LoraConfig]  # by part
    added: dict[str, np.ndarray]  # path of a projector's weight -> float32, to add to the base model's

    @property
    def replaced(self) -> list[str]:
        """Paths of the base model's weights that it replaces, without the projector's."""
        return [path for path in _REPLACED if path in paths(self.params)]


def write_adapter(
    folder: Path,
    params: Mapping[str, Any],
    abstract: Mapping[str, Any],
    names: AdapterNames,
    adapters: Mapping[str, LoraConfig],
    *,
    base_model: str,
    projector: bool,
) -> list[str]:
    """Writes the adapters of a model in PEFT's format for the family's class of transformers.

    `PeftModel.from_pretrained(model, folder)` reads them. Each weight keeps its dtype.

    Args:
      folder: exists; its `adapter_config.json` and `adapter_model.safetensors` are replaced.
      params: nested dict of the whole model, NumPy or `jax.Array` leaves; at `lora/a` float[layers, ...in..., rank], at
        `lora/b` float[layers, rank, ...out...].
      abstract: nested dict of the whole model's leaves, `build_model(config, adapters).abstract`.
      names: of the family's modules.
      adapters: part -> LoRA settings.
      base_model: folder or hub name of the base model, for readers of the folder; may be empty.
      projector: whether the projector is written, too, as a module that replaces the base model's.

    Returns:
      Notes on what the format cannot express.

    Raises:
      UserError: every leaf that is missing, of another shape or of no adapter; adapters on anything but the projections
        of blocks; parts that differ in `rslora`, of which PEFT has one for all; a disk that is too small.
    """
    rows, flat = _projections(names), paths(params)
    wanted = _chosen(abstract, projector=projector)
    problems = [] if adapters else ["there are no adapters"]
    for path, leaf in wanted.items():
        place, _, weight = path.rpartition("/lora/")
        if place and place not in rows:
            if weight == "a":
                problems.append(f"{place} is not a projection of a block; adapt only those (targets)")
        elif path not in flat:
            problems.append(f"{path} {leaf.shape} is missing")
        elif tuple(flat[path].shape) != leaf.shape:
            problems.append(f"{path} is {tuple(flat[path].shape)}, expected {leaf.shape}")
    problems += [f"{path} has no adapter in the config" for path in flat if "/lora/" in path and path not in wanted]
    if len({lora.rslora for lora in adapters.values()}) > 1:
        given = ", ".join(f"{part}: rslora={lora.rslora}" for part, lora in adapters.items())
        problems.append(f"PEFT has one rslora for all parts, not {given}; merge them into the weights instead")
    if problems:
        raise UserError(f"adapters cannot be written, {len(problems)} problems: {listed(problems, '; ')}")

    adapted = [row for path, row in rows.items() if f"{path}/lora/a" in wanted]
    rules = [rule for row in adapted for rule in _adapter_rules(row)]
    rules += prefixed(_projector_rules(names, names.spelling.projector), _BASE, "")
    chosen = from_paths({path: flat[path] for path in wanted})
    with tempfile.TemporaryDirectory(dir=folder) as new:
        write_tensors(Path(new), export_tensors(rules, chosen, names.sizes), shard_bytes=sys.maxsize)
        (Path(new) / "model.safetensors").replace(folder / WEIGHT_FILES[0])
    values, notes = _peft_config(adapted, adapters, names.spelling)
    values["base_model_name_or_path"] = base_model or None
    values["modules_to_save"] = [names.projector] if projector else None
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return notes


def _peft_config(
    adapted: Sequence[Rule], adapters: Mapping[str, LoraConfig], spelling: Spelling
) -> tuple[dict[str, Any], list[str]]:
    """The fields of PEFT's `LoraConfig` that all its versions know, and notes on what they cannot express."""
    parts = list(adapters)
    main = "language" if "language" in parts else parts[0]
    lora, notes = adapters[main], []
    ranks, alphas = {}, {}
    for part, other in adapters.items():
        # PEFT before 0.14 finds a pattern only after a dot, so it cannot begin with the whole name.
        pattern = re.escape(getattr(spelling, part).removeprefix("model.")) + ".*"
        if other.rank != lora.rank:
            ranks[pattern] = other.rank
        if other.alpha != lora.alpha:
            alphas[pattern] = _number(other.alpha)
        if other.dropout != lora.dropout:
            notes.append(f"PEFT has one dropout for all parts: {lora.dropout} of {main}, not {other.dropout} of {part}")
    # Whole paths: encoder and decoder have modules with equal names, such as q_proj.
    stacks: dict[str, list[str]] = {}
    for row in adapted:
        stacks.setdefault(row.hf.partition("{i}.")[0], []).append(_module_name(row))
    modules = [re.escape(stack) + r"\d+\." + _one_of(names, ".") for stack, names in stacks.items()]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": _either(modules),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "auto_mapping": None,
        "revision": None,
    }
    return values, notes


def read_adapter(
    folder: Path,
    config: ModelConfig,
    names: AdapterNames,
    build: Callable[[Mapping[str, LoraConfig]], Mapping[str, Any]],
) -> Adapter:
    """Reads adapters written by PEFT, the original LLaVA or `write_adapter`.

    Their base may be the model in any spelling of its modules, or a decoder or an encoder alone. The projector is
    read, too, if the folder has one: among the adapters (`modules_to_save`) or in `non_lora_trainables.bin`; so are
    embedding and head. Adapters of the projector, which ours cannot have, are to be added to its weights.

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
        adapter, adapters outside of blocks, weights of other modules. Tensors of wrong shapes.
    """
    values, rows = read_fields(folder / CONFIG_FILE), _projections(names)
    tensors = {name.removeprefix(_BASE): tensor for name, tensor in _read_tensors(folder).items()}
    found, renamed, others, homeless = _places(tensors, rows, re.compile(names.module))
    spelling = find_spelling(others, names.known)
    start = spelling.projector.partition("{")[0] if spelling.projector else ""
    replaced = [rule for rule in _decoder_rules(names, spelling) if rule.hf in others]
    renamed |= {name: name for name in others if start and name.startswith(start)}
    renamed |= {rule.hf: rule.hf for rule in replaced}

    adapters: dict[str, LoraConfig] = {}
    added: dict[str, np.ndarray] = {}
    problems = field_problems(values)
    if not problems:
        added, homeless, problems = _projector_deltas(values, tensors, homeless, names)
        adapters, faults = _adapters(values, found, list(rows))
        problems += faults
        if added and spelling.projector:
            problems.append(f"{start.rstrip('.')} is there as a whole and has adapters; expected one of both")
        absent = [x for x in values["modules_to_save"] or () if not any(f".{x}." in f".{name}" for name in others)]
        problems += [f"modules_to_save has {module!r}, which has no tensor" for module in absent]
    problems += [f"{module} has an adapter, ours are on the projections of blocks alone" for module in homeless]
    problems += [] if found or added else ["no tensor is of an adapter of LoRA (lora_A.weight, lora_B.weight)"]
    for path, layers in found.items():
        length = getattr(config, path.partition("/")[0]).num_layers
        if lacking := [str(i) for i in range(length) if i not in layers]:
            problems.append(f"{path}: of {length} layers, {', '.join(lacking)} have no adapter; ours have all or none")
        problems += [f"{layers[i]}: the model has {length} layers" for i in sorted(layers) if i >= length]
    problems += [
        f"{name} is no weight of adapters, projector, embedding or head" for name in others if name not in renamed
    ]
    if problems:
        raise UserError(
            f"the adapter in {folder} cannot be used, {len(problems)} problems: {listed(problems, '; ')}; merge it "
            "into its base model with PEFT (merge_and_unload) and import that, or take another"
        )
    rules = [
        dataclasses.replace(rule, hf=rule.hf.removeprefix(_BASE))
        for path in found
        for rule in _adapter_rules(rows[path])
    ]
    rules += [*_projector_rules(names, spelling.projector), *replaced]
    whole = build(adapters)
    kept = paths(whole)
    if other := [
        f"{path} is {x.shape}, expected {kept[path].shape}" for path, x in added.items() if x.shape != kept[path].shape
    ]:
        raise UserError(f"the adapter in {folder} is of another model: {listed(other, '; ')}")
    leaves = _chosen(whole, projector=spelling.projector is not None)
    abstract = from_paths(leaves | {rule.ours: kept[rule.ours] for rule in replaced})
    source = RenamedSource(as_source(tensors), renamed.get)
    try:
        params = import_tensors(rules, source, abstract, names.sizes, progress=False)
    except UserError as error:
        raise UserError(f"the adapter in {folder} is of another model: {error}") from error
    return Adapter(from_paths({path: x.astype(np.float32) for path, x in paths(params).items()}), adapters, added)


def _places(
    names: Iterable[str], rows: Mapping[str, Rule], modules: re.Pattern[str]
) -> tuple[dict[str, dict[int, str]], dict[str, str], list[str], list[str]]:
    """Where tensors belong, by their names without `_BASE`.

    Returns:
      path of each adapted projection of ours -> layer -> module; name of each of their tensors -> its name in the rows
      of `_adapter_rules`, without `_BASE`; tensors that are of no adapter; adapted modules that ours cannot adapt.
    """
    places = {(path.partition("/")[0], _module_name(row)): path for path, row in rows.items()}
    found: dict[str, dict[int, str]] = {}
    renamed, others, homeless = {}, [], set()
    for name in names:
        weight = _WEIGHT.fullmatch(name)
        if weight is None:
            others.append(name)
            continue
        module = modules.fullmatch(weight["module"])
        part = "vision" if module and module["vision"] is not None else "language"
        if module is None or (part, module["name"]) not in places:
            homeless.add(weight["module"])
            continue
        path, layer = places[part, module["name"]], int(module["layer"])
        found.setdefault(path, {})[layer] = weight["module"]
        hf = rows[path].hf.replace("{i}", str(layer))
        renamed[name] = f"{hf.removesuffix('weight')}lora_{weight['side']}.weight"
    return found, renamed, others, sorted(homeless)


def _adapters(
    values: Mapping[str, Any], found: Mapping[str, Mapping[int, str]], projections: Sequence[str]
) -> tuple[dict[str, LoraConfig], list[str]]:
    """Part -> LoRA settings, and their faults. Ranks and alphas are looked up as in PEFT."""
    adapters, problems = {}, []
    for part in sorted({path.partition("/")[0] for path in found}, key=("vision", "language").index):
        adapted = [path for path in projections if path in found and path.startswith(f"{part}/")]
        sizes: dict[tuple[int, float], list[str]] = {}
        for module in (module for path in adapted for module in found[path].values()):
            rank = looked_up(values["rank_pattern"], module, values["r"])
            alpha = looked_up(values["alpha_pattern"], module, values["lora_alpha"])
            sizes.setdefault((rank, alpha), []).append(module)
        if len(sizes) > 1:
            given = "; ".join(f"r={r}, alpha={alpha:g} for {listed(modules)}" for (r, alpha), modules in sizes.items())
            problems.append(f"rank_pattern and alpha_pattern differ inside {part}, ours have one of each: {given}")
            continue
        (rank, alpha) = next(iter(sizes))
        everything = [path.partition("/")[2] for path in projections if path.startswith(f"{part}/")]
        names = [path.partition("/")[2] for path in adapted]
        targets = "blocks/.*" if names == everything else _one_of(names, "/")
        adapters[part] = LoraConfig(rank, alpha, values["lora_dropout"], targets, bool(values["use_rslora"]))
    return adapters, problems


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


def _projections(names: AdapterNames) -> dict[str, Rule]:
    """Path of each projection of the blocks, "language/blocks/attention/q" -> the row of its weight."""
    rows = (row for row in names.rules(names.spelling) if row.stacked and row.ours.endswith("/w"))
    return {row.ours.removesuffix("/w"): row for row in rows}


def _module_name(row: Rule) -> str:
    """A module's name inside its block, "self_attn.q_proj"."""
    return row.hf.partition("{i}.")[2].removesuffix(".weight")


def _adapter_rules(row: Rule) -> tuple[Rule, Rule]:
    """The rows of both weights of an adapter, in PEFT's names; R is the rank."""
    left, right = row.pattern.split("->")
    # A Linear has [out, in]; either may be a group of several axes of ours.
    out, inner = re.findall(r"\([^)]*\)|\S+", left)
    ours_out = " ".join(letter for letter in right.split() if letter in out)
    ours_in = " ".join(letter for letter in right.split() if letter in inner)
    hf, ours = _BASE + row.hf.removesuffix("weight"), row.ours.removesuffix("w")
    return (
        Rule(f"{hf}lora_A.weight", f"{ours}lora/a", f"R {inner} -> {ours_in} R"),
        Rule(f"{hf}lora_B.weight", f"{ours}lora/b", f"{out} R -> R {ours_out}"),
    )


def _projector_rules(names: AdapterNames, prefix: str | None) -> tuple[Rule, ...]:
    return names.rules(Spelling(projector=prefix))


def _decoder_rules(names: AdapterNames, spelling: Spelling) -> list[Rule]:
    """The rows of embedding and head."""
    rules = names.rules(Spelling(language=spelling.language, head=spelling.head))
    return [rule for rule in rules if rule.ours in _REPLACED]


def _projector_deltas(
    values: Mapping[str, Any], tensors: Mapping[str, np.ndarray], modules: Iterable[str], names: AdapterNames
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """What adapters add to the projector's weights, as `Adapter.added`; modules of other places; and faults."""
    sides = {(m["module"], m["side"]): x for name, x in tensors.items() if (m := _WEIGHT.fullmatch(name))}
    rows = {
        rule.hf.removesuffix(".weight"): rule
        for prefix in names.known["projector"][0]
        for rule in _projector_rules(names, prefix)
        if rule.ours.endswith("/w")
    }
    added, others, problems = {}, [], []
    for module in modules:
        if module not in rows:
            others.append(module)
            continue
        rank = looked_up(values["rank_pattern"], module, values["r"])
        alpha = looked_up(values["alpha_pattern"], module, values["lora_alpha"])
        a, b = sides.get((module, "A")), sides.get((module, "B"))
        if a is None or b is None or a.shape[0] != rank or b.shape[-1] != rank:
            given = ", ".join(f"lora_{side} {'missing' if x is None else x.shape}" for side, x in (("A", a), ("B", b)))
            problems.append(f"{module}: {given}, expected both with rank {rank}")
            continue
        scale = LoraConfig(rank, alpha, rslora=bool(values["use_rslora"])).scale
        delta = scale * (b.astype(np.float32) @ a.astype(np.float32))
        added[rows[module].ours] = einops.rearrange(delta, rows[module].pattern)
    return added, others, problems


def _chosen(abstract: Mapping[str, Any], *, projector: bool) -> dict[str, Any]:
    """Path -> shape of the leaves of adapters and, if asked, of the projector."""
    return {
        path: leaf
        for path, leaf in paths(abstract).items()
        if "/lora/" in path or (projector and path.startswith("projector/"))
    }


def _one_of(names: Iterable[str], separator: str) -> str:
    """A regex of exactly these names: "blocks/attention/q" and "blocks/attention/v" -> "blocks/attention/(q|v)"."""
    rest: dict[str, list[str]] = {}
    for name in names:
        first, _, tail = name.partition(separator)
        rest.setdefault(first, []).append(tail)
    return _either(
        [
            re.escape(first) + (re.escape(separator) + _one_of(tails, separator) if tails[0] else "")
            for first, tails in rest.items()
        ]
    )


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"


def _number(x: float) -> int | float:
    """PEFT's alpha: an integer where possible."""
    return int(x) if x == int(x) else x
