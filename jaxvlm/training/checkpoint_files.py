"""What is on disk of checkpoints: which are whole, and what their position says. It needs no jax."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

LISTING = "files.json"  # name and size of the other files of a checkpoint, part of it
LATER = {LISTING, "_CHECKPOINT_METADATA", "commit_success.txt"}  # written after it, and not needed to read one


def whole_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a stage's folder that have all their files, in order."""
    return [step for step in saved_steps(folder) if not damage(folder / str(step))]


def is_finished(folder: Path) -> bool:
    """Whether the newest complete checkpoint of a stage's folder is of the stage's last step."""
    steps = whole_steps(folder)
    return bool(steps) and position_of(folder / str(steps[-1]))["steps"] == steps[-1]


def damage(checkpoint: Path) -> str:
    """A fault of a checkpoint: a missing file, another size than written, an invalid position; "" if none."""
    listing = checkpoint / LISTING
    files: Any = {}  # another program writes no listing
    if listing.is_file():
        with contextlib.suppress(ValueError):
            files = json.loads(listing.read_text())
        if not files or not isinstance(files, dict):
            return f"{LISTING} cannot be read"
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    try:
        int(position_of(checkpoint)["steps"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"its position cannot be read, {type(error).__name__}: {error}"
    return ""


def position_of(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's position in the data and length of its stage: the file of orbax's JsonCheckpointHandler."""
    return json.loads((checkpoint / "position" / "metadata").read_text())


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints: an incomplete folder has another name."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
