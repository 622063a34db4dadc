"""Training rows as data for other programs: each record with its turns, its tokens, and its images as files.

Axis letters:
  T token positions of a row
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxvlm.files import replace_bytes, replace_text
from jaxvlm.inspect.page import PageRow
from jaxvlm.inspect.token_text import Vocabulary, text_tokens

FILE, PICTURES = "rows.json", "pictures"


def write_rows(folder: Path, rows: Iterable[PageRow], tokenizer: Any) -> int:
    """Writes rows.json and the images of its rows, PNG files in pictures/; returns the number of records.

    rows.json is a list of records: {"id", "origin", "row", "turns": [{"role", "text"}], "images": [name of the image in
    the data], "tokens": [{"id", "text", "control", "trained"} or {"picture": name of the file, "count"}], "positions",
    "trained"}. The tokens are those of the record's segment, the images as the model gets them.

    Raises:
      OSError: a file cannot be written.
    """
    vocabulary, records = Vocabulary(tokenizer), list[dict[str, Any]]()
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        names = [f"{number}-{picture}.png" for picture in range(len(row.pictures))]
        for name, picture in zip(names, row.pictures, strict=True):
            _save_picture(folder / PICTURES / name, picture.pixels)
        records += [_record(row, segment, names, vocabulary) for segment in range(1, len(row.records) + 1)]
    replace_text(folder / FILE, json.dumps(records, ensure_ascii=False) + "\n")
    return len(records)


def _save_picture(path: Path, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=3)
    replace_bytes(path, content.getvalue())


def _record(row: PageRow, segment: int, names: list[str], vocabulary: Vocabulary) -> dict[str, Any]:
    batch, record = row.batch, row.records[segment - 1]
    here_T = np.asarray(batch.segments[row.row]) == segment
    trained_T = np.zeros(len(here_T), bool)
    # Position t predicts the token at t + 1, within its segment.
    trained_T[1:] = (np.asarray(batch.loss_weights[row.row])[:-1] != 0) & here_T[:-1]
    owner_T = _owners(np.asarray(batch.image_index[row.row]), row)
    ids, trained, owners = (np.asarray(x)[here_T] for x in (batch.tokens[row.row], trained_T, owner_T))
    return {
        "id": str(record["id"]),
        "origin": record["origin"],
        "row": row.name,
        "turns": [{"role": role, "text": text} for role, text in record["turns"]],
        "images": list(record["images"]),
        "tokens": _tokens(ids, trained, owners, names, vocabulary),
        "positions": len(ids),
        "trained": int(trained.sum()),
    }


def _owners(index_T: np.ndarray, row: PageRow) -> np.ndarray:
    """int[T]: which picture of the row a position shows, -1 at text."""
    owner = np.full(index_T.max(initial=-1) + 2, -1)  # the last for text, whose index is -1
    for number, picture in enumerate(row.pictures):
        owner[picture.features[picture.features < len(owner) - 1]] = number
    return owner[index_T]


def _tokens(
    ids: np.ndarray, trained: np.ndarray, owners: np.ndarray, names: list[str], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cuts = np.flatnonzero(owners[1:] != owners[:-1]) + 1
    for run in np.split(np.arange(len(ids)), cuts):
        if len(run) and owners[run[0]] >= 0:
            found.append({"picture": names[owners[run[0]]], "count": len(run)})
        else:
            texts = text_tokens(ids[run].tolist(), vocabulary)
            found += [{**token, "trained": bool(trained[at])} for at, token in zip(run, texts, strict=True)]
    return found
