"""Sources of records: what a recipe's `data.source` can name.

A source is a random-access sequence that makes each record on demand. It is small in memory and cheap to send to
worker processes, and an invalid record raises only when it is read:

  len(source)        number of records
  source[i]          `Record`; raises `RecordError`
  source.origin(i)   the place of record i: "file.json[12]", "file.jsonl:13" (a line), "easy_vqa:train[12]"
  source.questions(record)
                     the evaluation questions of a record: records that end with the reference answer
  source.fingerprint()
                     hash of the content, and of the settings by which it becomes records

Most sources are items, random access to dictionaries (items.py, json_items.py, tables.py, tfds_items.py), with a
format that makes records of these (formats.py).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from jaxvlm.data.records import Record
from jaxvlm.data.sources.formats import AnyChat, Document
from jaxvlm.data.sources.image_refs import ImageRule
from jaxvlm.data.sources.items import ItemSource
from jaxvlm.data.sources.json_items import JsonItems
from jaxvlm.errors import UserError

_ACCEPTED = (
    "a file of conversations or texts (.json, .jsonl, .parquet, .arrow, .csv, .txt, or several as in DIR/*.txt), "
    "PATH/dataset_info.json:NAME (LLaMA-Factory's), a folder that "
    '`inspect_data prepare` wrote, "hf:NAME", "tfds:NAME", "easy_vqa:train" or "easy_vqa:test"'
)
_ENTRY = re.compile(r"(?P<file>.+\.json):(?P<name>[^/]+)", re.DOTALL)


class Source(Protocol):
    """See the top of this file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def origin(self, index: int) -> str: ...  # noqa: D102

    def questions(self, record: Record) -> list[Record]: ...  # noqa: D102

    def fingerprint(self) -> str: ...  # noqa: D102


def load_source(spec: str, image_folder: str = "", *, allow_outside: bool = False) -> Source:
    """Opens the source that a recipe's `data.source` names.

    Args:
      spec: one of

        x.json, x.jsonl               conversations (LLaVA's, OpenAI's and others), or texts under "text"
        x.parquet, x.arrow, x.csv     the same in columns
        x.txt, DIR/*.txt              texts, a file each
        DIR/dataset_info.json:NAME    an entry of a LLaMA-Factory file
        DIR, gs://BUCKET/DIR          a folder of prepared records, with its card.json
        hf:NAME[:SPLIT]               a data set of the Hugging Face hub, or a folder of one
        tfds:NAME[/CONFIG][:SPLIT]    a data set of TensorFlow Datasets
        easy_vqa:train[:KINDS]        the easy-VQA package, or "easy_vqa:test"; only some kinds of questions, as in
                                      "easy_vqa:train:shape+color"
      image_folder: what relative image paths are relative to; "": the folder of the file.
      allow_outside: whether an image path may lead out of that folder.

    Raises:
      UserError: an unknown spec, a missing or unreadable file or folder, or a file of another kind than its name.
    """
    if spec.startswith(("easy_vqa:train", "easy_vqa:test")):
        from jaxvlm.data.sources.easy_vqa import EasyVqa

        return EasyVqa(spec)
    if "\0" in spec + image_folder:
        raise UserError(f"data.source = {spec!r}, data.image_folder = {image_folder!r}: no path holds a NUL character")
    if image_folder and not Path(image_folder).is_dir():
        raise UserError(f"data.image_folder = {image_folder!r}: there is no such folder")
    if spec.startswith("hf:") and not spec.startswith("hf://"):
        from jaxvlm.data.sources.tables import load_hf

        return load_hf(spec, image_folder, allow_outside=allow_outside)
    if spec.startswith("tfds:") and not spec.startswith("tfds://"):
        from jaxvlm.data.sources.tfds_items import load_tfds

        return load_tfds(spec, image_folder, allow_outside=allow_outside)
    if "://" in spec or Path(spec, "card.json").is_file():
        from jaxvlm.data.sources.prepared import PreparedSource

        return PreparedSource(spec)
    path = Path(spec)
    entry = _ENTRY.fullmatch(spec)
    if entry and not path.is_file():
        from jaxvlm.data.sources.dataset_info import load_entry

        return load_entry(Path(entry["file"]), entry["name"], image_folder, allow_outside=allow_outside)
    if path.is_dir():
        raise UserError(
            f"data.source = {spec!r}: the folder holds no card.json, so `inspect_data prepare` did not write it (or "
            f'did not finish); for a Hugging Face data set give "hf:{spec}"'
        )
    rule = ImageRule(Path(image_folder) if image_folder else path.parent, allow_outside)
    if spec.endswith(".txt"):
        from jaxvlm.data.sources.text_files import TextFiles

        return ItemSource(TextFiles(spec), Document(), rule, image_folder)
    if spec.endswith((".parquet", ".arrow", ".csv")) and path.is_file():
        from jaxvlm.data.sources.tables import load_table

        return load_table(spec, rule, image_folder)
    if not spec.endswith((".json", ".jsonl")):
        raise UserError(f"data.source = {spec!r} is unknown; give {_ACCEPTED}")
    if not path.is_file():
        raise UserError(f"data.source = {spec!r}: there is no such file; give {_ACCEPTED}")
    if path.name == "dataset_info.json":
        raise UserError(f"data.source = {spec!r} describes several data sets; name one, as in {spec}:NAME")
    return ItemSource(JsonItems(path), AnyChat(), rule, image_folder)


def id_hash(id: str) -> int:
    """64 bits of a hash of a record's id.

    Below `share * 2**64` the record belongs to the held-out share, which is independent of the other records;
    records with the same id (several conversations about one image) stay on the same side.
    """
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
