"""Formats: how a dictionary of a data set becomes a `Record`.

  Chat    turns in a list: LLaVA's files, OpenAI's messages, and LLaMA-Factory's sharegpt and openai
  Alpaca  a question and an answer in columns, with earlier rounds in another
  Document  a text without a question
  AnyChat one of these for each dictionary, by its keys

Source: the formats of LLaMA-Factory, its data/README.md; LLaVA's docs/Finetune_Custom_Data.md; OpenAI's fine-tuning
files; the loss switches of ms-swift ("loss"), axolotl ("train", "weight") and OpenAI ("weight").
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.data.sources.content import ANY, MISSING, Content, found_keys, named, read_column, read_system, read_text
from jaxvlm.data.sources.image_refs import (
    IMAGE_KEYS,
    SURROGATES,
    VIDEO_KEYS,
    ImageRule,
    find_column,
    find_key,
    is_empty,
    read_images,
)
from jaxvlm.data.sources.media_refs import PARTS, content_id, in_order, read_part, resolve, with_medium_in_front
from jaxvlm.data.sources.values import Problems, foreign_placeholders, kind, short
from jaxvlm.data.sources.video_refs import FPS_KEYS, rate_key, read_videos
from jaxvlm.errors import UserError

UNSUPPORTED = "unsupported"  # of a role that is known and cannot be trained on
SYSTEM_KEYS = ("system", "system_prompt")
# Keys whose content cannot be trained on, and what it is. A record that has one is refused: without it, it would teach
# something else.
_UNTRAINABLE = (
    dict.fromkeys(("audio", "audios"), "audio")
    | dict.fromkeys(("tools", "functions"), "calls of tools")
    | {"objects": "objects that placeholders of the text refer to", "kto_tag": "marks of desired answers (KTO)"}
)
_LOSS_KEYS = ("loss", "train", "weight", "loss_weight")  # of a turn: whether, or how much, it counts in the loss


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
    videos: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    # LLaMA-Factory requires question, answer, question, answer. Turns of other files are checked later.
    strict: bool = True

    def columns(self) -> list[str]:
        """Names of the columns it reads."""
        return named(self.messages, self.system, self.images, self.videos, self.chosen, self.rejected)

    def read(self, item: dict[str, Any], problems: Problems) -> Content:
        """The turns of an item."""
        before, content = len(problems), Content([])
        self._read_messages(item, content, problems)
        turns = content.turns
        system = read_system(item, self.system, problems) if self.system else []
        if not (turns and turns[0].role == "system"):
            turns[:0] = system
        elif system and system[0].text != turns[0].text:
            content.unread.append(f"key {short(self.system)}, since the turns have another system message")
        whole = len(problems) == before  # a turn left out for a fault would be reported again as a role out of place
        if self.chosen and self.rejected:
            if self.strict and whole:
                _check_roles(turns, "user", problems)
            turns += self._answer(item, self.chosen, content, problems)
            content.rejected = "".join(turn.text for turn in self._answer(item, self.rejected, content, problems))
        elif self.strict and whole:
            _check_roles(turns, "assistant", problems)
        return content

    def _read_messages(self, item: dict[str, Any], content: Content, problems: Problems) -> None:
        messages = read_column(item, self.messages, problems)
        if messages is MISSING:
            return
        if not isinstance(messages, list):
            problems.append(("wrong_type", f'"{self.messages}" is a list of turns, found {kind(messages)}'))
            return
        found = [self._turn(turn, f'"{self.messages}"[{i}]', content, problems) for i, turn in enumerate(messages)]
        content.turns += [turn for turn in found if turn is not None]

    def _answer(self, item: dict[str, Any], column: str, content: Content, problems: Problems) -> list[Turn]:
        turn = read_column(item, column, problems)
        found = None if turn is MISSING else self._turn(turn, f'"{column}"', content, problems)
        if found is None:
            return []
        if found.role != "assistant":
            problems.append(("roles", f'"{column}" is a turn of the assistant, found one of {found.role}'))
        elif not found.text.strip():
            problems.append(("empty_turn", f'"{column}" is empty'))
        return [found]

    def _turn(self, turn: Any, where: str, content: Content, problems: Problems) -> Turn | None:
        role_key, text_key = self._keys_of(turn)
        if not isinstance(turn, dict):
            expected = f'an object of "{role_key}" and "{text_key}"'
            problems.append(("wrong_type", f"{where} is {expected}, found {kind(turn)}"))
            return None
        missing = [f'"{key}"' for key in (role_key, text_key) if key not in turn]
        if missing:
            problems.append(("missing_key", f"{where} lacks {' and '.join(missing)}"))
            return None
        name, text = turn[role_key], turn[text_key]
        role = dict(self.roles).get(name) if isinstance(name, str) else None
        read = {role_key, text_key, *_LOSS_KEYS}
        content.unread += [f"key {short(key)} of a turn" for key in turn if key not in read and not is_empty(turn[key])]
        if role is None:
            *names, last = [name for name, role in self.roles if role != UNSUPPORTED]
            expected = f"{', '.join(names)} or {last}"
            problems.append(("unknown_role", f'{where} "{role_key}" is {short(name)}, expected {expected}'))
        elif role == UNSUPPORTED or turn.get("tool_calls"):
            called = f'"{role_key}" is {short(name)}' if role == UNSUPPORTED else 'has "tool_calls"'
            problems.append(("unsupported", f"{where} {called}: calls of tools cannot be trained on"))
        elif isinstance(text, list):
            return self._parts(role, text, where, _weight(turn, role, where, problems), content, problems)
        elif not isinstance(text, str):
            problems.append(("wrong_type", f'{where} "{text_key}" is a string, found {kind(text)}'))
        else:
            return Turn(role, text, _weight(turn, role, where, problems))
        return None

    def _keys_of(self, turn: Any) -> tuple[str, str]:
        """The keys of role and text: the format's own; where they may vary also "role" and "content"."""
        if not self.strict and isinstance(turn, dict) and self.role not in turn and "role" in turn:
            return "role", "content" if "content" in turn else self.content
        return self.role, self.content

    def _parts(
        self, role: str, parts: list[Any], where: str, weight: float, content: Content, problems: Problems
    ) -> Turn | None:
        """A turn as OpenAI's list of parts: [{"type": "image"}, {"type": "text", "text": "Who?"}]."""
        texts = []
        for i, part in enumerate(parts):
            name, place = part.get("type") if isinstance(part, dict) else None, f'{where} "{self.content}"[{i}]'
            if name in PARTS and role == "user":
                texts.append(PARTS[name])
                read_part(part, name, place, content, problems)
            elif name in PARTS:
                what = "an image" if PARTS[name] == IMAGE else "a video"
                problems.append(("unsupported", f"{place} is {what} of the {role}: only a user's can be trained on"))
            elif name == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif name in ("audio", "input_audio"):
                problems.append(("unsupported", f'{place} is of "type" "{name}", which cannot be trained on'))
            else:
                expected = 'an object of "type" "text", with "text", or of "type" "image" or "video"'
                problems.append(("wrong_type", f"{place} is {expected}, found {kind(part)}"))
        return Turn(role, "".join(texts), weight) if len(texts) == len(parts) else None


@dataclasses.dataclass(frozen=True)
class Alpaca:
    """A question and an answer in columns: the names of these."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    system: str | None = None
    images: str | None = None
    videos: str | None = None
    chosen: str | None = None
    rejected: str | None = None

    def columns(self) -> list[str]:
        """Names of the columns it reads."""
        return named(*dataclasses.astuple(self))

    def read(self, item: dict[str, Any], problems: Problems) -> Content:
        """The turns of an item."""
        turns = read_system(item, self.system, problems) if self.system else []
        turns += self._history(item, problems)
        question = [
            read_text(item, column, problems) for column in (self.prompt, self.query) if column and column in item
        ]
        if not question:
            names = " or ".join(f'"{column}"' for column in (self.prompt, self.query) if column)
            problems.append(("missing_key", f"the key {names} is missing ({found_keys(item)})"))
        turns.append(Turn("user", "\n".join(text for text in question if text)))
        answers = [self.chosen, self.rejected] if self.chosen else [self.response]
        texts = []
        for column in answers:
            assert column is not None  # dataset_info.py refuses an entry without
            text = read_column(item, column, problems)
            if text is MISSING:
                text = ""
            elif not isinstance(text, str):
                problems.append(("wrong_type", f'"{column}" is a string, found {kind(text)}'))
                text = ""
            elif not text.strip():
                problems.append(("empty_turn", f'"{column}" is empty'))
            texts.append(text)
        turns.append(Turn("assistant", texts[0]))
        return Content(turns, texts[1] if self.chosen else "")

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


@dataclasses.dataclass(frozen=True)
class Document:
    """The format of a text in a column of its own."""

    text: str = "text"
    images: None = None
    videos: None = None

    def columns(self) -> list[str]:
        """Names of the columns it reads."""
        return [self.text]

    def read(self, item: dict[str, Any], problems: Problems) -> Content:
        """The text, as an answer to nothing."""
        text = read_column(item, self.text, problems)
        if text is not MISSING and not isinstance(text, str):
            problems.append(("wrong_type", f'"{self.text}" is a string, found {kind(text)}'))
        elif text is not MISSING and not text.strip():
            problems.append(("empty_turn", f'"{self.text}" is empty'))
        if images := [name for name in IMAGE_KEYS + VIDEO_KEYS if not is_empty(item.get(name))]:
            names = " and ".join(f'"{name}"' for name in images)
            problems.append(
                ("images_unread", f"it has {names} beside its text; only conversations have images and videos")
            )
        return Content([Turn("user", ""), Turn("assistant", text if isinstance(text, str) else "")])


@dataclasses.dataclass(frozen=True)
class AnyChat:
    """The format of each dictionary by its own keys, for files whose records are not all alike."""

    def of(self, item: Mapping[str, Any]) -> Chat | Alpaca | Document:
        """The format of an item; LLaVA's if its keys fit none."""
        return _format_of(frozenset(key for key in item if isinstance(key, str))) or LLAVA


Format = Chat | Alpaca | Document | AnyChat

_EITHER = (("human", "user"), ("gpt", "assistant"), ("system", "system"), ("user", "user"), ("assistant", "assistant"))
_TOOLS = (("observation", UNSUPPORTED), ("function_call", UNSUPPORTED))
LLAVA = Chat(roles=_EITHER + _TOOLS, images=ANY, videos=ANY, strict=False)
SHAREGPT = Chat()
OPENAI = Chat(
    messages="messages",
    role="role",
    content="content",
    roles=(
        ("user", "user"),
        ("assistant", "assistant"),
        ("system", "system"),
        ("developer", "system"),
        ("tool", UNSUPPORTED),
        ("function", UNSUPPORTED),
    ),
)


@functools.lru_cache(1024)
def _format_of(keys: frozenset[str]) -> Chat | Alpaca | Document | None:
    """The format of a table or a dictionary with these keys; None: there is none."""
    system = next((key for key in SYSTEM_KEYS if key in keys), None)
    if "messages" in keys:
        return dataclasses.replace(OPENAI, system=system, images=ANY, videos=ANY, strict=False)
    if "conversations" in keys:
        return dataclasses.replace(LLAVA, system=system)
    if {"instruction", "output"} <= keys:
        return Alpaca(query="input" if "input" in keys else None, system=system, images=ANY, videos=ANY)
    for question, answer in (("question", "answer"), ("query", "response")):
        if {question, answer} <= keys:
            return Alpaca(question, None, answer, system=system, images=ANY, videos=ANY)
    return Document() if Document().text in keys else None


def recognise(columns: Iterable[str], where: str, remedy: str) -> Chat | Alpaca | Document:
    """The format of a table from the names of its columns.

    Raises:
      UserError: it is none that is known; `where` names the table, `remedy` what to do.
    """
    found = set(columns)
    format = _format_of(frozenset(found))
    if format is None:
        raise UserError(
            f"{where}: its columns ({', '.join(sorted(found)) or 'none'}) are of no format that is recognised: "
            f"messages, or conversations, or instruction and output, or question and answer, or text; {remedy}"
        )
    if isinstance(format, Document):
        return format
    images, videos = (find_column(found, noun, where, remedy) for noun in ("image", "video"))
    return dataclasses.replace(format, images=images, videos=videos)


def columns_to_read(format: Chat | Alpaca | Document, columns: Iterable[str]) -> list[str]:
    """The columns of a table that are read: the format's, and those for which a record may be refused."""
    wanted = {"id", *format.columns(), *_UNTRAINABLE, "label", *IMAGE_KEYS, *VIDEO_KEYS}
    wanted |= set(FPS_KEYS) if format.videos else set()
    return [column for column in columns if column in wanted]


def make_record(item: Any, origin: str, format: Format, rule: ImageRule) -> Record:
    """Makes a record of a dictionary.

    Raises:
      RecordError: with all faults; its reason is that of the first.
    """
    problems: Problems = []
    if not isinstance(item, dict):
        problems.append(("wrong_type", f"a record is an object, found {kind(item)}"))
        raise _rejection(origin, problems)
    format = format.of(item) if isinstance(format, AnyChat) else format
    content = format.read(item, problems)
    image_key = find_key(item, "image", problems) if format.images == ANY else format.images
    video_key = find_key(item, "video", problems) if format.videos == ANY else format.videos
    images = content.images + (read_images(item, image_key, problems) if image_key else [])
    of_key = read_videos(item, video_key, problems) if video_key else []
    videos = content.videos + of_key
    shows = any(IMAGE in turn.text for turn in content.turns if turn.role == "user")
    _check_unread(item, format, problems, lacks_images=shows and not images, lacks_videos=not videos)
    turns = with_medium_in_front(content.turns, [*images, *videos])
    given = in_order(turns, images, videos)
    media = [resolve(medium, rule, problems) for medium in given]
    id = item.get("id")
    if id is None:
        id = content_id(turns, content.rejected, given)
    elif not isinstance(id, (str, int)) or isinstance(id, bool):
        problems.append(("wrong_type", f'"id" is a string, found {kind(id)}'))
    texts = [str(item.get("id")), *(turn.text for turn in turns), content.rejected]  # our own paths may contain them
    if any(not text.isascii() and SURROGATES.search(text) for text in texts):
        problems.append(("invalid_unicode", r"a text holds half of a surrogate pair (\ud800 to \udfff), no character"))
    if problems:
        raise _rejection(origin, problems)
    read = {"id", image_key, video_key, rate_key(item, of_key), *format.columns(), *_UNTRAINABLE, "label"}
    unread = [f"key {short(name)}" for name in item if name not in read and not is_empty(item[name])]
    foreign = foreign_placeholders((turn.text for turn in turns if turn.role == "user"), videos=bool(videos))
    notes = tuple(sorted({*unread, *content.unread, *foreign}))
    return Record(str(id), tuple(turns), tuple(media), origin, rejected=content.rejected, notes=notes)


def _check_unread(
    item: Mapping[str, Any],
    format: Chat | Alpaca | Document,
    problems: Problems,
    *,
    lacks_images: bool,
    lacks_videos: bool,
) -> None:
    """Refuses a record whose unread keys change its meaning."""
    for name, what in _UNTRAINABLE.items():
        if name not in format.columns() and not is_empty(item.get(name)):
            problems.append(("unsupported", f'"{name}" is {short(item[name])}: {what} cannot be trained on'))
    if isinstance(item.get("label"), bool) and "label" not in format.columns():
        problems.append(
            ("unsupported", '"label" is true or false: answers that are marked as desired or not cannot be trained on')
        )
    if isinstance(format, Document):
        return
    lacking = {"images": (format.images, IMAGE_KEYS, lacks_images), "videos": (format.videos, VIDEO_KEYS, lacks_videos)}
    for what, (column, names, lacks) in lacking.items():
        for name in names if lacks and column != ANY else ():
            if name not in format.columns() and not is_empty(item.get(name)):
                read = f'the key that is read is "{column}"' if column else f"columns.{what} names no key to read"
                problems.append((f"{what}_unread", f'its {what}, under "{name}", are not read: {read}'))


def _weight(turn: Mapping[str, Any], role: str, where: str, problems: Problems) -> float:
    """How much a turn counts in the loss, by the switches of the trainers that wrote the file."""
    given = {key: turn[key] for key in _LOSS_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if isinstance(value, str) or not isinstance(value, (bool, int, float)) or not 0 <= value < math.inf:
            problems.append(
                ("wrong_type", f'{where} "{key}" is true, false or a number from 0 on, found {kind(value)}')
            )
            return 1.0
    weights = {float(value) for value in given.values()}
    if len(weights) > 1:
        found = ", ".join(f'"{key}" {short(value)}' for key, value in given.items())
        problems.append(("loss_switches", f"{where} has loss switches that disagree: {found}; keep one"))
    weight = weights.pop() if weights else 1.0
    if role != "assistant" and given and weight:
        if any(value is True for value in given.values()):
            problems.append(("loss_switches", f"{where} is of the {role} and to be trained on; only answers can be"))
        weight = 1.0
    return weight if role == "assistant" else 1.0


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


def _rejection(origin: str, problems: Problems) -> RecordError:
    words = "; ".join(problem for _, problem in problems)
    return RecordError(f"{origin}: {words}; fix the record or remove it", origin, problems[0][0])
