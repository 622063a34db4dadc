"""The tokens of the times that Qwen3-VL writes before the frame pairs of a video.

A video is `<0.3 seconds><|vision_start|>`, the tokens of the first frame pair and `<|vision_end|>`, then the same for
the next pair. transformers writes this into the text before it is tokenized. Control tokens separate it from all other
text except that before the first time: the end of "Look: " and "<" can be one token " <". So the renderer writes this
"<" into the text. The rest is put together from tokens of single characters, which gives the same ids if no token joins
two of them; `make_time_tokens` checks that.

Source: transformers models/qwen3_vl/processing_qwen3_vl.py. The processor of the published weights, and transformers
before 5.10, replace the tokens around the whole video, as here; later ones leave them around all pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.videos import time_text
from jaxvlm.media import VideoText

_LEAD, _DIGITS, _POINT = "<", "0123456789", "."
_TAIL = time_text(0.0)[4:]  # " seconds>"
_NAMES = ("vision_start", "vision_end")


@dataclasses.dataclass(frozen=True)
class TimeTokens:
    """Ids of the text around frame pairs; small and picklable."""

    pieces: dict[str, tuple[int, ...]]  # of "<", each digit, the point and the end of a time
    start: int  # vision_start
    end: int  # vision_end

    def before(self, seconds: float, *, is_first: bool) -> list[int]:
        """Ids of the time and of vision_start; of the first time without the "<", which the renderer has written."""
        number = time_text(seconds).removeprefix(_LEAD).removesuffix(_TAIL)
        pieces = [*([] if is_first else [_LEAD]), *number, _TAIL]
        return [*itertools.chain.from_iterable(self.pieces[piece] for piece in pieces), self.start]


def make_time_tokens(tokenizer: Any) -> tuple[TimeTokens, VideoText]:
    """The tokens, and what the renderer has to know of them.

    Args:
      tokenizer: a fast tokenizer of transformers.

    Raises:
      UserError: it lacks vision_start or vision_end, or joins characters of a time to one token.
    """
    vocab = tokenizer.get_vocab()
    start, end = (getattr(tokenizer, f"{name}_token", None) or f"<|{name}|>" for name in _NAMES)
    if missing := [token for token in (start, end) if token not in vocab]:
        raise _unfit(f"has no {' and no '.join(missing)}")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    pieces = {piece: encode(piece) for piece in (_LEAD, *_DIGITS, _POINT, _TAIL)}
    neighbours = [(_LEAD, *_DIGITS), *((digit, *_DIGITS, _POINT, _TAIL) for digit in _DIGITS), (_POINT, *_DIGITS)]
    for first, *others in neighbours:
        for second in others:
            if encode(first + second) != pieces[first] + pieces[second]:
                raise _unfit(f"does not split {first + second!r} between its characters")
    return TimeTokens(pieces, vocab[start], vocab[end]), VideoText(before=start, after=end, lead=_LEAD)


def _unfit(finding: str) -> UserError:
    return UserError(
        f"Qwen3-VL writes a time before each frame pair of a video, character by character; this tokenizer {finding}; "
        "take the tokenizer of a Qwen3-VL (config.tokenizer.source), or no videos (data.media.video = None)"
    )
