"""The folder browser: what is in an allowed folder, and which of it is data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_MOST = 2000  # entries of a folder that are listed
_HEAD = 2**16  # bytes of a file that are looked at
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TABLES = {".parquet": "table", ".arrow": "table", ".csv": "table", ".txt": "document", ".gguf": "gguf"}


def roots_of(studio: Studio) -> dict[str, Any]:
    """The allowed folders, in place of a listing."""
    folders = [*studio.data_roots, studio.root, studio.recipes]
    found = [{"name": str(path.resolve()), "path": str(path.resolve())} for path in folders if path.is_dir()]
    return {"path": "", "parent": None, "folders": found, "files": [], "more": 0}


def list_folder(studio: Studio, folder: Path) -> dict[str, Any]:
    """Folders and files of a folder, or of a file's folder; hidden ones are left out, `more` were not listed.

    Args:
      folder: from `data_path`, so allowed and without links.
    """
    folder = folder if folder.is_dir() else folder.parent
    roots = [path.resolve() for path in (*studio.data_roots, studio.root, studio.recipes)]
    entries = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    listed = entries[:_MOST]
    return {
        "path": str(folder),
        "parent": None if folder in roots else str(folder.parent),
        "format": folder_format(folder),
        "folders": [
            {"name": path.name, "path": str(path), "format": folder_format(path)} for path in listed if path.is_dir()
        ],
        "files": [
            {"name": path.name, "path": str(path), "bytes": path.stat().st_size, "format": file_format(path)}
            for path in listed
            if path.is_file()
        ],
        "more": len(entries) - len(listed),
    }


def folder_format(folder: Path) -> str | None:
    """What a folder is to jaxvlm: "prepared" data, "dataset_info", a "run", or a Hugging Face "model"; else None."""
    try:
        if (folder / "card.json").is_file():
            return "prepared"
        if (folder / "dataset_info.json").is_file():
            return "dataset_info"
        if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file():
            return "run"
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return "model"
    except OSError:
        pass
    return None


def file_format(path: Path) -> str | None:
    """The format of a file of data, by its name and its first record; None: none that is known.

    "conversations" (LLaVA), "messages" (OpenAI), "alpaca", "pairs", "document", "dataset_info", "table", "image" or
    "gguf".
    """
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        return "image"
    if path.name == "dataset_info.json":
        return "dataset_info"
    if suffix in (".json", ".jsonl"):
        return _record_format(_first_record(path))
    return _TABLES.get(suffix)


def _first_record(path: Path) -> dict[str, Any]:
    """The first object of a list or of lines, from the head of a file; {} if there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(_HEAD).decode("utf-8-sig", "replace").lstrip()
        found, _ = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _record_format(record: dict[str, Any]) -> str | None:
    if "chosen" in record and "rejected" in record:
        return "pairs"
    for key, name in (("conversations", "conversations"), ("messages", "messages"), ("instruction", "alpaca")):
        if key in record:
            return name
    return "document" if isinstance(record.get("text"), str) else None
