"""Sources of records: LLaVA JSON and JSON Lines files, and the easy-VQA package.

A source is a random-access sequence that parses a record when it is asked for, so it is small in memory, cheap to send
to worker processes, and a record that breaks a rule raises alone:

  len(source)        number of records
  source[i]          `Record`; raises `RecordError`
  source.origin(i)   where record i stands: "file.json[12]", "file.jsonl:13" (a line), "easy_vqa:train[12]"
  source.questions(record)
                     what evaluation asks of a record: records that end in the one answer to compare with
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.errors import UserError

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_ACCEPTED = 'a LLaVA file (.json or .jsonl), "easy_vqa:train" or "easy_vqa:test"'
_KINDS = ("shape", "color", "yes/no")  # of easy-VQA's questions
_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON calls whitespace


class Source(Protocol):
    """See the top of this file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def origin(self, index: int) -> str: ...  # noqa: D102

    def questions(self, record: Record) -> list[Record]: ...  # noqa: D102

    def fingerprint(self) -> str: ...  # noqa: D102


def load_source(spec: str, image_folder: str = "", *, allow_outside: bool = False) -> Source:
    """Opens what a recipe's `data.source` names.

    Args:
      spec: path of a LLaVA .json or .jsonl file, or "easy_vqa:train", or "easy_vqa:test"; with kinds of questions
        behind it, as in "easy_vqa:train:shape+color", only those.
      image_folder: what relative image paths of a file are relative to; "": the file's own folder.

    Raises:
      UserError: an unknown spec, a missing or unreadable file or folder, or a .json file that is no list.
    """
    if spec.startswith(("easy_vqa:train", "easy_vqa:test")):
        return EasyVqa(spec)
    if not spec.endswith((".json", ".jsonl")):
        raise UserError(f"data.source = {spec!r} is unknown; give {_ACCEPTED}")
    path = Path(spec)
    if not path.is_file():
        raise UserError(f"data.source = {spec!r}: there is no such file; give {_ACCEPTED}")
    if image_folder and not Path(image_folder).is_dir():
        raise UserError(f"data.image_folder = {image_folder!r}: there is no such folder")
    return LlavaFile(path, Path(image_folder) if image_folder else path.parent)


def id_hash(id: str) -> int:
    """64 bits of a hash of a record's id.

    Below `share * 2**64` the record belongs to the held-out share, which so never moves, whatever else is in the data;
    records with the same id (several conversations about one image) stay on the same side.
    """
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big")


class LlavaFile:
    """A LLaVA conversation file; holds only where in the file each record stands.

    A record is `{"id", "image", "conversations": [{"from": "human" | "gpt" | "system", "value": text}, ...]}`, where
    `image` is a path or a list of them, and absent for text alone; other keys are ignored. A record without an id is
    called after its place. A .json file is a list of records, a .jsonl file has one on each line.
    """

    def __init__(self, path: Path, image_folder: Path):
        self._path, self._image_folder = path, image_folder
        self._lines: np.ndarray | None = None
        try:
            data = path.read_bytes()
            self._fingerprint = hashlib.blake2b(data).hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        if path.suffix == ".jsonl":
            self._spans, self._lines = _line_spans(data)
        else:
            self._spans = _array_spans(data, path)

    def fingerprint(self) -> str:
        """TMP."""
        return self._fingerprint + str(self._image_folder)

    def __len__(self) -> int:
        return len(self._spans)

    def origin(self, index: int) -> str:
        """Where record `index` stands: "file.json[12]" counts from 0, "file.jsonl:13" is a line, from 1."""
        return f"{self._path}[{index}]" if self._lines is None else f"{self._path}:{self._lines[index]}"

    def __getitem__(self, index: int) -> Record:
        """Parses one record.

        Raises:
          RecordError: with everything that is wrong with it.
        """
        origin = self.origin(index)
        start, end = self._spans[index]
        # Opened for each record: there is no file handle to share between threads or to send to processes.
        with self._path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        try:
            item = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{origin} is not UTF-8 (byte {error.start} of the record is {data[error.start]:#04x}); "
                "save the file as UTF-8",
                origin,
                "invalid_utf8",
            ) from error
        except (ValueError, RecursionError) as error:
            raise RecordError(
                f"{origin} is not valid JSON ({error}); each line of a .jsonl file is one whole record",
                origin,
                "invalid_json",
            ) from error
        return _parse(item, origin, self._image_folder)

    def questions(self, record: Record) -> list[Record]:
        """A question for each assistant turn, with the turns before it, their answers too, as context."""
        ends = [i for i, turn in enumerate(record.turns) if turn.role == "assistant"]
        if len(ends) == 1 and ends[0] == len(record.turns) - 1:
            return [record]
        return [_question(record, record.turns[: end + 1], number) for number, end in enumerate(ends)]


class EasyVqa:
    """easy-VQA: 64x64 drawings, each with all its questions as one conversation. The questions are independent."""

    def __init__(self, spec: str):
        _, split, *chosen = spec.split(":")
        kinds = chosen[0].split("+") if chosen else list(_KINDS)
        unknown = [kind for kind in kinds if kind not in _KINDS]
        if split not in ("train", "test") or len(chosen) > 1 or unknown:
            raise UserError(
                f"data.source = {spec!r} is unknown; give easy_vqa:train or easy_vqa:test, and behind it, if only some "
                f'questions are wanted, their kinds, such as ":{"+".join(_KINDS)}"'
            )
        try:
            import easy_vqa
        except ModuleNotFoundError as error:
            raise UserError(
                f"data.source = {spec!r} needs the easy-vqa package; pip install jaxvlm[quickstart]"
            ) from error
        self._spec, self._split = spec, split
        train = split == "train"
        self._paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
        self._rounds: dict[int, list[tuple[str, str]]] = {}
        asked = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
        for question, answer, image in zip(*asked, strict=True):
            if question_kind(question) in kinds:
                self._rounds.setdefault(image, []).append((question, answer))
        self._images = sorted(self._rounds)

    def fingerprint(self) -> str:
        """TMP."""
        return self._spec

    def __len__(self) -> int:
        return len(self._images)

    def origin(self, index: int) -> str:
        """Where record `index` stands: "easy_vqa:train[12]"."""
        return f"{self._spec}[{index}]"

    def __getitem__(self, index: int) -> Record:
        image = self._images[index]
        turns = []
        for number, (question, answer) in enumerate(self._rounds[image]):
            turns.append(Turn("user", question if number else f"{IMAGE}\n{question}"))
            turns.append(Turn("assistant", answer))
        return Record(f"easy_vqa:{self._split}/{image}", tuple(turns), (self._paths[image],), self.origin(index))

    def questions(self, record: Record) -> list[Record]:
        """Each question alone with the image; its group is the kind of question."""
        questions = []
        for number in range(len(record.turns) // 2):
            user, answer = record.turns[2 * number : 2 * number + 2]
            text = user.text.removeprefix(f"{IMAGE}\n")
            turns = (Turn("user", f"{IMAGE}\n{text}"), answer)
            questions.append(_question(record, turns, number, group=question_kind(text)))
        return questions


def question_kind(question: str) -> str:
    """The kind of an easy-VQA question: "yes/no" unless it asks what; then "color" if it names color, else "shape"."""
    if not question.startswith("what"):
        return "yes/no"
    return "color" if "color" in question else "shape"


def _question(record: Record, turns: tuple[Turn, ...], number: int, group: str = "") -> Record:
    """The part of `record` that is `turns`, with the images that these have placeholders for."""
    images = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    return Record(f"{record.id}#{number}", turns, record.images[:images], record.origin, group or record.group)


def _parse(item: Any, origin: str, image_folder: Path) -> Record:
    """Makes a record of what JSON gave; raises one `RecordError` with everything that is wrong."""
    if not isinstance(item, dict):
        _reject(origin, "wrong_type", f"a record is an object, found {_kind(item)}")
    problems: list[tuple[str, str]] = []
    turns = _parse_turns(item, problems)
    images = _parse_images(item, image_folder, problems)
    id = item.get("id", origin)
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        problems.append(("wrong_type", f'"id" is a string, found {_kind(id)}'))
    texts = [str(id), *(turn.text for turn in turns), *images]
    if any(_has_surrogates(text) for text in texts):
        problems.append(("invalid_unicode", r"a text holds half of a surrogate pair (\ud800 to \udfff), no character"))
    if problems:
        _reject(origin, problems[0][0], "; ".join(problem for _, problem in problems))
    return Record(str(id), tuple(turns), tuple(images), origin)


def _parse_turns(item: dict[str, Any], problems: list[tuple[str, str]]) -> list[Turn]:
    if "conversations" not in item:
        keys = ", ".join(map(str, item)) or "none"
        problems.append(("missing_key", f'the key "conversations" is missing (keys found: {keys})'))
        return []
    conversations = item["conversations"]
    if not isinstance(conversations, list):
        problems.append(("wrong_type", f'"conversations" is a list of turns, found {_kind(conversations)}'))
        return []
    turns = []
    for i, turn in enumerate(conversations):
        where = f'"conversations"[{i}]'
        if not isinstance(turn, dict):
            problems.append(("wrong_type", f'{where} is an object of "from" and "value", found {_kind(turn)}'))
            continue
        missing = [f'"{key}"' for key in ("from", "value") if key not in turn]
        if missing:
            problems.append(("missing_key", f"{where} lacks {' and '.join(missing)}"))
            continue
        role, text = turn["from"], turn["value"]
        if not isinstance(role, str) or role not in _ROLES:
            problems.append(("unknown_role", f'{where} "from" is {_short(role)}, expected human, gpt or system'))
        elif not isinstance(text, str):
            problems.append(("wrong_type", f'{where} "value" is a string, found {_kind(text)}'))
        else:
            turns.append(Turn(_ROLES[role], text))
    return turns


def _parse_images(item: dict[str, Any], image_folder: Path, problems: list[tuple[str, str]]) -> list[str]:
    images = item.get("image")
    if images is None:
        return []
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        problems.append(("wrong_type", f'"image" is a path or a list of paths, found {_short(images)}'))
        return []
    return [str(image_folder / image) for image in images]  # an absolute path stays as it is


def _reject(origin: str, reason: str, problem: str) -> None:
    raise RecordError(f"{origin}: {problem}; mend the record or remove it", origin, reason)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return f"{names.get(type(value), 'a number')} ({_short(value)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def _line_spans(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Byte spans int64[n, 2] of the lines that are not blank, and their numbers int64[n], from 1."""
    spans, numbers, start = [], [], 0
    for number, line in enumerate(data.split(b"\n"), 1):
        bom = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # some editors put a mark in front of UTF-8
        if line[bom:].strip():
            spans.append((start + bom, start + len(line)))
            numbers.append(number)
        start += len(line) + 1
    return np.array(spans, np.int64).reshape(-1, 2), np.array(numbers, np.int64)


def _array_spans(data: bytes, path: Path) -> np.ndarray:
    """Byte spans int64[n, 2] of the elements of a JSON list; raises `UserError` if it is none."""
    bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = data[bom:].decode("utf-8")
        spans = np.array(_element_spans(text), np.int64).reshape(-1, 2)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start + bom) + 1
        raise UserError(
            f"{path} is not UTF-8 (line {line}, byte {error.start + bom} is {data[error.start + bom]:#04x}); "
            "save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not a JSON list of records ({error}); mend it there, "
            "or name the file .jsonl if each line is one record"
        ) from error
    if not text.isascii():
        spans = _byte_offsets(text, spans.reshape(-1)).reshape(-1, 2)
    return spans + bom


def _element_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the elements of a JSON list."""
    scan = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        space = _SPACE.match(text, at)
        return space.end() if space else at

    at = skip(0)
    if text[at : at + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, at)
    spans: list[tuple[int, int]] = []
    at = skip(at + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        _, end = scan(text, at)
        spans.append((at, end))
        at = skip(end)
        closed = text[at : at + 1] == "]"
        if not closed:
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = skip(at + 1)
    if skip(at + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, at + 1)
    return spans


def _byte_offsets(text: str, characters: np.ndarray) -> np.ndarray:
    """Where the ascending character positions stand in the UTF-8 of `text`; int64[n]."""
    offsets, last, byte = [], 0, 0
    for character in characters:
        byte += len(text[last:character].encode())
        offsets.append(byte)
        last = character
    return np.array(offsets, np.int64)
