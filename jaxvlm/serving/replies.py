"""Writes answers as OpenAI's chat completions, whole or in chunks. HTTP is not known here.

Source: OpenAI's reference of POST /v1/chat/completions, of its stream, and of errors.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from jaxvlm.serving.protocol import Served
from jaxvlm.serving.requests import Finished, Piece, Token

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI writes this number
DONE = b"data: [DONE]\n\n"


@dataclasses.dataclass
class Choice:
    """What has come of one answer."""

    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Piece | Finished) -> None:
        """Takes the next event."""
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.text += event.text
            self.tokens += event.tokens


class Completion:
    """Writes the parts of one completion, which share an id."""

    def __init__(self, model: str, *, logprobs: bool):
        self._logprobs = logprobs
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The reply to a request that is not streamed; each of `choices` has finished."""
        written = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._written(choice.tokens),
                "finish_reason": _reason(choice.finished),
            }
            for index, choice in enumerate(choices)
        ]
        usage = usage_of([choice.finished for choice in choices if choice.finished])
        return self._object("chat.completion", choices=written, usage=usage)

    def begin(self, index: int, *, usage: bool) -> dict[str, Any]:
        """The first chunk of a choice. With `usage` each chunk has a null there, as the last will have the numbers."""
        return self._chunk(index, {"role": "assistant", "content": ""}, [], None, usage=usage)

    def chunk(self, index: int, event: Piece | Finished, *, usage: bool) -> dict[str, Any]:
        """The chunk of an event."""
        if isinstance(event, Finished):
            return self._chunk(index, {}, [], _reason(event), usage=usage)
        return self._chunk(index, {"content": event.text}, event.tokens, None, usage=usage)

    def usage(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """The last chunk, of a stream with `include_usage`."""
        return self._object("chat.completion.chunk", choices=[], usage=usage_of(finished))

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: Sequence[Token], reason: str | None, *, usage: bool
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        if tokens:
            choice["logprobs"] = self._written(tokens)
        return self._object("chat.completion.chunk", choices=[choice], **({"usage": None} if usage else {}))

    def _object(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._head | {"object": kind, "system_fingerprint": None} | fields

    def _written(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            _token(token.text, token.logprob) | {"top_logprobs": [_token(*top) for top in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    shown = text.decode("utf-8", "replace")
    return {"token": shown, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(text)}


def _reason(finished: Finished | None) -> str:
    return "length" if finished is not None and finished.reason == "length" else "stop"


def usage_of(finished: Sequence[Finished]) -> dict[str, Any]:
    """The token counts of a completion: the prompt's once, the answers' together."""
    prompt = max((each.prompt_tokens for each in finished), default=0)
    answers = sum(each.completion_tokens for each in finished)
    cached = min((each.cached_tokens for each in finished), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def model_object(served: Served) -> dict[str, Any]:
    """The model in /v1/models, with the room of a request and the sampling of requests that name none."""
    sampling = served.sampling
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "jaxvlm",
        "max_model_len": served.tokens,
        "default_sampling": {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k},
    }


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's body of an error; `kind` is its "type"."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def to_json(value: Any) -> bytes:
    """JSON without spaces; line breaks in texts are escaped, so it can be an event's one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def to_event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"
