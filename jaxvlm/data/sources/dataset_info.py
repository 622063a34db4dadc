"""Entries of LLaMA-Factory's dataset_info.json.

    {"mine": {"file_name": "mine.parquet", "formatting": "sharegpt",
              "columns": {"messages": "chat", "images": "images"}}}

Rules of that file:
  * A `columns` (or `tags`) block resets every key that it does not list to none.
  * Of several places the hub comes first, then a script, the cloud, and the file.
  * A system message among the turns goes before the `system` column.
Records that LLaMA-Factory skips with a warning, such as roles that do not alternate, are a `RecordError` here.

Source: LLaMA-Factory (arXiv:2403.13372), its data/README.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxvlm.data.sources import tables
from jaxvlm.data.sources.formats import UNSUPPORTED, Alpaca, Chat
from jaxvlm.data.sources.image_refs import ImageRule
from jaxvlm.data.sources.items import Chosen, Concatenated, Items, ItemSource
from jaxvlm.data.sources.json_items import JsonItems, read_json
from jaxvlm.data.sources.values import short
from jaxvlm.errors import UserError, nearest

_PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
_NO_PLACE = {
    "ms_hub_url": "ModelScope is not read; give hf_hub_url, or download the data and give file_name",
    "om_hub_url": "Modelers is not read; give hf_hub_url, or download the data and give file_name",
    "script_url": "no script of a data set is run; run it yourself, save what it gives as JSON or Parquet, and replace "
    "script_url with file_name",
    "cloud_file_name": "no file is fetched; download it and replace cloud_file_name with file_name",
}
_HUB_ONLY = ("subset", "folder")
_STRINGS = (*_PLACES, *_HUB_ONLY, "split", "formatting")
_KEYS = (*_STRINGS, "ranking", "num_samples", "columns", "tags")
_COMMON = {"system": None, "images": None, "videos": None, "chosen": None, "rejected": None}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": None}
_COLUMNS: dict[str, str | None] = {**_ALPACA, "messages": "conversations", **_COMMON}
_NOT_TRAINED = {  # columns
    "tools": "calls of tools",
    "audios": "audio",
    "kto_tag": "answers that are marked as desired or not",
}
_TAGS: dict[str, str | None] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}  # the rest is not supported
_FORMATS = ("alpaca", "sharegpt", "openai")


def load_entry(path: Path, name: str, image_folder: str, *, allow_outside: bool) -> ItemSource:
    """Opens the entry `name` of the file `path`.

    Raises:
      UserError: no such file or entry, all that is wrong with the entry, or its data cannot be opened.
    """
    where = f"{path}:{name}"
    if not path.is_file():
        raise UserError(f"data.source = {where!r}: there is no file {path}")
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise UserError(f"{path} is an object of data sets by their names, found {short(entries)}")
    if name not in entries:
        names = f"it has {', '.join(map(str, entries)) or 'none'}"
        raise UserError(f"data.source = {where!r}: there is no such entry{_nearest(name, entries)}; {names}")
    entry = entries[name]
    problems: list[str] = []
    format = _format(entry, problems)
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
    items = _open(entry, path.parent, where)
    count = entry.get("num_samples")
    if count is not None and count > len(items):
        raise UserError(
            f"{where}: num_samples = {count}, but there are {len(items)} records; to see them more often than others "
            "leave it out and give the source a larger weight in the recipe's mix"
        )
    if count is not None:
        items = Chosen(items, count)
    folder = tables.hub_folder(where) if entry.get("hf_hub_url") else path.parent
    rule = ImageRule(Path(image_folder) if image_folder else folder, allow_outside)
    return ItemSource(items, format, rule, image_folder)


def _format(entry: Any, problems: list[str]) -> Chat | Alpaca:
    """The format that an entry describes; appends all faults of the entry."""
    if not isinstance(entry, dict):
        problems.append(f"an entry is an object, found {short(entry)}")
        return Alpaca()
    _check_keys(entry, problems)
    columns = _block(entry, "columns", _COLUMNS | dict.fromkeys(_NOT_TRAINED), problems)
    tags = _block(entry, "tags", _TAGS, problems)
    for column in _NOT_TRAINED:
        if columns[column] is not None:
            problems.append(
                f"columns.{column} = {short(columns[column])}: {_NOT_TRAINED[column]} cannot be trained on; name data "
                "without it (taken out of columns, its records would still be refused)"
            )
    ranking = bool(entry.get("ranking"))
    formatting = entry.get("formatting", "alpaca")
    needed = ["chosen", "rejected"] if ranking else []
    if formatting == "alpaca":
        if columns["prompt"] is None and columns["query"] is None:
            needed.append("prompt")
        if not ranking:
            needed.append("response")
    else:
        needed.append("messages")
        missing = [f"tags.{tag}" for tag in ("role_tag", "content_tag", "user_tag", "assistant_tag") if not tags[tag]]
        if missing:
            problems.append(
                f"{', '.join(missing)} missing: a tags block resets each tag that it does not list; list it"
            )
    missing = [f"columns.{column}" for column in needed if columns[column] is None]
    if missing:
        problems.append(
            f"{', '.join(missing)} missing: a columns block resets each column that it does not list; list it"
            + (" (text to be continued, without an answer, cannot be trained on)" if "response" in needed else "")
        )
    common: dict[str, Any] = {column: columns[column] for column in _COMMON}
    if not ranking:
        common["chosen"] = common["rejected"] = None
    if formatting == "alpaca":
        return Alpaca(**{column: columns[column] for column in _ALPACA}, **common)
    roles = [
        (name, _ROLES.get(tag, UNSUPPORTED)) for tag, name in tags.items() if tag not in ("role_tag", "content_tag")
    ]
    return Chat(
        messages=columns["messages"] or "",
        role=tags["role_tag"] or "",
        content=tags["content_tag"] or "",
        roles=tuple((name, role) for name, role in roles if name is not None),
        **common,
    )


def _check_keys(entry: dict[str, Any], problems: list[str]) -> None:
    problems.extend(f"{key!r} is no key of an entry{_nearest(key, _KEYS)}" for key in entry if key not in _KEYS)
    for key in _STRINGS:
        if key in entry and not (isinstance(entry[key], str) and entry[key] and "\0" not in entry[key]):
            problems.append(f"{key} is a string, found {short(entry[key])}")
    if entry.get("formatting", "alpaca") not in _FORMATS:
        problems.append(f"formatting = {short(entry['formatting'])}, expected {', '.join(_FORMATS)}")
    if not isinstance(entry.get("ranking", False), bool):
        problems.append(f"ranking is true or false, found {short(entry['ranking'])}")
    count = entry.get("num_samples", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        problems.append(f"num_samples is a number of records, 1 or more, found {short(count)}")
    places = [place for place in _PLACES if place in entry]
    if not places:
        problems.append("it does not name the data; give file_name or hf_hub_url")
    elif places[0] in _NO_PLACE:
        problems.append(f"{places[0]} = {short(entry[places[0]])}: {_NO_PLACE[places[0]]}")
    elif places[0] == "file_name":
        problems.extend(f"{key} is for hf_hub_url, not for file_name; take it out" for key in _HUB_ONLY if key in entry)


def _block(
    entry: dict[str, Any], key: str, defaults: dict[str, str | None], problems: list[str]
) -> dict[str, str | None]:
    """The columns or tags of an entry: the defaults, or only those that the block lists."""
    block = entry.get(key)
    if block is None:
        return defaults
    if not isinstance(block, dict):
        problems.append(f"{key} is an object, found {short(block)}")
        return defaults
    names = dict.fromkeys(defaults)
    for name, value in block.items():
        if name not in defaults:
            problems.append(f"{name!r} is no key of {key}{_nearest(name, defaults)}")
        elif value is not None and not (isinstance(value, str) and value):
            problems.append(f"{key}.{name} is a string, found {short(value)}")
        else:
            names[name] = value
    return names


def _open(entry: dict[str, Any], folder: Path, where: str) -> Items:
    split = entry.get("split", "train")
    if "hf_hub_url" in entry:
        return tables.load_hub(
            where, entry["hf_hub_url"], split=split, subset=entry.get("subset"), folder=entry.get("folder")
        )
    path = folder / entry["file_name"]
    kinds = {".json": "json", ".jsonl": "json", **tables.KINDS}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{where}: file_name = {entry['file_name']!r}: there is no {path}")
    found = sorted({file.suffix for file in files})
    if not found or len({kinds.get(suffix) for suffix in found}) > 1 or found[0] not in kinds:
        names = ", ".join(suffix or "none" for suffix in found) or "no file"
        raise UserError(f"{where}: {path} is read if its files are all of one kind, {', '.join(kinds)}; found {names}")
    if kinds[found[0]] != "json":
        return tables.load_files(where, files, split)
    if split != "train":
        raise UserError(f"{where}: split = {split!r}, but a JSON file is not divided; take split out, or name the file")
    parts = [JsonItems(file) for file in files]
    return parts[0] if len(parts) == 1 else Concatenated(parts)


def _nearest(word: str, words: Iterable[str]) -> str:
    near = nearest(word, words)
    return f"; the nearest is {near!r}" if near else ""
