"""A page of a suite's worst answers: image, question, answer, truth and credit. One HTML file, all text escaped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from jaxvlm.data.media.images import decode
from jaxvlm.data.media.video import read_still
from jaxvlm.data.records import RecordError
from jaxvlm.evaluation.answer_log import Reply
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.result import Result
from jaxvlm.files import replace_text
from jaxvlm.inspect.html_page import data_url, document, plain
from jaxvlm.media import Medium, Video, describe

SHOWN = 60  # answers
_PIXELS = 320  # longest side of a picture
_STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
.row { margin: 0 }
.row dl { margin: .5rem 0 0 }
.row dt { color: var(--quiet); font-size: .8rem }
.row dd { margin: 0 0 .4rem; white-space: pre-wrap }
.row .a { color: var(--warn); font-weight: 600 }
"""


def write_worst(path: Path, result: Result) -> int:
    """Writes the page, and returns the number of answers on it.

    Answers with the lowest credit come first; of equal ones a fixed random choice. Full credit is not shown.
    """
    chosen = worst(result)
    task = result.task
    cards = "".join(_card(task.items[n], result.replies[n], result.values[n], credit) for n, credit in chosen)
    number = f"{result.main[0]} {result.main[1]:.2f}" if result.main else "no number"
    below = int((result.scores.credits < 1).sum())
    head = (
        f"<p>{plain(task.describe())}; {plain(number)}. {len(chosen):,} of the {below:,} answers without full credit; "
        f"all are in the JSON file beside this page.</p>\n"
    )
    replace_text(path, document(f"{task.benchmark.title}: worst answers", f"{head}<main>\n{cards}</main>\n", _STYLE))
    return len(chosen)


def worst(result: Result, most: int = SHOWN) -> list[tuple[int, float]]:
    """(place, credit) of the answers with the lowest credit; items without a credit of their own are left out."""
    credits = result.scores.credits.tolist()
    below = [(place, credit) for place, credit in enumerate(credits) if not math.isnan(credit) and credit < 1]

    def key(found: tuple[int, float]) -> tuple[float, bytes]:
        return found[1], hashlib.sha256(result.task.items[found[0]].id.encode()).digest()

    return sorted(below, key=key)[:most]


def _card(item: Item, reply: Reply, value: Any, credit: float) -> str:
    rows = [("question", item.question, "")]
    rows += [("options", " | ".join(item.choices), "")] if item.choices else []
    rows.append(("answer", reply.text or "(nothing)", " class=a"))
    rows += [("read as", _text(value), "")] if value != reply.text else []
    rows += [("truth", _text(item.truth), ""), ("credit", f"{credit:.2f}", "")]
    rows += [(axis, name, "") for axis, name in item.groups.items()]
    if reply.truncated:
        rows.append(("length", "truncated at the limit", ""))
    text = "".join(f"<dt>{plain(name)}</dt><dd{style}>{plain(words)}</dd>" for name, words, style in rows)
    where = f"<span class=quiet>{plain(item.origin)}</span>"
    pictures = "".join(_figures(item))
    return (
        f"<article class=row><header><h3>{plain(item.id)}</h3>{where}</header>\n{pictures}<dl>{text}</dl></article>\n"
    )


def _figures(item: Item) -> Iterator[str]:
    for number, medium in enumerate(item.images, 1):
        name = plain(_name(medium))
        try:
            picture = _picture(medium, item.origin)
        except RecordError as error:  # scored without a model, perhaps elsewhere than where its images are
            yield f"<p class=warn>{plain(str(error))}</p>"
            continue
        width, height = picture.size
        yield (
            f'<figure><img width={width} height={height} decoding=async alt="image {number}: {name}" '
            f'src="{data_url(picture)}"><figcaption class=quiet>{name}</figcaption></figure>\n'
        )


def _picture(medium: Medium, origin: str) -> Image.Image:
    still = read_still(medium, origin) if isinstance(medium, Video) else medium
    picture = decode(still, origin)
    picture.thumbnail((_PIXELS, _PIXELS))
    return picture


def _name(medium: Medium) -> str:
    return Path(medium).name if isinstance(medium, str) else describe(medium)


def _text(value: Any) -> str:
    if value is None:
        return "(not parsed)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
