"""Reads the bodies of OpenAI's chat completions into requests. HTTP is not known here.

Source: OpenAI's reference of POST /v1/chat/completions; `top_k` and neutral values of other fields as vLLM has them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from jaxvlm.data.records import IMAGE, Record, Turn, spelled
from jaxvlm.errors import listed
from jaxvlm.inference.sampling import GREEDY, Sampling
from jaxvlm.serving.requests import MAX_TOP_LOGPROBS, Request, RequestError

MAX_STOPS = 16
MAX_TEMPERATURE = 2.0
_SMALLEST_TOP_P = 1e-6  # 0 leaves the most likely token, as this does
_NOT_TEXT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")  # as `turns.check_turns`

_READ = (
    *("model", "messages", "n", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options"),
    *("temperature", "top_p", "top_k", "seed", "logprobs", "top_logprobs"),
)
# They change nothing of an answer here.
IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "reasoning_effort", "verbosity", "prediction"),
)
# Fields that are accepted with a value that asks for nothing, and refused with any other.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "ignore_eos": (False,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "audio": (),
    "web_search_options": (),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Served:
    """What the server offers.

    Attributes:
      name: of the model, in /v1/models and in requests.
      created: when it was loaded, seconds since 1970.
      tokens: of a prompt and its answer together.
      sampling: where a request says nothing.
      max_choices: the most answers to one request.
      max_images: the most images of one request.
      takes_images: whether the model has an encoder.
      takes_system: whether its template writes a system message.
    """

    name: str
    created: int = 0
    tokens: int = 2048
    sampling: Sampling = GREEDY
    max_choices: int = 8
    max_images: int = 8
    takes_images: bool = True
    takes_system: bool = True


@dataclasses.dataclass(frozen=True)
class Call:
    """A chat completion that is wanted.

    Attributes:
      requests: one for each choice.
      image_params: where the body has each image.
      unknown: fields that were ignored since nobody here knows them.
    """

    requests: tuple[Request, ...]
    stream: bool
    include_usage: bool
    image_params: tuple[str, ...]
    unknown: tuple[str, ...]


class _Problems:
    """What is wrong with a body; all of it is reported at once."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []  # param, message, code

    def add(self, param: str, message: str, code: str = "invalid_value") -> None:
        self.found.append((param, message, code))

    def check(self) -> None:
        """Raises `RequestError` for all of them, with field and code of the first."""
        if self.found:
            param, _, code = self.found[0]
            raise RequestError(listed([f"{param}: {message}" for param, message, _ in self.found]), code, param)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text.

    Raises:
      RequestError: "invalid_json".
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # also bytes that are no Unicode
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise RequestError(f"the body is not valid JSON: {reason}", "invalid_json") from error


def read_call(body: Any, served: Served, read_image: Callable[[str, str], bytes]) -> Call:
    """Reads the body of a chat completion.

    Args:
      body: of `parse_json`.
      read_image: (URL, place) -> the file of an image; see `media.read_image`.

    Raises:
      RequestError: the body asks for something that is wrong or not supported; all such fields are listed. Or an image
        cannot be read.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object", "invalid_value")
    model = body.get("model")
    if model is not None and model != served.name:
        raise RequestError(
            f"the model {str(model)[:100]!r} is not served; this server has {served.name!r} (GET /v1/models)",
            "model_not_found",
            "model",
        )
    problems = _Problems()
    _check_neutral(body, problems)
    fields = _Fields(body, problems)
    sampling = _read_sampling(fields, served.sampling)
    count = fields.number("n", 1, 1, served.max_choices, whole=True)
    limit = fields.number("max_tokens", None, 1, 2**31 - 1, whole=True)
    limit = fields.number("max_completion_tokens", limit, 1, 2**31 - 1, whole=True)
    stops, top_logprobs = _read_stops(fields), _read_logprobs(fields)
    stream, include_usage = fields.flag("stream"), _read_stream_options(fields)
    turns, urls = _Conversation(served, problems).read(body.get("messages"))
    problems.check()
    images = _read_images(urls, read_image)
    record = Record("request", turns, images, "messages")
    requests = tuple(
        Request(record, limit, dataclasses.replace(sampling, seed=(sampling.seed + i) % 2**32), stops, top_logprobs)
        for i in range(count)
    )
    unknown = tuple(name for name in body if name not in (*_READ, *IGNORED, *NEUTRAL))
    return Call(requests, stream, stream and include_usage, tuple(param for param, _ in urls), unknown)


def _check_neutral(body: Mapping[str, Any], problems: _Problems) -> None:
    for name, neutral in NEUTRAL.items():
        value = body.get(name)
        if value is None or value in neutral:
            continue
        only = " or ".join(json.dumps(other) for other in neutral)
        remedy = f"leave it out{f', or write {only}' if only else ''}"
        problems.add(name, f"this server does not support it; {remedy}", "unsupported_parameter")


class _Fields:
    """Typed access to the fields of a body; null is as absent."""

    def __init__(self, body: Mapping[str, Any], problems: _Problems):
        self.body, self.problems = body, problems

    def number(self, name: str, default: Any, low: float, high: float, *, whole: bool = False) -> Any:
        """A number from `low` to `high`."""
        value = self.body.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (whole and value != int(value)):
            kind = "an integer" if whole else "a number"
            self.problems.add(name, f"expected {kind} from {low:g} to {high:.10g}, found {_shown(value)}")
            return default
        return int(value) if whole else float(value)

    def flag(self, name: str) -> bool:
        """A boolean."""
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            self.problems.add(name, f"expected true or false, found {_shown(value)}")
        return value is True


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_sampling(fields: _Fields, default: Sampling) -> Sampling:
    seed = fields.body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        fields.problems.add("seed", f"expected an integer, found {_shown(seed)}")
        seed = 0
    top_k = -1 if fields.body.get("top_k") == -1 else fields.number("top_k", default.top_k, 0, 2**31 - 1, whole=True)
    return Sampling(
        temperature=fields.number("temperature", default.temperature, 0, MAX_TEMPERATURE),
        top_p=max(fields.number("top_p", default.top_p, 0, 1), _SMALLEST_TOP_P),
        top_k=max(top_k, 0),  # -1: all, as in vLLM
        seed=secrets.randbelow(2**32) if seed is None else seed % 2**32,
    )


def _read_stops(fields: _Fields) -> tuple[str, ...]:
    value = fields.body.get("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        fields.problems.add("stop", f"expected a text or a list of texts, none of them empty, found {_shown(value)}")
        return ()
    if len(stops) > MAX_STOPS:
        fields.problems.add("stop", f"{len(stops)} texts, at most {MAX_STOPS} are taken")
    return tuple(stops)


def _read_logprobs(fields: _Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.number("top_logprobs", None, 0, MAX_TOP_LOGPROBS, whole=True)
    if top and not wanted:
        fields.problems.add("top_logprobs", "it goes with logprobs: true")
    return (top or 0) if wanted else None


def _read_stream_options(fields: _Fields) -> bool:
    options = fields.body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        fields.problems.add("stream_options", f"expected an object, found {_shown(options)}")
        return False
    return bool((options or {}).get("include_usage"))


def _read_images(urls: list[tuple[str, str]], read_image: Callable[[str, str], bytes]) -> tuple[bytes, ...]:
    images, errors = [], list[RequestError]()
    for param, url in urls:
        try:
            images.append(read_image(url, param))
        except RequestError as error:
            errors.append(error)
    if errors:
        raise RequestError(listed(errors), errors[0].code, errors[0].param)
    return tuple(images)


class _Conversation:
    """Reads `messages` into turns, and the URLs of their images with their places."""

    def __init__(self, served: Served, problems: _Problems):
        self._served, self._problems = served, problems
        self._turns: list[Turn] = []
        self._urls: list[tuple[str, str]] = []

    def read(self, messages: Any) -> tuple[tuple[Turn, ...], list[tuple[str, str]]]:
        """The turns, with a placeholder for each image, and the images in their order.

        Messages of one role in a row are joined by an empty line; chat templates take turns that alternate.
        """
        if not isinstance(messages, list) or not messages:
            self._problems.add("messages", f"expected a list of messages, found {_shown(messages)}")
            return (), []
        for number, message in enumerate(messages):
            self._read_message(f"messages[{number}]", message)
        if len(self._urls) > self._served.max_images:
            many = f"{len(self._urls)} images, at most {self._served.max_images} are taken (--max-images)"
            self._problems.add(self._urls[self._served.max_images][0], many, "too_many_images")
        if not self._problems.found and (not self._turns or self._turns[-1].role != "user"):
            self._problems.add(
                f"messages[{len(messages) - 1}]", "the last message must be of the user", "invalid_conversation"
            )
        return tuple(self._turns), self._urls

    def _read_message(self, where: str, message: Any) -> None:
        if not isinstance(message, dict):
            self._problems.add(where, f"expected an object, found {_shown(message)}")
            return
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            found = _shown(message.get("role"))
            self._problems.add(f"{where}.role", f"expected system, developer, user or assistant, found {found}")
            return
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                self._problems.add(f"{where}.{name}", "this server does not support it", "unsupported_parameter")
        before = len(self._problems.found)
        text = self._read_content(f"{where}.content", message.get("content"), role)
        if len(self._problems.found) == before:
            self._add(where, role, text)

    def _add(self, where: str, role: str, text: str) -> None:
        last = self._turns[-1].role if self._turns else ""
        if role == "system" and last not in ("", "system"):
            self._problems.add(where, "a system message is only taken first", "invalid_conversation")
        elif role == "system" and text and not self._served.takes_system:
            self._problems.add(where, "the model's template writes no system message; leave it out")
        elif role == "assistant" and last in ("", "system"):
            self._problems.add(where, "a conversation begins with the user; leave it out", "invalid_conversation")
        elif not text.strip() and role != "system":
            self._problems.add(f"{where}.content", "it is empty; write something, or leave the message out")
        elif role == last:
            self._turns[-1] = Turn(role, f"{self._turns[-1].text}\n\n{text}")
        elif text:  # an empty system message is as none
            self._turns.append(Turn(role, text))

    def _read_content(self, where: str, content: Any, role: str) -> str:
        """The text of a message, with placeholders."""
        if isinstance(content, str) or content is None:
            text = self._checked(where, content or "")
            return spelled(text) if role == "user" else text
        if not isinstance(content, list):
            self._problems.add(where, f"expected a text or a list of parts, found {_shown(content)}")
            return ""
        pieces: list[str | None] = []  # None: an image
        for number, part in enumerate(content):
            self._read_part(f"{where}[{number}]", part, role, pieces)
        return _placed(pieces) if role == "user" else "".join(piece or "" for piece in pieces)

    def _read_part(self, where: str, part: Any, role: str, pieces: list[str | None]) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            text = part.get("text")
            if isinstance(text, str):
                pieces.append(self._checked(f"{where}.text", text))
            else:
                self._problems.add(f"{where}.text", f"expected a text, found {_shown(text)}")
        elif kind == "image_url":
            url = self._read_url(f"{where}.image_url", part.get("image_url"), role)
            if url is not None:
                pieces.append(None)
                self._urls.append((f"{where}.image_url", url))
        else:
            found = _shown(part if kind is None else kind)
            self._problems.add(where, f'expected a part of type "text" or "image_url", found {found}')

    def _read_url(self, where: str, value: Any, role: str) -> str | None:
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url:
            found = type(url).__name__ if url else "nothing"
            self._problems.add(where, f'expected {{"url": "data:..."}} or the URL alone, found {found}')
        elif role != "user":
            self._problems.add(where, f"images are taken in messages of the user, found one of the {role}")
        elif not self._served.takes_images:
            self._problems.add(where, "this model takes no images; send text alone", "unsupported_image")
        else:
            return url.strip()
        return None

    def _checked(self, where: str, text: str) -> str:
        if found := _NOT_TEXT.search(text):
            name = f"U+{ord(found[0]):04X} at character {found.start()}"
            self._problems.add(where, f"it contains {name}, which is not valid in text; remove it")
        return text


def _placed(pieces: list[str | None]) -> str:
    """The text of a user turn: its pieces, and a placeholder where an image stands.

    Images that all come before the text get a line each, as `generate` and exported chat templates write them.
    """
    first_text = next((i for i, piece in enumerate(pieces) if piece), len(pieces))
    are_first = None not in pieces[first_text:]
    image = f"{IMAGE}\n" if are_first else IMAGE
    text, run = "", ""
    for piece in pieces:
        if piece is None:
            text, run = f"{text}{spelled(run)}{image}", ""
        else:
            run += piece  # a spelling may go over two parts
    return text + spelled(run)
