"""Reads the files of benchmarks: which layout a folder has, rows of JSON, JSON Lines, Parquet and TSV, images.

A reader gives `Row`s. `make_items` turns them into items and reports every broken row, doubled id and missing image in
one error per kind:

    layout, files = find_layout(folder, LAYOUTS, "VizWiz val", "https://vizwiz.org")
    images = Images(folder / "val", folder)
    items = make_items(json_rows(files["questions"][0]), lambda row: Item(row.id("image"), ...), images)
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.data.sources.json_items import read_json
from jaxvlm.errors import UserError, listed, missing_extra
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.media import Medium

# Layout name -> what a file is called in the code -> glob patterns relative to the folder, of which one suffices.
Layouts = Mapping[str, Mapping[str, str | tuple[str, ...]]]


class RowError(Exception):
    """One fault of a row, as a clause: '"question" is missing'."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file, with checked access to its values.

    Attributes:
      values: column -> value.
      origin: its place for messages: "questions.jsonl:13", "questions.json[12]", "val.parquet[12]".
      place: its number from 0 among all rows that were read with it.
    """

    values: Mapping[str, Any]
    origin: str
    place: int = 0

    def text(self, *keys: str) -> str:
        """The text under the first of the keys that the row has; raises `RowError` if it is missing or no text."""
        value = self.any(*keys)
        if not isinstance(value, str):
            raise RowError(f'"{_first(self.values, keys)}" is a text, found {_kind(value)}')
        return value

    def id(self, *keys: str) -> str:
        """An id, a number or a text, as text; raises `RowError`."""
        value = self.any(*keys)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise RowError(f'"{_first(self.values, keys)}" is a number or a text, found {_kind(value)}')
        return str(value)

    def texts(self, *keys: str) -> list[str]:
        """A list of texts, or one text as a list of one; raises `RowError`."""
        value = self.any(*keys)
        if isinstance(value, str):
            return [value]
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
            raise RowError(f'"{_first(self.values, keys)}" is a list of texts, found {_kind(value)}')
        return list(value)

    def any(self, *keys: str) -> Any:
        """The value under the first of the keys that the row has, None where it is null; raises `RowError`."""
        key = _first(self.values, keys)
        if key is None:
            found = listed([repr(str(name))[1:-1] for name in self.values], ", ") or "none"
            raise RowError(f'"{keys[0]}" is missing (keys found: {found})')
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key; `default` where there is none or null."""
        value = self.values.get(key)
        return default if value is None else value


def find_layout(folder: Path, layouts: Layouts, what: str, source: str) -> tuple[str, dict[str, list[Path]]]:
    """Finds the first layout of which a folder has every file.

    Args:
      layouts: in the order of preference; a pattern may name several files, such as "data/val-*.parquet".
      what: benchmark and split, for messages.
      source: where the files come from.

    Returns:
      the layout's name, and for each of its files the paths, sorted.

    Raises:
      UserError: there is no such folder, or it has no layout completely; the missing files of each are named.
    """
    if not folder.is_dir():
        raise UserError(f"{what}: there is no folder {folder}; its files come from {source}")
    wanting = []
    for name, files in layouts.items():
        found = {key: _glob(folder, patterns) for key, patterns in files.items()}
        missing = [" or ".join(_patterns(files[key])) for key, paths in found.items() if not paths]
        if not missing:
            return name, found
        wanting.append(f"layout {name}: {listed(missing, ', ')}")
    raise UserError(f"{what}: {folder} lacks files of each layout ({'; '.join(wanting)}); they come from {source}")


def json_rows(path: Path, key: str = "", *, id_key: str = "id") -> list[Row]:
    """The rows of a JSON file.

    Args:
      key: of the list in the file's object, such as "questions"; "": the file is the list itself, or an object of rows.
      id_key: the key under which a row gets its name where the rows are an object, as in GQA.

    Raises:
      UserError: the file cannot be read, is not JSON, or has no such list.
    """
    content = read_json(path)
    if key:
        content = content.get(key) if isinstance(content, dict) else None
    if isinstance(content, dict):
        return [
            Row(_object(value, f"{path}[{name!r}]") | {id_key: name}, f"{path}[{name!r}]", place)
            for place, (name, value) in enumerate(content.items())
        ]
    if not isinstance(content, list):
        found = f'no list under "{key}"' if key else _kind(content)
        raise UserError(f"{path} is a JSON {'object with' if key else ''} list of rows, found {found}; get it again")
    return [Row(_object(value, f"{path}[{place}]"), f"{path}[{place}]", place) for place, value in enumerate(content)]


def json_line_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file, one object a line; a BOM, CRLF and blank lines are allowed.

    Raises:
      UserError: it cannot be read, or lines are not JSON objects (ten at most are named).
    """
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(_read(path).split("\n"), 1):  # not splitlines: texts may have U+2028
        if not line.strip():
            continue
        try:
            rows.append(Row(_object(json.loads(line), f"{path}:{number}"), f"{path}:{number}", len(rows)))
        except (ValueError, RecursionError) as error:
            problems.append(str(error) if isinstance(error, UserError) else f"{path}:{number} is not JSON ({error})")
    if problems:
        raise UserError(f"{listed(problems)}; each line is one JSON object: get the file again")
    return rows


def parquet_rows(paths: Sequence[Path], columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of Parquet files as Hugging Face stores data sets, file after file.

    An image is an object of "bytes" and "path". Only a few rows at a time are decoded.

    Args:
      columns: only these are read where a file has them; (): all.

    Raises:
      UserError: pyarrow is not installed, or a file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise missing_extra(f"{paths[0]}: a Parquet file", "pyarrow", "hf") from error
    place = 0
    for path in paths:
        first = place
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                wanted = [name for name in file.schema_arrow.names if not columns or name in columns]
                for batch in file.iter_batches(64, columns=wanted):
                    for values in batch.to_pylist():
                        yield Row(values, f"{path}[{place - first}]", place)
                        place += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} cannot be read as Parquet ({error}); get it again") from error


def tsv_rows(path: Path) -> list[Row]:
    """The rows of a TSV file with a header; cells may be in double quotes, and "" stands for a missing one.

    Raises:
      UserError: it cannot be read, or rows have more or fewer cells than the header (ten at most are named).
    """
    csv.field_size_limit(sys.maxsize)  # images are cells, in base64
    lines = csv.reader(io.StringIO(_read(path), newline=""), delimiter="\t")
    header = next(lines, [])
    rows: list[Row] = []
    problems = []
    for number, cells in enumerate(line for line in lines if line):
        if len(cells) != len(header):
            problems.append(f"{path}[{number}] has {len(cells)} cells, its header {len(header)}")
        rows.append(Row(dict(zip(header, cells, strict=False)), f"{path}[{number}]", number))
    if problems:
        raise UserError(f"{listed(problems)}; get the file again")
    return rows


class Images:
    """Finds image files in folders, and images in cells; remembers what is missing.

    Equal bytes are one object, since Parquet files repeat an image for each of its questions.
    """

    def __init__(self, *folders: Path):
        """Stores the folders, in the order in which they are searched."""
        self._folders = folders
        self._bytes: dict[bytes, bytes] = {}
        self.missing: dict[str, str] = {}  # name -> why, in the order found

    def find(self, *names: str) -> str:
        """The path of the first file that exists; the first possible path, remembered as missing, if none does.

        Args:
          names: relative to the folders, such as "COCO_val2014_000000000042.jpg".

        Raises:
          RowError: a name leads out of the folders, or is empty.
        """
        for name in names:
            if not name or os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
                raise RowError(f"image {name!r} is no path within {self._folders[0]}")
        for name in names:
            for folder in self._folders:
                if os.path.isfile(path := os.path.join(folder, name)):
                    return path
        self.missing.setdefault(names[0], f"{names[0]} in {listed(self._folders, ' or ')}")
        return os.path.join(self._folders[0], names[0])

    def of(self, cell: Any) -> Medium:
        """The image in a cell: an object of "bytes" and "path" as Hugging Face has it, bytes, or a path.

        Raises:
          RowError: it is none of these, or empty.
        """
        value = cell
        if isinstance(cell, Mapping):
            value = next((cell[key] for key in ("bytes", "path") if cell.get(key)), None)
        if isinstance(value, bytes) and value:
            return self._bytes.setdefault(value, value)
        if isinstance(value, str) and value:
            return self.find(value)
        raise RowError(f'the image is an object of "bytes" and "path", bytes or a path, found {_kind(cell)}')


def image_name(image: Medium) -> str:
    """A name that equal images share, for the clusters of the bootstrap: the path, or a hash of the bytes."""
    return hashlib.blake2b(image, digest_size=12).hexdigest() if isinstance(image, bytes) else str(image)


def make_items(rows: Iterable[Row], make: Callable[[Row], Item | None], images: Images | None = None) -> list[Item]:
    """Makes an item of each row.

    Args:
      make: raises `RowError`; None: the row belongs to another split.
      images: what `make` looked images up in.

    Raises:
      UserError: broken rows, or no row; doubled ids; missing images: ten at most are named.
    """
    items: list[Item] = []
    problems, origin = [], ""
    for row in rows:
        origin = row.origin
        try:
            item = make(row)
        except RowError as error:
            problems.append(f"{row.origin}: {error}")
            continue
        if item is not None:
            items.append(item)
    if problems:
        raise UserError(f"{listed(problems)}; these are not the files that were expected: get them again")
    if not items:
        raise UserError(f"{origin or 'the file'}: no question of this split is there")
    check_ids(items)
    if images is not None and images.missing:
        count, names = len(images.missing), listed(list(images.missing.values()))
        raise UserError(f"{count:,} {'images are' if count > 1 else 'image is'} missing: {names}; put them there")
    return items


def check_ids(items: Sequence[Item]) -> None:
    """Checks that no id is there twice.

    Raises:
      UserError: with the ids and places (ten at most are named).
    """
    first: dict[str, Item] = {}
    doubled = []
    for item in items:
        if (before := first.setdefault(item.id, item)) is not item:
            doubled.append(f"{item.id} ({before.origin} and {item.origin})")
    if doubled:
        raise UserError(f"questions have the same id: {listed(doubled)}; remove one of each, or get the files again")


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    for key in keys:  # called for every value of every row: a generator takes twice as long
        if key in values:
            return key
    return None


def _object(value: Any, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{origin} is a JSON object, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "null"
    words = f"{type(value).__name__} {value!r}"
    return words if len(words) <= 80 else words[:77] + "..."


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _patterns(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _glob(folder: Path, patterns: str | tuple[str, ...]) -> list[Path]:
    """The files of the first pattern that has any."""
    found = ([path for path in sorted(folder.glob(pattern)) if path.is_file()] for pattern in _patterns(patterns))
    return next((paths for paths in found if paths), [])
