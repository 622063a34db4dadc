"""adapter_config.json of PEFT: the fields that ours can express.

Source: PEFT, `tuners/lora/config.py` (the fields); `utils/other.py`, `get_pattern_key` (how a pattern finds a module).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxvlm.weights.hf.strict import read_json

CONFIG_FILE = "adapter_config.json"
_ADVICE = "give the folder that PEFT's save_pretrained wrote"

# Fields about how an adapter was made or by whom. Which modules have one follows from the tensors.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size"),
    *("megatron_config", "megatron_core", "ensure_weight_tying"),
}
# Other initialisations also change the adapted weights, each time the adapter is loaded.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def check_base(folder: Path, sources: Iterable[str]) -> list[str]:
    """A note if an adapter was made for a model of another name than those of `sources`; people rename folders.

    The last part of a path or of a hub name counts, and the repository's of a file in the hub's cache.
    """
    given, base = list(sources), read_json(folder / CONFIG_FILE, _ADVICE).get("base_model_name_or_path")

    def name(spec: str) -> str:
        cached = re.search(r"models--([^/]+)/snapshots/", spec)
        path = cached[1].replace("--", "/") if cached else spec.partition("@")[0]
        return path.rstrip("/").rpartition("/")[2].lower()

    if not isinstance(base, str) or not base or name(base) in map(name, given):
        return []
    return [f"the adapter was made for {base}, not for {', '.join(given)}; if that is another model, so is the result"]


def looked_up(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, after any dot."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a file, with PEFT's defaults for absent ones."""
    values = read_json(path, _ADVICE)
    defaults = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "modules_to_save": None}
    empty = {name: values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    return defaults | values | empty


def field_problems(values: Mapping[str, Any]) -> list[str]:
    """Faults of the fields of a config, and fields without a counterpart in ours."""

    def is_number(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool)

    def is_rank(x: Any) -> bool:
        return is_number(x) and isinstance(x, int) and x >= 1

    def fits_patterns(x: Any, fits: Any) -> bool:
        return isinstance(x, dict) and all(_is_pattern(key) and fits(value) for key, value in x.items())

    saved = values["modules_to_save"]
    dropout = values["lora_dropout"]
    expected = {
        "peft_type": (values.get("peft_type") == "LORA", '"LORA"'),
        "bias": (values.get("bias", "none") == "none", '"none"'),
        "fan_in_fan_out": (not values.get("fan_in_fan_out"), "false"),
        "init_lora_weights": (
            values.get("init_lora_weights", True) in _STARTS,
            "a start that leaves the base model unchanged (path_initial_model_for_weight_conversion converts it)",
        ),
        "r": (is_rank(values["r"]), "1 or more"),
        "lora_alpha": (is_number(values["lora_alpha"]), "a number"),
        "lora_dropout": (is_number(dropout) and 0 <= dropout < 1, "0 <= lora_dropout < 1"),
        "use_rslora": (values["use_rslora"] in (True, False, None), "true or false"),
        "rank_pattern": (fits_patterns(values["rank_pattern"], is_rank), "regexes and ranks"),
        "alpha_pattern": (fits_patterns(values["alpha_pattern"], is_number), "regexes and numbers"),
        "modules_to_save": (saved is None or isinstance(saved, list), "null or a list of names"),
    }
    problems = [
        f"{name} = {json.dumps(values.get(name))}, expected {what}"
        for name, (fits, what) in expected.items()
        if not fits
    ]
    problems += [
        f"{name} = {json.dumps(value)} is not supported"
        for name, value in values.items()
        if value and name not in expected and name not in _WITHOUT_EFFECT
    ]
    return problems


def _is_pattern(text: Any) -> bool:
    try:
        return isinstance(text, str) and re.compile(text) is not None
    except re.error:
        return False
