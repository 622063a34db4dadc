"""A page of training rows as the model sees them: every token, the loss mask, every image, the padding.

One HTML file without scripts or network access. Text of records is escaped, and characters that
are invisible, or change how others are displayed, are written as their code points.

In a row, position t predicts the token at t + 1 and `Batch.loss_weights[t]` is the weight of that. On the page the
predicted token has the colour: what the model learns to write.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.errors import listed
from jaxvlm.files import replace_text
from jaxvlm.inspect.figure import with_boxes
from jaxvlm.inspect.html_page import data_url, document, is_unseen, plain
from jaxvlm.inspect.token_text import Span, Vocabulary, spell
from jaxvlm.media import MediaLayout, Picture

_PICTURE = 336  # CSS pixels: largest width of a picture; small ones are enlarged to near it
_NAMED_PROBLEMS = 8
_TEXT, _SUPERVISED, _IMAGE, _PADDING = "", "y", "m", "p"  # kinds of a position; their class names

_LEGEND = """<details class=box open><summary>Legend</summary><dl>
<dt><b>token</b></dt><dd>a token that is not supervised; hover over any token for its position in the row and in
its segment, its id with the vocabulary's own spelling, and the batch's values at this position: the target
(the id that is to be predicted here, that of the next token) and the target's loss weight</dd>
<dt><mark>token</mark></dt><dd>a supervised token: the model learns to write it. The position <em>before</em> it has it
as target with a loss weight above 0, so hovering over the last token before an answer shows a weight, over the last
token of the answer none</dd>
<dt><b class=c>&lt;s&gt;</b> <mark class=c>&lt;/s&gt;</mark></dt><dd>control tokens, each a single id; the same
letters without a dashed frame are plain text</dd>
<dt><b class=m>image 1: ...</b></dt><dd>the positions of an image's features; a link to its picture, which shows the
pixels after resizing, padding and augmentation</dd>
<dt><b><u> </u>a<u class=n></u></b></dt><dd>a space and a newline (⇥ is a tab)</dd>
<dt><b><s data-x="C3"></s></b> <b><s data-x="A9"></s>é</b></dt><dd>bytes of a character that several tokens share; the
character is shown at the last of them. <s data-x="U+202E"></s> is a character that cannot be seen, ◌ carries an accent
that is alone</dd>
<dt><b class=p>padding</b></dt><dd>positions that belong to no segment. A segment is one record; the tokens of one
cannot see those of another</dd>
</dl></details>
"""


@dataclasses.dataclass(frozen=True)
class PageRow:
    """One row of a batch and what it was made from."""

    batch: Batch  # NumPy
    row: int
    records: Sequence[dict[str, Any]]  # of each segment, as `Pipeline.look_up` describes them
    pictures: Sequence[Picture]  # in the row, of `MediaLayout.preview`
    name: str = ""  # the row's heading; "": its number


def page_rows(
    batch: Batch, records: Sequence[Sequence[dict[str, Any]]], layout: MediaLayout, name: str = ""
) -> list[PageRow]:
    """All rows of what `Pipeline.look_up` returns; `name` is the batch's."""
    before = f"{name}, " if name else ""
    return [
        PageRow(batch, row, members, layout.preview(batch.media, row), f"{before}row {row}")
        for row, members in enumerate(records)
    ]


def write_page(path: Path, rows: Iterable[PageRow], tokenizer: Any, *, title: str, notes: Sequence[str] = ()) -> int:
    """Writes the page.

    Args:
      path: of the HTML file; replaced if it exists.
      rows: consumed one by one, so a generator needs the memory of one batch.
      tokenizer: the fast tokenizer that made the rows.
      title: heading of the page.
      notes: paragraphs below it.

    Returns:
      the number of rows.

    Raises:
      ValueError: a row has other numbers of segments and records, or features of images that it does not have.
      OSError: the file cannot be written.
    """
    vocabulary = Vocabulary(tokenizer)
    counts: Counter[str] = Counter()
    cards, entries = [], []
    for number, row in enumerate(rows, 1):
        card = _Card(number, row, vocabulary)
        counts += card.counts
        cards.append(card.html)
        entries.append(card.contents)
    paragraphs = "".join(f"<p>{plain(note)}</p>\n" for note in notes)
    body = f"""{paragraphs}{_summary(counts)}{_LEGEND}
<nav class=box aria-label=Rows><details open><summary>Rows and their records</summary>
<ol>
{"".join(entries)}
</ol></details></nav>
<main>
{"".join(cards)}</main>
"""
    replace_text(path, document(title, body))
    return len(cards)


def _summary(counts: Counter[str]) -> str:
    positions, text = counts["positions"], counts["text"]
    tiles = [
        ("rows", f"{counts['rows']:,}", f"{counts['records']:,} records"),
        ("positions", f"{positions:,}", f"{_percent(positions - counts['padding'], positions)} filled"),
        ("text tokens", f"{text:,}", f"{_percent(text, positions)} of the positions"),
        ("supervised tokens", f"{counts['supervised']:,}", f"{_percent(counts['supervised'], text)} of the text"),
        (
            "images",
            f"{counts['images']:,}",
            f"{counts['features']:,} features, {_percent(counts['features'], positions)} of the positions",
        ),
        ("padding", f"{counts['padding']:,}", f"{_percent(counts['padding'], positions)} of the positions"),
    ]
    inner = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{of}</small></dd></div>" for name, value, of in tiles)
    return f"<dl class=sum>{inner}</dl>\n"


class _Card:
    """A row's HTML, its entry in the table of contents, and its counts for the summary."""

    def __init__(self, number: int, source: PageRow, vocabulary: Vocabulary):
        self._number, self._source, self._vocabulary = number, source, vocabulary
        batch, row = source.batch, source.row
        self._tokens, self._targets, self._weights, self._positions, self._segments, self._image_index = (
            np.asarray(field[row])
            for field in (
                batch.tokens,
                batch.targets,
                batch.loss_weights,
                batch.positions,
                batch.segments,
                batch.image_index,
            )
        )
        owned = [picture.features for picture in source.pictures]
        count = 1 + max((int(features.max()) for features in owned if len(features)), default=-1)
        self._owner = np.full(count, -1, np.int64)  # feature of the row -> the picture that it is of
        for picture, features in enumerate(owned):
            self._owner[features] = picture
        self._problems: list[str] = []
        self._heading = source.name or f"row {row}"
        segments = int(self._segments.max(initial=0))
        if segments != len(source.records):
            raise ValueError(f"{self._heading} has {segments} segments and {len(source.records)} records")
        if self._image_index.max(initial=-1) >= count:
            raise ValueError(
                f"{self._heading} has image_index {self._image_index.max()}; the features of its {len(owned)} images "
                f"end at {count - 1}"
            )
        is_image, is_padding = self._image_index >= 0, self._segments == 0
        self._supervised = self._find_supervised(is_image)
        self._kinds = np.select([is_padding, is_image, self._supervised], [_PADDING, _IMAGE, _SUPERVISED], _TEXT)
        self.counts = Counter(
            rows=1,
            records=segments,
            positions=len(self._tokens),
            padding=int(is_padding.sum()),
            features=int((is_image & ~is_padding).sum()),
            images=len(np.unique(self._owner[self._image_index[is_image]])),
            supervised=int(self._supervised.sum()),
            text=int((~is_image & ~is_padding).sum()),
        )
        runs = list(_runs(self._segments))
        blocks = "".join(
            self._segment(start, stop) if self._segments[start] else self._padding(start, stop) for start, stop in runs
        )
        members = "".join(
            f"<li><a href=#{self._anchor('s', k)}>{plain(str(record['id']))}</a></li>"
            for k, record in enumerate(source.records, 1)
        )
        self.contents = f"<li><a href=#r{number}>{plain(self._heading)}</a><ol>{members}</ol></li>\n"
        self.html = (
            f"<article class=row id=r{number}>\n<header><h2>{plain(self._heading)}</h2>"
            f"<span class=quiet>{self._filling()}</span></header>\n"
            f"{self._bar(runs)}{self._warning()}{blocks}</article>\n"
        )

    def _anchor(self, kind: str, index: int) -> str:
        return f"r{self._number}{kind}{index}"

    def _find_supervised(self, is_image: np.ndarray) -> np.ndarray:
        """bool[T]: the position before predicts this token."""
        weighted = self._weights != 0
        reached = np.zeros_like(weighted)
        reached[:-1] = (
            (self._targets[:-1] == self._tokens[1:])
            & (self._segments[:-1] == self._segments[1:])
            & (self._segments[:-1] > 0)
            & ~is_image[1:]
        )
        self._report(weighted & ~reached, "a loss weight but a target that is not the next text token of the segment")
        supervised = np.zeros_like(weighted)
        supervised[1:] = (weighted & reached)[:-1]
        return supervised

    def _report(self, wrong: np.ndarray, what: str) -> None:
        places = np.flatnonzero(wrong)
        if len(places):
            self._problems.append(f"{what}: positions {listed(places.tolist(), ', ', _NAMED_PROBLEMS)}")

    def _warning(self) -> str:
        if not self._problems:
            return ""
        return f"<p class=warn><strong>Invalid row.</strong> {plain('; '.join(self._problems))}</p>\n"

    def _filling(self) -> str:
        of = self.counts
        filled = _percent(of["positions"] - of["padding"], of["positions"])
        return (
            f"{of['positions']:,} positions, {filled} filled: {of['text']:,} text ({of['supervised']:,} supervised), "
            f"{of['features']:,} image ({of['images']} of {len(self._source.pictures)} images), "
            f"{of['padding']:,} padding"
        )

    def _bar(self, runs: list[tuple[int, int]]) -> str:
        """The row in small, drawn to scale."""
        pieces = []
        for number, (start, stop) in enumerate(runs):
            for begin, end in _runs(self._kinds[start:stop]):
                border = "g" if number and not begin else ""
                names = " ".join(filter(None, (self._kinds[start + begin], border)))
                pieces.append(f'<i class="{names}" style=flex:{end - begin}></i>')
        return f'<div class=bar role=img aria-label="{self._filling()}">{"".join(pieces)}</div>\n'

    def _padding(self, start: int, stop: int) -> str:
        return f"<div class=t><span class=p>padding: {stop - start:,} positions, {start}–{stop - 1}</span></div>\n"

    def _segment(self, start: int, stop: int) -> str:
        segment = int(self._segments[start])
        record = self._source.records[segment - 1]
        positions = self._positions[start:stop]
        if positions.ndim == 1 and (positions != np.arange(stop - start)).any():
            self._problems.append(f"segment {segment} has positions that do not count up from 0")
        figures: list[str] = []
        media = self._media(start, stop, record)
        chips = "".join(self._chips(start, stop, record, media, figures))
        if (shown := len(set(media[media >= 0].tolist()))) != len(record["images"]):
            self._problems.append(f"segment {segment} has {shown} images, its record {len(record['images'])}")
        turns = "".join(
            f"<dt>{plain(role)}</dt><dd{' class=y' * (role == 'assistant')}>{plain(text)}</dd>"
            for role, text in record["turns"]
        )
        share = int(self._supervised[start:stop].sum())
        return (
            f"<section class=seg id={self._anchor('s', segment)}>\n<header><h3>{plain(str(record['id']))}</h3>"
            f"<span class=quiet>segment {segment} of {len(self._source.records)} · positions {start}–{stop - 1} · "
            f"{share:,} supervised · {plain(record['origin'])}</span></header>\n<div class=t>{chips}</div>\n"
            f"<aside>{''.join(figures)}<details><summary>Conversation in the file</summary><dl>{turns}</dl>"
            f"</details></aside>\n</section>\n"
        )

    def _media(self, start: int, stop: int, record: dict[str, Any]) -> np.ndarray:
        """int[stop - start]: which of the record's images and videos a position belongs to, -1 at text.

        Without their numbers of features ("features" of the record), each picture is an image.
        """
        index = self._image_index[start:stop]
        media = np.full(stop - start, -1)
        if "features" in record:
            at = np.arange(np.count_nonzero(index >= 0))
            media[index >= 0] = np.searchsorted(np.cumsum(record["features"]), at, side="right")
        else:
            owners = self._owner[index[index >= 0]]
            media[index >= 0] = np.cumsum(np.diff(owners, prepend=owners[:1]) != 0)
        return media

    def _chips(
        self, start: int, stop: int, record: dict[str, Any], media: np.ndarray, figures: list[str]
    ) -> Iterator[str]:
        """Chips of a segment; the pictures of its images and of frames of its videos are added to `figures`."""
        index = self._image_index[start:stop]
        slots = np.full(stop - start, -1)
        slots[index >= 0] = self._owner[index[index >= 0]]
        for begin, end in _runs(slots):
            begin, end, slot = start + begin, start + end, int(slots[begin])
            if slot < 0:
                yield from self._text_chips(begin, end)
                continue
            have = self._image_index[begin:end]
            own = self._source.pictures[slot].features
            if len(have) != len(own) or (have != own).any():
                self._problems.append(
                    f"image {slot + 1} is at {begin}–{end - 1} without all its {len(own)} features in order"
                )
            names = record["images"]
            number = int(media[begin - start])
            name = names[number] if number < len(names) else ""
            boxes = [numbers for medium, numbers in record.get("boxes", ()) if medium == number]
            figures.append(self._figure(slot, name, begin, end, boxes))
            attributes = self._attributes(
                end - 1,
                f"{begin}–{end - 1}",
                f"{_position(self._positions[begin])}–{_position(self._positions[end - 1])}",
            )
            yield (
                f"<a href=#{self._anchor('i', slot + 1)}{attributes}>"
                f"image {slot + 1}: {end - begin} features, positions {begin}–{end - 1}</a>"
            )

    def _figure(self, slot: int, name: str, begin: int, end: int, boxes: Sequence[Sequence[float]]) -> str:
        pixels = self._source.pictures[slot].pixels
        height, width = pixels.shape[:2]
        data = data_url(with_boxes(pixels, boxes))
        scale = max(1, _PICTURE // width)
        places = f"{width} × {height} pixels, positions {begin}–{end - 1}"
        return (
            f"<figure id={self._anchor('i', slot + 1)}><img{' class=small' * (scale > 1)} width={width * scale} "
            f'height={height * scale} decoding=async alt="image {slot + 1} of {plain(self._heading)}: {plain(name)}" '
            f'src="{data}"><figcaption class=quiet>image {slot + 1}: {places}<br>{plain(name)}'
            "</figcaption></figure>\n"
        )

    def _text_chips(self, begin: int, end: int) -> Iterator[str]:
        tokens = [self._vocabulary[int(id)] for id in self._tokens[begin:end]]
        spelled: list[list[Span]] = []
        for run_begin, run_end in _runs(np.array([token.text is None for token in tokens])):
            run = [token.text for token in tokens[run_begin:run_end]]
            if run[0] is None:
                spelled.extend([[]] * len(run))
            else:
                spelled.extend(spell([text or b"" for text in run]))
        for at, token, parts in zip(range(begin, end), tokens, spelled, strict=True):
            tag = "mark" if self._supervised[at] else "b"
            is_control = token.text is None and token.raw
            if is_control:
                inner = plain(token.raw)
            elif token.text is None:
                inner = f'<s data-x="id {self._tokens[at]} is in no vocabulary"></s>'
            else:
                inner = _parts_html(tuple(parts))
            attributes = self._attributes(at, str(at), _position(self._positions[at]), token.raw)
            yield f"<{tag}{' class=c' * bool(is_control)}{attributes}>{inner}</{tag}>"

    def _attributes(self, at: int, position: str, in_segment: str, raw: str | None = None) -> str:
        """Data that the page shows on hovering; the style sheet has the words. One line each, for editors."""
        id = int(self._tokens[at])
        if raw is None:
            raw = self._vocabulary[id].raw
        weight = f" data-w={self._weights[at]:g}" if self._weights[at] else ""
        target = int(self._targets[at])
        return f'\ndata-p={position} data-s={in_segment} data-i="{id} {plain(raw)}" data-y={target}{weight}'


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each run of equal values."""
    cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *cuts.tolist(), len(values)]
    return zip(edges[:-1], edges[1:], strict=True)


def _position(position: np.ndarray) -> str:
    """One number, or those of the axes."""
    return str(position) if np.ndim(position) == 0 else ",".join(map(str, position))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


@functools.lru_cache(maxsize=2**16)
def _parts_html(parts: tuple[Span, ...]) -> str:
    """The HTML of a text chip.

    White space stays in the text, where it can be copied and read back, with a mark drawn over it by the style sheet;
    what the style sheet writes out (`data-x`) is not part of the text.
    """
    return "".join(f'<s data-x="{part.text}"></s>' if part.is_bytes else _characters_html(part.text) for part in parts)


_SPACES = {" ": "<u> </u>", "\n": "<u class=n>\n</u>", "\t": "<u class=v>\t</u>"}


def _characters_html(text: str) -> str:
    """Accents without a letter before them would be drawn over the chip before, or not at all: ◌ carries them."""
    rest = text.lstrip("".join(filter(_is_accent, text)))
    accents = text[: len(text) - len(rest)]
    pieces = [f'<s class=k data-x="◌{accents}"><i>{accents}</i></s>'] if accents else []
    for letter in rest:
        if letter in _SPACES:
            pieces.append(_SPACES[letter])
        elif is_unseen(letter):
            pieces.append(f'<s data-x="U+{ord(letter):04X}"></s>')
        else:
            pieces.append(html.escape(letter))
    return "".join(pieces)


def _is_accent(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")
