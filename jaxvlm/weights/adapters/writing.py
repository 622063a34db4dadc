"""Adapters of ours to a folder of PEFT."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.config import LoraConfig
from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.adapters.fields import CONFIG_FILE
from jaxvlm.weights.adapters.names import (
    BASE,
    WEIGHT_FILES,
    adapter_rules,
    chosen_leaves,
    either,
    module_name,
    one_of,
    projections,
)
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.rules import Rule, export_tensors, prefixed
from jaxvlm.weights.spelling import Spelling
from jaxvlm.weights.tensors import listed
from jaxvlm.weights.writing import write_tensors


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
    rows, flat = projections(names), paths(params)
    wanted = chosen_leaves(abstract, projector=projector)
    problems = [] if adapters else ["there are no adapters"]
    problems += _leaf_problems(wanted, flat, rows)
    if len({lora.rslora for lora in adapters.values()}) > 1:
        given = ", ".join(f"{part}: rslora={lora.rslora}" for part, lora in adapters.items())
        problems.append(f"PEFT has one rslora for all parts, not {given}; merge them into the weights instead")
    if problems:
        raise UserError(f"adapters cannot be written, {len(problems)} problems: {listed(problems, '; ')}")

    adapted = [row for path, row in rows.items() if f"{path}/lora/a" in wanted]
    rules = [rule for row in adapted for rule in adapter_rules(row)]
    rules += prefixed(names.rules(Spelling(projector=names.spelling.projector)), BASE, "")
    chosen = from_paths({path: flat[path] for path in wanted})
    with tempfile.TemporaryDirectory(dir=folder) as new:
        write_tensors(Path(new), export_tensors(rules, chosen, names.sizes), shard_bytes=sys.maxsize)
        (Path(new) / "model.safetensors").replace(folder / WEIGHT_FILES[0])
    values, notes = _peft_config(adapted, adapters, names.spelling)
    values["base_model_name_or_path"] = base_model or None
    values["modules_to_save"] = list(names.projector) if projector else None
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return notes


def _leaf_problems(wanted: Mapping[str, Any], flat: Mapping[str, Any], rows: Mapping[str, Rule]) -> list[str]:
    """Leaves that are missing, of another shape, of no adapter, or of adapters outside of the blocks."""
    problems = []
    for path, leaf in wanted.items():
        place, _, weight = path.rpartition("/lora/")
        if place and place not in rows:
            if weight == "a":
                problems.append(f"{place} is not a projection of a block; adapt only those (targets)")
        elif path not in flat:
            problems.append(f"{path} {leaf.shape} is missing")
        elif tuple(flat[path].shape) != leaf.shape:
            problems.append(f"{path} is {tuple(flat[path].shape)}, expected {leaf.shape}")
    return problems + [
        f"{path} has no adapter in the config" for path in flat if "/lora/" in path and path not in wanted
    ]


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
        stacks.setdefault(row.hf.partition("{i}.")[0], []).append(module_name(row))
    modules = [re.escape(stack) + r"\d+\." + one_of(names, ".") for stack, names in stacks.items()]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": either(modules),
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


def _number(x: float) -> int | float:
    """PEFT's alpha: an integer where possible."""
    return int(x) if x == int(x) else x
