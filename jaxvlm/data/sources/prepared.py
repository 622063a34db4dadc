"""Folders of prepared records: ArrayRecord shards with the images inside, and a card that describes them.

    card.json                            {"version": 1, "shards": [{"name", "records", "bytes", "blake2b"}, ...], ...}
    part-00000-of-00008.array_record     each entry msgpack of {id, turns, images, origin, group, rejected}; an image
                                         is the bytes of a file, a video {"frames": [bytes, ...], "fps", "numbers"}

They contain no code: msgpack has numbers, texts, bytes, lists and maps. A folder on an object store (gs://...) is
copied to this machine once, into JAXVLM_CACHE (~/.cache/jaxvlm), and read there.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from jaxvlm.data.records import Record, RecordError, Turn, answer_by_answer
from jaxvlm.data.sources.items import hash_texts
from jaxvlm.errors import UserError, listed, on_a_line
from jaxvlm.files import cache_folder, replace_text
from jaxvlm.media import Medium, Video
from jaxvlm.progress import progress_bar

CARD = "card.json"
VERSION = 1

_CHUNK = 2**22  # bytes
_SHARD = re.compile(r"part-\d{5,}-of-\d{5,}\.array_record")
_HASH = re.compile(r"[0-9a-f]{128}")
_REMEDY = "copy the folder again, or prepare it again with `inspect_data prepare`"


def shard_name(index: int, count: int) -> str:
    """ "part-00000-of-00008.array_record"."""
    return f"part-{index:05d}-of-{count:05d}.array_record"


def write_shard(path: Path, records: Iterable[Record]) -> dict[str, Any]:
    """Writes a shard atomically.

    Args:
      path: FOLDER/`shard_name(...)`; the folder exists.
      records: records with their images as bytes.

    Returns:
      The card's entry of the shard: `{"name", "records", "bytes", "blake2b"}`.

    Raises:
      ValueError: an image is a path.
      UserError: the shard cannot be written.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        count = _write(half, records)
        entry = {"name": path.name, "records": count, "bytes": half.stat().st_size, "blake2b": _hash(half)}
        half.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError is what ArrayRecord raises
        raise UserError(f"{path} cannot be written ({error}); check its folder and the space on the disk") from error
    finally:
        half.unlink(missing_ok=True)
    return entry


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes the card, after all shards: `card["shards"]` lists what `write_shard` returned."""
    replace_text(folder / CARD, json.dumps({"version": VERSION, **card}, indent=2) + "\n")


def read_card(folder: epath.PathLike) -> dict[str, Any]:
    """The card of a folder.

    Raises:
      UserError: it is missing, unreadable or not a card.
    """
    path = f"{os.fspath(folder).rstrip('/')}/{CARD}"
    try:
        card = json.loads(epath.Path(path).read_bytes().decode())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: `inspect_data prepare` writes it last, so it did not finish; rerun it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {_REMEDY}") from error
    except Exception as error:  # of disk or network: each kind of store has its own types
        raise UserError(
            f"{path} cannot be read ({on_a_line(error)}); check the address, which epath must know (gs://, s3://, "
            "az://, hf://), the access to it, and that its package is installed (gcsfs for gs://)"
        ) from error
    if not isinstance(card, dict) or card.get("version") != VERSION:
        found = card.get("version") if isinstance(card, dict) else card
        raise UserError(f"{path}: version {VERSION} is expected, found {str(found)[:60]}; {_REMEDY}")
    shards = card.get("shards")
    if not isinstance(shards, list) or not shards or not all(map(_is_shard, shards)):
        raise UserError(f'{path}: "shards" lists name, records, bytes and blake2b of each shard; {_REMEDY}')
    return card


class PreparedSource:
    """Records of a prepared folder (a `Source`, sources.py). Every shard is opened and counted at once."""

    def __init__(self, folder: str):
        card = read_card(folder)
        shards = card["shards"]
        self._settings: Any = card.get("settings")
        self._names = [shard["name"] for shard in shards]
        self._folder = folder.rstrip("/")
        self._fingerprint = hash_texts(text for shard in shards for text in (shard["name"], shard["blake2b"]))
        local = _fetch(folder, shards, self._fingerprint) if "://" in folder else Path(folder)
        _check(local, shards)
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards))
        from grain.sources import ArrayRecordDataSource  # it imports JAX, which reading data can do without

        # With its range after the name, a shard is not opened again to be counted.
        self._records = ArrayRecordDataSource([f"{local / shard['name']}[0:{shard['records']}]" for shard in shards])

    def __len__(self) -> int:
        return len(self._records)

    def origin(self, index: int) -> str:
        """The place of record `index`: "FOLDER/part-00000-of-00008.array_record[12]"."""
        shard = bisect.bisect_right(self._ends, index)
        return f"{self._folder}/{self._names[shard]}[{index - (self._ends[shard - 1] if shard else 0)}]"

    def __getitem__(self, index: int) -> Record:
        """A record; its origin is its place before it was prepared.

        Raises:
          RecordError: the shard is corrupt there.
        """
        try:
            return _unpack(self._records[index])
        except Exception as error:  # of ArrayRecord and of msgpack
            origin = self.origin(index)
            raise RecordError(f"{origin} is damaged ({error}); {_REMEDY}", origin, "damaged") from error

    def check_images(self, wanted: dict[str, Any]) -> None:
        """Raises `UserError` unless images were prepared with these `MediaLayout.settings`."""
        images = self._settings.get("images") if isinstance(self._settings, dict) else None
        if not isinstance(images, dict):
            return
        kept = {key: value for key, value in images.items() if key != "jpeg"}
        if kept != wanted:
            raise UserError(
                f"{self._folder} holds images prepared with {_listed(kept)}; the recipe takes {_listed(wanted)}; "
                "prepare the data for it, or change the recipe"
            )

    def questions(self, record: Record) -> list[Record]:
        """A question for each assistant turn, with the turns before it, their answers too, as context."""
        return answer_by_answer(record)

    def fingerprint(self) -> str:
        """Hash of the shards' content, from the card."""
        return self._fingerprint


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(settings.items()))


def _write(path: Path, records: Iterable[Record]) -> int:
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record a group, so that each can be read alone
    count = 0
    try:
        for record in records:
            writer.write(_pack(record))
            count += 1
    finally:
        writer.close()
    return count


def _pack(record: Record) -> bytes:
    fields = {
        "id": record.id,
        # The weight only where it is another than 1: records without weights keep their bytes.
        "turns": [[t.role, t.text, *([t.weight] if t.weight != 1 else [])] for t in record.turns],
        "images": [_packed(medium, record.origin) for medium in record.images],
        "origin": record.origin,
        "group": record.group,
        "rejected": record.rejected,
        "continues": record.continues,
    }
    return msgpack.packb(fields, unicode_errors="surrogateescape")  # a path, in `origin`, may be no UTF-8


def _unpack(data: bytes) -> Record:
    """Decodes a record; raises some exception if the bytes are none."""
    fields = msgpack.unpackb(data, unicode_errors="surrogateescape")
    turns = tuple(Turn(role, text, *map(float, weight)) for role, text, *weight in fields["turns"])
    id, origin, group, rejected = (fields[name] for name in ("id", "origin", "group", "rejected"))
    continues = bool(fields.get("continues"))  # older files have none
    media = tuple(map(_unpacked, fields["images"]))
    record = Record(id, turns, media, origin, group, rejected, continues)
    texts = [record.id, record.origin, record.group, record.rejected]
    texts.extend(text for turn in turns for text in (turn.role, turn.text))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field is of another type")
    return record


def _packed(medium: Medium, origin: str) -> bytes | dict[str, Any]:
    if isinstance(medium, bytes):
        return medium
    frames = medium.source if isinstance(medium, Video) else ()
    if isinstance(medium, Video) and isinstance(frames, tuple) and all(isinstance(frame, bytes) for frame in frames):
        return {"frames": list(frames), "fps": medium.fps, "numbers": list(medium.numbers)}
    raise ValueError(f"{origin}: a prepared record holds its images as bytes and its videos as frames, found a path")


def _unpacked(medium: Any) -> Medium:
    """A medium that `_packed` returned; raises some exception if it is none."""
    if isinstance(medium, bytes):
        return medium
    numbers = tuple(map(int, medium.get("numbers", ())))  # older files have none
    video = Video(tuple(medium["frames"]), float(medium["fps"]), numbers)
    if not all(isinstance(frame, bytes) for frame in video.source) or not video.fps > 0:
        raise ValueError("a video is no list of frames")
    if numbers and (len(numbers) != len(video.source) or list(numbers) != sorted(set(numbers)) or numbers[0] < 0):
        raise ValueError("a video's numbers of frames are not one for each frame, ascending")
    return video


def _is_shard(shard: Any) -> bool:
    return (
        isinstance(shard, dict)
        and all(isinstance(shard.get(key), str) for key in ("name", "blake2b"))
        and _SHARD.fullmatch(shard["name"]) is not None
        and _HASH.fullmatch(shard["blake2b"]) is not None
        and all(type(shard.get(key)) is int and shard[key] >= 0 for key in ("records", "bytes"))
    )


def _check(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Raises `UserError` with every shard that is missing, truncated, or has another record count than on the card."""
    with ThreadPoolExecutor(16) as pool:
        problems = [problem for problem in pool.map(lambda shard: _shard_problem(folder, shard), shards) if problem]
    if problems:
        raise UserError(f"{folder} differs from its {CARD}: {listed(problems)}; {_REMEDY}")


def _shard_problem(folder: Path, shard: dict[str, Any]) -> str:
    path = folder / shard["name"]
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != shard["bytes"]:
        return f"{path.name} has {size} bytes, the card says {shard['bytes']}"
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except (OSError, RuntimeError, ValueError) as error:
        return f"{path.name} cannot be read ({error})"
    return "" if count == shard["records"] else f"{path.name} holds {count} records, the card says {shard['records']}"


def _fetch(address: str, shards: Sequence[dict[str, Any]], fingerprint: str) -> Path:
    """Downloads the shards that are not cached; returns the local folder."""
    folder = cache_folder() / "prepared" / fingerprint[:32]
    wanted = [shard for shard in shards if not _is_here(folder / shard["name"], shard)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(shard["bytes"] for shard in wanted)
        with progress_bar(f"copying {address}", total, "B", scaled=True) as bar:
            for shard in wanted:
                _copy(epath.Path(address) / shard["name"], folder / shard["name"], shard, bar)
    except UserError:
        raise
    except Exception as error:  # as in `read_card`
        raise UserError(
            f"{address} cannot be copied to {folder} ({on_a_line(error)}); check the access to it and "
            "the space on the disk, or set JAXVLM_CACHE to another folder"
        ) from error
    return folder


def _is_here(path: Path, shard: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == shard["bytes"]


def _copy(source: epath.Path, target: Path, shard: dict[str, Any], bar: Any) -> None:
    """Downloads one shard atomically, so several processes may do this at once."""
    half = target.with_name(f".{target.name}.{os.getpid()}")
    digest = hashlib.blake2b()
    try:
        with source.open("rb") as remote, half.open("wb") as local:
            while data := remote.read(_CHUNK):
                digest.update(data)
                local.write(data)
                bar.update(len(data))
        if digest.hexdigest() != shard["blake2b"]:
            size = half.stat().st_size
            raise UserError(
                f"{source} is not what its {CARD} describes ({size} bytes of {shard['bytes']}, or others); {_REMEDY}"
            )
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
