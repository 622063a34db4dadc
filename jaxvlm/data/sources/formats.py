"""Formats: how a dictionary of a data set becomes a `Record`.

  Chat    turns in a list: LLaVA's files, and LLaMA-Factory's sharegpt and openai
  Alpaca  a question and an answer in columns, with earlier rounds in another

Source: the formats of LLaMA-Factory, its data/README.md; LLaVA's docs/Finetune_Custom_Data.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.errors import UserError

Problems = list[tuple[str, str]]  # (reason, what is wrong)

UNSUPPORTED = "unsupported"  # of a role that is known and cannot be trained on
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Chat:
    """Turns in a list: the names of its columns, of the keys of a turn, and of the roles."""

    messages: str = "conversations"
    role: str = "from"
    content: str = "value"
    roles: tuple[tuple[str, str], ...] = (
        ("human", "user"),
        ("gpt", "assistant"),
        ("system", "system"),
        ("observation", UNSUPPORTED),
        ("function_call", UNSUPPORTED),
    )
    system: str | None = None
    images: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    # LLaMA-Factory requires question, answer, question, answer. Turns of LLaVA's files are checked later.
    strict: bool = True

    def columns(self) -> list[str]:
        """Names of the columns it reads."""
        return _named(self.messages, self.system, self.images, self.chosen, self.rejected)

    def read(self, item: dict[str, Any], problems: Problems) -> tuple[list[Turn], str]:
        """The turns of an item, and the rejected answer."""
        before = len(problems)
        turns = self._messages(item, problems)
        if self.system and not (turns and turns[0].role == "system"):
            turns = _system(item, self.system, problems) + turns
        rejected = ""
        whole = len(problems) == before  # a turn left out for a fault would be reported again as a role out of place
        if self.chosen and self.rejected:
            if self.strict and whole:
                _check_roles(turns, "user", problems)
            turns += self._answer(item, self.chosen, problems)
            rejected = "".join(turn.text for turn in self._answer(item, self.rejected, problems))
        elif self.strict and whole:
            _check_roles(turns, "assistant", problems)
        return turns, rejected

    def _messages(self, item: dict[str, Any], problems: Problems) -> list[Turn]:
        messages = _column(item, self.messages, problems)
        if messages is _MISSING:
            return []
        if not isinstance(messages, list):
            problems.append(("wrong_type", f'"{self.messages}" is a list of turns, found {kind(messages)}'))
            return []
        found = [self._turn(turn, f'"{self.messages}"[{i}]', problems) for i, turn in enumerate(messages)]
        return [turn for turn in found if turn is not None]

    def _answer(self, item: dict[str, Any], column: str, problems: Problems) -> list[Turn]:
        turn = _column(item, column, problems)
        found = None if turn is _MISSING else self._turn(turn, f'"{column}"', problems)
        if found is None:
            return []
        if found.role != "assistant":
            problems.append(("roles", f'"{column}" is a turn of the assistant, found one of {found.role}'))
        elif not found.text.strip():
            problems.append(("empty_turn", f'"{column}" is empty'))
        return [found]

    def _turn(self, turn: Any, where: str, problems: Problems) -> Turn | None:
        if not isinstance(turn, dict):
            expected = f'an object of "{self.role}" and "{self.content}"'
            problems.append(("wrong_type", f"{where} is {expected}, found {kind(turn)}"))
            return None
        missing = [f'"{key}"' for key in (self.role, self.content) if key not in turn]
        if missing:
            problems.append(("missing_key", f"{where} lacks {' and '.join(missing)}"))
            return None
        name, text = turn[self.role], turn[self.content]
        role = dict(self.roles).get(name) if isinstance(name, str) else None
        if role is None:
            *names, last = [name for name, role in self.roles if role != UNSUPPORTED]
            expected = f"{', '.join(names)} or {last}"
            problems.append(("unknown_role", f'{where} "{self.role}" is {short(name)}, expected {expected}'))
        elif role == UNSUPPORTED or turn.get("tool_calls"):
            called = f'"{self.role}" is {short(name)}' if role == UNSUPPORTED else 'has "tool_calls"'
            problems.append(("unsupported", f"{where} {called}: calls of tools cannot be trained on"))
        elif isinstance(text, list):
            return self._parts(role, text, where, problems)
        elif not isinstance(text, str):
            problems.append(("wrong_type", f'{where} "{self.content}" is a string, found {kind(text)}'))
        else:
            return Turn(role, text)
        return None

    def _parts(self, role: str, parts: list[Any], where: str, problems: Problems) -> Turn | None:
        """A turn as OpenAI's list of parts: [{"type": "image"}, {"type": "text", "text": "Who?"}]."""
        texts = []
        for i, part in enumerate(parts):
            name = part.get("type") if isinstance(part, dict) else None
            if name == "image":
                texts.append(IMAGE)
            elif name == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                place = f'{where} "{self.content}"[{i}]'
                expected = 'an object of "type" "text", with "text", or of "type" "image"'
                problems.append(("wrong_type", f"{place} is {expected}, found {kind(part)}"))
        return Turn(role, "".join(texts)) if len(texts) == len(parts) else None


@dataclasses.dataclass(frozen=True)
class Alpaca:
    """A question and an answer in columns: the names of these."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    system: str | None = None
    images: str | None = None
    chosen: str | None = None
    rejected: str | None = None

    def columns(self) -> list[str]:
        """Names of the columns it reads."""
        return _named(*dataclasses.astuple(self))

    def read(self, item: dict[str, Any], problems: Problems) -> tuple[list[Turn], str]:
        """The turns of an item, and the rejected answer."""
        turns = _system(item, self.system, problems) if self.system else []
        turns += self._history(item, problems)
        question = [_text(item, column, problems) for column in (self.prompt, self.query) if column and column in item]
        if not question:
            names = " or ".join(f'"{column}"' for column in (self.prompt, self.query) if column)
            problems.append(("missing_key", f"the key {names} is missing ({_keys(item)})"))
        turns.append(Turn("user", "\n".join(text for text in question if text)))
        answers = [self.chosen, self.rejected] if self.chosen else [self.response]
        texts = []
        for column in answers:
            assert column is not None  # dataset_info.py refuses an entry without
            text = _column(item, column, problems)
            if text is _MISSING:
                text = ""
            elif not isinstance(text, str):
                problems.append(("wrong_type", f'"{column}" is a string, found {kind(text)}'))
                text = ""
            elif not text.strip():
                problems.append(("empty_turn", f'"{column}" is empty'))
            texts.append(text)
        turns.append(Turn("assistant", texts[0]))
        return turns, texts[1] if self.chosen else ""

    def _history(self, item: dict[str, Any], problems: Problems) -> list[Turn]:
        rounds = item.get(self.history) if self.history else None
        if rounds is None:
            return []
        if not isinstance(rounds, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in rounds
        ):
            expected = "a list of rounds, each a list of a question and its answer"
            problems.append(("wrong_type", f'"{self.history}" is {expected}, found {kind(rounds)}'))
            return []
        return [Turn(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]


Format = Chat | Alpaca

LLAVA = Chat(roles=(("human", "user"), ("gpt", "assistant"), ("system", "system")), images="image", strict=False)
SHAREGPT = Chat()
OPENAI = Chat(
    messages="messages",
    role="role",
    content="content",
    roles=(
        ("user", "user"),
        ("assistant", "assistant"),
        ("system", "system"),
        ("tool", UNSUPPORTED),
        ("function", UNSUPPORTED),
    ),
)


def recognise(columns: Iterable[str], where: str, remedy: str) -> Format:
    """The format of a table from the names of its columns.

    Raises:
      UserError: it is none that is known; `where` names the table, `remedy` what to do.
    """
    found = set(columns)
    images = [column for column in ("images", "image") if column in found]
    if len(images) < 2:
        image = images[0] if images else None
        system = "system" if "system" in found else None
        if "messages" in found:
            return dataclasses.replace(OPENAI, images=image, system=system)
        if "conversations" in found:
            return dataclasses.replace(SHAREGPT, images=image, system=system)
        if {"instruction", "output"} <= found:
            return Alpaca(query="input" if "input" in found else None, images=image, system=system)
    raise UserError(
        f"{where}: its columns ({', '.join(sorted(found)) or 'none'}) are of no format that is recognised: "
        f"messages, or conversations, or instruction and output, and image or images, not both; {remedy}"
    )


@dataclasses.dataclass(frozen=True)
class ImageRule:
    """What image paths are relative to, and whether they may lead out of it."""

    folder: Path
    allow_outside: bool = False

    def resolve(self, image: str, problems: Problems) -> str:
        """The path of an image; never looks at the disk, so symbolic links may lead anywhere."""
        if _URL.match(image):
            problems.append(
                (
                    "image_url",
                    f"image {short(image)} is a URL, and no URL is fetched while training; download the image and "
                    "give its path",
                )
            )
        elif _SURROGATES.search(image):
            problems.append(("invalid_unicode", f"image {short(image)} holds half of a surrogate pair, no character"))
        elif "\0" in image:
            problems.append(("image_path", f"image {short(image)} holds a NUL character, which no path can"))
        elif not self.allow_outside and not self._is_inside(image):
            problems.append(
                (
                    "image_outside",
                    f"image {short(image)} leads out of the image folder {self.folder}; move the image there, set "
                    "data.image_folder to a folder that holds all images, or set data.allow_outside = True",
                )
            )
        return str(self.folder / image)  # an absolute path stays as it is

    def _is_inside(self, image: str) -> bool:
        folder = os.path.abspath(self.folder)
        return os.path.abspath(os.path.join(folder, image)).startswith(folder.rstrip(os.sep) + os.sep)


def make_record(item: Any, origin: str, format: Format, rule: ImageRule) -> Record:
    """Makes a record of a dictionary.

    Raises:
      RecordError: with all faults; its reason is that of the first.
    """
    problems: Problems = []
    if not isinstance(item, dict):
        problems.append(("wrong_type", f"a record is an object, found {kind(item)}"))
        raise _rejection(origin, problems)
    turns, rejected = format.read(item, problems)
    given = _images(item, format.images, problems) if format.images else []
    if not given and any(IMAGE in turn.text for turn in turns if turn.role == "user"):
        _find_unread_images(item, format.images, problems)
    images = [rule.resolve(image, problems) if isinstance(image, str) else image for image in given]
    id = item.get("id")
    if id is None:
        id = _content_id(turns, rejected, given)
    elif not isinstance(id, (str, int)) or isinstance(id, bool):
        problems.append(("wrong_type", f'"id" is a string, found {kind(id)}'))
    texts = [str(item.get("id")), *(turn.text for turn in turns), rejected]  # our own paths may contain them
    if any(not text.isascii() and _SURROGATES.search(text) for text in texts):
        problems.append(("invalid_unicode", r"a text holds half of a surrogate pair (\ud800 to \udfff), no character"))
    if problems:
        raise _rejection(origin, problems)
    return Record(str(id), tuple(turns), tuple(images), origin, rejected=rejected)


def _content_id(turns: list[Turn], rejected: str, images: list[str | bytes]) -> str:
    """The id of a record without one: independent of its folder and of other records."""
    names = [image if isinstance(image, str) else hashlib.blake2b(image).hexdigest() for image in images]
    content = json.dumps([[[turn.role, turn.text] for turn in turns], rejected, names])
    return "content:" + hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def kind(value: Any) -> str:
    """The type of a value and the value, for messages: 'a string ("x")'."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        type(None): "null",
        bool: "true or false",
        bytes: "bytes",
    }
    return f"{names.get(type(value), 'a number')} ({short(value)})"


def short(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    try:
        text = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, a number of 5,000 digits, deep nesting
        text = "..."
    return text if len(text) <= 60 else text[:57] + "..."


_MISSING: Any = object()


def _named(*columns: str | None) -> list[str]:
    return [column for column in columns if column]


def _column(item: dict[str, Any], column: str, problems: Problems) -> Any:
    if column not in item:
        problems.append(("missing_key", f'the key "{column}" is missing ({_keys(item)})'))
        return _MISSING
    return item[column]


def _keys(item: dict[str, Any]) -> str:
    names = ", ".join(repr(str(key))[1:-1] for key in item) or "none"
    return f"keys found: {names if len(names) <= 200 else names[:197] + '...'}"


def _text(item: dict[str, Any], column: str, problems: Problems) -> str:
    """A text that may be absent."""
    text = item.get(column)
    if text is not None and not isinstance(text, str):
        problems.append(("wrong_type", f'"{column}" is a string, found {kind(text)}'))
        return ""
    return text or ""


def _system(item: dict[str, Any], column: str, problems: Problems) -> list[Turn]:
    text = _text(item, column, problems)
    return [Turn("system", text)] if text else []


def _check_roles(turns: list[Turn], last: str, problems: Problems) -> None:
    """LLaMA-Factory's rule: after a system message user, assistant, user, assistant, to the end."""
    first = int(bool(turns) and turns[0].role == "system")
    for index, turn in enumerate(turns[first:]):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            found = f"turn {index + first} is of role {turn.role}"
            problems.append(("roles", f"{found}, expected {expected}: user and assistant alternate, user first"))
            return
    if len(turns) == first:
        problems.append(("no_turns", f"{len(turns)} turns and none of a user"))
    elif turns[-1].role != last:
        problems.append(("last_turn", f"the last turn must be of role {last}, found {turns[-1].role}"))


def _images(item: dict[str, Any], column: str, problems: Problems) -> list[str | bytes]:
    images = item.get(column)
    if images is None:
        return []
    found = [_image(image) for image in (images if isinstance(images, list) else [images])]
    given = [image for image in found if image is not None]
    if len(given) < len(found):
        expected = 'a path, the bytes of an image file, an object of "bytes" and "path", or a list of these'
        problems.append(("wrong_type", f'"{column}" is {expected}, found {short(images)}'))
        return []
    return given


def _find_unread_images(item: dict[str, Any], column: str | None, problems: Problems) -> None:
    """Names a key with images that the format does not read; else they would be reported as missing."""
    for key in ("image", "images"):
        if key != column and item.get(key):
            read = f'the key that is read is "{column}"' if column else "columns.images names no key to read"
            problems.append(("images_unread", f'its images, under "{key}", are not read: {read}'))


def _image(image: Any) -> str | bytes | None:
    if isinstance(image, dict):  # how `datasets` stores an image
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    return image if isinstance(image, (str, bytes)) and image else None


def _rejection(origin: str, problems: Problems) -> RecordError:
    words = "; ".join(problem for _, problem in problems)
    return RecordError(f"{origin}: {words}; fix the record or remove it", origin, problems[0][0])
