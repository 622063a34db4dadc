"""The page of rows: each token a chip, supervised where the record's answers are; nothing of a record is markup."""

import base64
import dataclasses
import functools
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvlm.data.records import Record, Turn
from jaxvlm.data.rows.packing import fill_row
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.inspect.page import PageRow, page_rows, write_page
from jaxvlm.inspect.token_text import Span, Vocabulary, spell
from tests.data.conftest import data_config, write_records
from tests.layouts import empty_batch, expand, make_pipeline, slots
from tests.parity import tiny_llava

P = 4  # features of an image


class Element:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, match):
        found = [self] if match(self) else []
        for child in self.children:
            if isinstance(child, Element):
                found += child.all(match)
        return found

    def tags(self, *names):
        return self.all(lambda element: element.tag in names)

    def of_class(self, name):
        return self.all(lambda element: name in element.classes)


class Tree(HTMLParser):
    """Refuses what is not balanced: an unescaped quote or bracket would show as that."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        element = Element(tag, attributes)
        self._open[-1].children.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, text):
        self._open[-1].children.append(text)


def chips(element):
    """The chips of text tokens below an element."""
    return [chip for box in element.of_class("t") for chip in box.tags("b", "mark")]


def full_text(chip):
    """What a chip says, characters that are shown by number put back; bytes left out."""
    pieces = []
    for child in chip.children:
        if isinstance(child, str):
            pieces.append(child)
        elif child.tag == "s":
            shown = child.attributes["data-x"]
            pieces.append(chr(int(shown[2:], 16)) if shown.startswith("U+") else child.text)
        else:
            pieces.append(child.text)
    return "".join(pieces)


def record(name, *texts, images=0):
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return Record(name, turns, tuple(f"{name}-{k}.png" for k in range(images)), f"file.json[{name}]")


@functools.lru_cache(maxsize=4)
def renderer_of(tokenizer, template):
    return Renderer(tokenizer, template, image_token_id=image_token_id(tokenizer), system="")


def slots_of(size):
    return slots(size, P)


def make_row(tokenizer, records, *, template="vicuna_v1", tokens=None, images=2, size=6, change=None):
    """A row of records; `change` gets the expanded pieces."""
    layout = slots_of(size)
    pieces = [expand(renderer_of(tokenizer, template).render(one), layout) for one in records]
    if change:
        pieces = change(pieces)
    length = sum(len(piece.tokens) for piece in pieces)
    batch = empty_batch(layout, rows=2, tokens=tokens or length + 5, images=images)
    pixels = [
        np.random.default_rng(k).integers(0, 256, (size, size, 3), np.uint8)
        for k in range(sum(len(one.images) for one in records))
    ]
    fill_row(batch, 1, pieces, pixels, layout)
    described = [
        {"id": r.id, "origin": r.origin, "images": list(r.images), "turns": [[t.role, t.text] for t in r.turns]}
        for r in records
    ]
    return PageRow(batch, 1, described, layout.preview(batch.media, 1), "batch 7")


@pytest.fixture
def show(tmp_path):
    def show(rows, tokenizer, **more):
        path = tmp_path / "page.html"
        write_page(path, rows, tokenizer, **({"title": "Rows"} | more))
        return Tree(path.read_text()).root

    return show


def three(tokenizer, **more):
    """Three segments: two images, text only, and one whose answer carries no weight."""

    def change(pieces):
        return [*pieces[:2], dataclasses.replace(pieces[2], loss_weights=0 * pieces[2].loss_weights)]

    records = [
        record("first", "<image>\n<image>\nwhat is left of the circle", "a square", "and of it", "two dots", images=2),
        record("second", "what is red", "the circle"),
        record("third", "what is big", "the square"),
    ]
    return make_row(tokenizer, records, change=change, **more)


def test_a_packed_row(show, tokenizer):
    row = three(tokenizer)
    page = show([row], tokenizer, title="Rows & more", notes=["of <b>"])
    (card,) = page.tags("article")
    batch = row.batch
    is_text = (batch.segments[1] > 0) & (batch.image_index[1] < 0)
    assert [int(chip.attributes["data-p"]) for chip in chips(card)] == np.flatnonzero(is_text).tolist()
    for chip in chips(card):
        at = int(chip.attributes["data-p"])
        id, _, raw = chip.attributes["data-i"].partition(" ")
        assert int(id) == batch.tokens[1, at] and raw == tokenizer.convert_ids_to_tokens(int(id))
        assert int(chip.attributes["data-s"]) == batch.positions[1, at]
        assert int(chip.attributes["data-y"]) == batch.targets[1, at]
        assert float(chip.attributes.get("data-w", 0)) == batch.loss_weights[1, at]
        assert (chip.tag == "mark") == (batch.loss_weights[1, at - 1] > 0)  # nothing precedes the first
        assert ("c" in chip.classes) == (raw in tokenizer.all_special_tokens)

    segments = card.of_class("seg")
    assert [segment.tags("h3")[0].text for segment in segments] == ["first", "second", "third"]
    for number, segment in enumerate(segments, 1):
        here = np.flatnonzero(batch.segments[1] == number)
        assert f"segment {number} of 3 · positions {here[0]}–{here[-1]}" in segment.text
        assert f"file.json[{('first', 'second', 'third')[number - 1]}]" in segment.text
    learned = ["".join(chip.text for chip in segment.tags("mark")) for segment in segments]
    assert learned == [" a square</s> two dots</s>", " the circle</s>", ""]
    assert [turn.text for turn in segments[0].tags("dd")][1::2] == ["a square", "two dots"]

    images = [link for box in card.of_class("t") for link in box.tags("a")]
    for number, link in enumerate(images):
        places = np.flatnonzero(batch.image_index[1] // P == number)
        assert len(places) == P
        assert link.text == f"image {number + 1}: {P} features, positions {places[0]}–{places[-1]}"
        assert int(link.attributes["data-y"]) == batch.targets[1, places[-1]]
        (figure,) = page.all(lambda e, link=link: e.attributes.get("id") == link.attributes["href"][1:])
        (shown,) = figure.tags("img")
        kind, _, data = shown.attributes["src"].partition(",")
        assert kind == "data:image/png;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(pixels, batch.media.pixels[1, number])
        assert int(shown.attributes["width"]) % 6 == 0 and int(shown.attributes["width"]) > 300
        assert f"first-{number}.png" in shown.attributes["alt"] and f"first-{number}.png" in figure.text
    assert len(images) == 2 == len(page.tags("img"))

    (padding,) = [box.text for box in card.of_class("p") if box.tag == "span"]
    total = batch.tokens.shape[1]
    assert padding == f"padding: 5 positions, {total - 5}–{total - 1}"
    (bar,) = card.of_class("bar")
    flex = [int(piece.attributes["style"].removeprefix("flex:")) for piece in bar.tags("i")]
    kinds = [(piece.classes or [""])[0] for piece in bar.tags("i")]
    assert sum(flex) == total and flex[-1] == 5 and kinds[-1] == "p"
    assert sum(n for n, kind in zip(flex, kinds, strict=True) if kind == "m") == 2 * P
    assert sum(n for n, kind in zip(flex, kinds, strict=True) if kind == "y") == len(card.tags("mark"))

    assert page.tags("title")[0].text == page.tags("h1")[0].text == "Rows & more"
    assert page.tags("p")[0].text == "of <b>"
    assert not page.of_class("warn")


def test_sums_and_contents(show, tokenizer):
    rows = [three(tokenizer), three(tokenizer), make_row(tokenizer, [record("x", "a", "big dots")], images=0)]
    page = show(iter(rows), tokenizer)
    tiles = {tile.tags("dt")[0].text: tile.tags("dd")[0].children[0] for tile in page.of_class("sum")[0].tags("div")}
    positions = sum(row.batch.tokens.shape[1] for row in rows)
    supervised = sum(int((row.batch.loss_weights > 0).sum()) for row in rows)
    text = len(chips(page))
    want = [3, positions, text, supervised, 4, 15]
    assert list(tiles.values()) == [f"{number:,}" for number in want]
    assert positions == text + 4 * P + 15 and supervised == len([c for c in chips(page) if c.tag == "mark"])
    links = page.tags("nav")[0].tags("a")
    assert [link.text for link in links] == ["batch 7", "first", "second", "third"] * 2 + ["batch 7", "x"]
    ids = [element.attributes["id"] for element in page.all(lambda e: "id" in e.attributes)]
    assert len(set(ids)) == len(ids)
    assert {link.attributes["href"][1:] for link in page.tags("a")} <= set(ids)


def test_an_empty_row_and_no_row(show, tokenizer):
    batch = empty_batch(slots_of(4), tokens=9, images=1)
    page = show(page_rows(batch, [[]], slots_of(4)), tokenizer)
    assert page.tags("h2")[0].text == "row 0" and not chips(page)
    assert [box.text for box in page.of_class("p") if box.tag == "span"] == ["padding: 9 positions, 0–8"]
    assert not show([], tokenizer).tags("article")


def test_a_caption_right_behind_its_image(show, tokenizer):
    """The last position of the image predicts the first token of the caption."""
    page = show([make_row(tokenizer, [record("x", "<image>", "big dots", images=1)], template="plain")], tokenizer)
    assert "".join(chip.text for chip in page.tags("main")[0].tags("mark")) == " big dots\n"
    (link,) = page.of_class("t")[0].tags("a")
    assert link.attributes["data-w"] == "1"


def test_rows_of_a_pipeline(show, tokenizer, tmp_path):
    vision = dataclasses.replace(tiny_llava.tiny_config().vision, image_size=16, patch_size=8)
    source = write_records(tmp_path, 20)
    made = make_pipeline(data_config(source), tokenizer, vision=vision, rows=4, seed=0)
    batch, records = made.look_up(1)
    page = show(page_rows(batch, records, made.layout, "batch 1"), tokenizer)
    cards = page.tags("article")
    assert len(cards) == 4 and not page.of_class("warn")
    for card, members in zip(cards, records, strict=True):
        for segment, member in zip(card.of_class("seg"), members, strict=True):
            answers = [text for role, text in member["turns"] if role == "assistant"]
            assert "".join(c.text for c in segment.tags("mark")) == "".join(f" {text}</s>" for text in answers)
            assert len(segment.tags("img")) == len(member["images"])


def test_byte_level_tokens(show, smollm2):
    answer = "naïve 猫 🐈\n\tend  of 你好"
    row = make_row(smollm2, [record("x", "Is </s> <|im_end|> text?", answer)], template="chatml")
    page = show([row], smollm2)
    (card,) = page.tags("article")
    assert "".join(full_text(chip) for chip in card.tags("mark")) == f"{answer}<|im_end|>"
    assert [c.text for c in card.tags("mark") if "c" in c.classes] == ["<|im_end|>"]
    assert "".join(c.text for c in chips(card) if "c" in c.classes).count("<|im_end|>") == 2  # a turn each
    assert not re.search("[ÃðŁĊĠ�]", "".join(chip.text for chip in chips(card)))
    numbers = [s.attributes["data-x"] for chip in chips(card) for s in chip.tags("s")]
    (start,) = (k for k, number in enumerate(numbers) if number.startswith("F0"))
    assert " ".join(numbers[start:]).startswith("F0 9F 90 88")
    marks = [u.classes for chip in card.tags("mark") for u in chip.tags("u")]
    assert marks.count(["n"]) == 1 and marks.count(["v"]) == 1 and marks.count([]) == answer.count(" ")


def test_spell():
    assert spell([b"a\xc3", b"\xa9!"]) == [[Span("a"), Span("C3", True)], [Span("A9", True), Span("é!")]]
    assert spell([b"\xf0\x9f", b"\x90", b"\x88x"]) == [
        [Span("F0 9F", True)],
        [Span("90", True)],
        [Span("88", True), Span("🐈x")],
    ]
    assert spell([b"\xff", b"\xc3", b"b\xf0"]) == [
        [Span("FF", True)],
        [Span("C3", True)],
        [Span("b"), Span("F0", True)],
    ]
    assert spell([b"", "é".encode()]) == [[], [Span("é")]]


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_spelled_tokens_lose_no_byte(data, cuts):
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    tokens = [data[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    spelled = spell(tokens)
    assert len(spelled) == len(tokens)
    whole = "".join(part.text for parts in spelled for part in parts if not part.is_bytes)
    assert whole == data.decode("utf-8", "ignore")
    for token, parts in zip(tokens, spelled, strict=True):
        numbers = b"".join(bytes.fromhex(part.text) for part in parts if part.is_bytes)
        assert all(byte in token for byte in numbers)
        if not numbers:
            assert "".join(part.text for part in parts).encode() == token


def test_an_accent_alone(show, smollm2):
    page = show([make_row(smollm2, [record("x", "a", "b \u0301c")], template="chatml")], smollm2)
    (carried,) = page.tags("main")[0].of_class("k")
    assert carried.attributes["data-x"] == "◌\u0301" and carried.text == "\u0301"


def test_the_vocabulary_of_llama(tokenizer):
    known = Vocabulary(tokenizer)
    ids = tokenizer("big\n☃").input_ids
    assert [known[id].text for id in ids] == [None, b" big", b"\n", b"\xe2", b"\x98", b"\x83"]
    assert known[ids[-1]].raw == "<0x83>" and known[ids[0]].raw == "<s>"
    assert known[10**7].raw == "" and known[10**7].text is None and known[-1].raw == ""


HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</title></style></div></details>--><!-- ]]> &lt; &#x26; \"'`",
    "\u202egnp.exe\u2066\u200d\u200b\ufeff \u0301lone \x00\x07\x1b[31m \x85\u2028\u2029\xa0\r\n\te\u0301",
]


@settings(max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30)), min_size=4, max_size=4))
def test_hostile_text_is_text(tmp_path_factory, tokenizer, texts):
    """Wherever text of a record goes: tokens, turns, id, origin, file names, title and notes."""
    name, origin, asked, said = texts
    row = make_row(tokenizer, [record("x", "a\n<image>", "b", images=1)])
    encoded = tokenizer(said, add_special_tokens=False).input_ids if _encodable(said) else []
    row.batch.tokens[1, : len(encoded[:6])] = encoded[:6]
    described = {"id": name, "origin": origin, "images": [asked], "turns": [["user", asked], ["assistant", said]]}
    row = dataclasses.replace(row, records=[described], name=name)
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, [row], tokenizer, title=name, notes=texts)
    page = Tree(path.read_text(encoding="utf-8")).root
    harmless = "root html head meta link title style body h1 p dl div dt dd small details summary nav ol li a main"
    harmless += " article header h2 span i section h3 b mark u s aside figure img figcaption em strong br"
    assert {element.tag for element in page.all(lambda e: True)} <= set(harmless.split())
    for element in page.all(lambda e: True):
        assert not any(key.startswith("on") for key in element.attributes)
    shown = page.text + "".join(str(value) for e in page.all(lambda e: True) for value in e.attributes.values())
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)

    def seen(text):
        return "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)

    (image,) = page.tags("img")
    assert image.attributes["alt"] == f"image 1 of {page.tags('h2')[0].text}: {seen(asked)}"
    assert page.tags("h2")[0].text == (seen(name) or "row 1")
    assert page.tags("h1")[0].text == seen(name) and page.tags("h3")[0].text == seen(name)
    assert [dd.text for dd in page.tags("aside")[0].tags("dd")] == [seen(asked), seen(said)]
    assert page.tags("section")[0].tags("span")[0].text.endswith(seen(origin))


def _encodable(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=60)
@given(st.one_of(st.sampled_from(HOSTILE[:3]), st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1)))
def test_tokens_say_the_text_that_they_are(tmp_path_factory, smollm2, said):
    """Read off the page, the supervised tokens are the answer, character by character."""
    said = said.strip()
    ids = smollm2(said, add_special_tokens=False).input_ids
    # Its vocabulary has not every byte, and drops in silence what it has not.
    assume(said and smollm2.decode(ids, clean_up_tokenization_spaces=False) == said)
    row = make_row(smollm2, [record("x", "a", said)], template="chatml")
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, [row], smollm2, title="Rows")
    page = Tree(path.read_text(encoding="utf-8")).root
    assert "".join(full_text(chip) for chip in page.tags("article")[0].tags("mark")) == f"{said}<|im_end|>"
    for chip in chips(page):
        assert set(chip.attributes) <= {"class", "data-p", "data-s", "data-i", "data-y", "data-w"}
        id, _, raw = chip.attributes["data-i"].partition(" ")
        assert raw == smollm2.convert_ids_to_tokens(int(id))


def test_the_page_asks_for_nothing(show, tokenizer):
    page = show([three(tokenizer)], tokenizer)
    (policy,) = [meta for meta in page.tags("meta") if "http-equiv" in meta.attributes]
    assert policy.attributes["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy.attributes["content"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": "'none'",
    }
    for element in page.all(lambda e: True):
        for name in ("src", "href"):
            assert element.attributes.get(name, "#").startswith(("#", "data:"))
    (style,) = page.tags("style")
    assert "url(" not in style.text and "@import" not in style.text


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        (
            "targets",
            4,
            5,
            "a loss weight but a target that is not the next text token of the segment: positions 4",
        ),
        (
            "loss_weights",
            -1,
            1.0,
            "a loss weight but a target that is not the next text token of the segment: positions",
        ),
        ("positions", 3, 9, "segment 1 has positions that do not count up from 0"),
        ("image_index", 1, 3, "image 1 is at 1–4 without all its 4 features in order"),
    ],
)
def test_what_is_wrong_with_a_row(show, tokenizer, field, at, value, message):
    row = make_row(tokenizer, [record("x", "<image>", "dots", images=1)], template="plain")
    getattr(row.batch, field)[1, at] = value
    page = show([row], tokenizer)
    (warning,) = page.of_class("warn")
    assert message in warning.text


def test_an_image_is_never_supervised(show, tokenizer):
    row = make_row(tokenizer, [record("x", "<image>", "dots", images=1)], template="plain")
    row.batch.targets[1, 0], row.batch.loss_weights[1, 0] = row.batch.tokens[1, 1], 1
    page = show([row], tokenizer)
    assert "not the next text token of the segment: positions 0" in page.of_class("warn")[0].text
    supervised = int((row.batch.loss_weights[1] > 0).sum()) - 1
    assert f"({supervised} supervised)" in page.tags("article")[0].text


def test_a_record_with_other_images_than_its_segment(show, tokenizer):
    row = make_row(tokenizer, [record("x", "<image>", "dots", images=1)], template="plain")
    row.records[0]["images"].clear()
    (warning,) = show([row], tokenizer).of_class("warn")
    assert "segment 1 has 1 images, its record 0" in warning.text


def test_ids_beyond_the_vocabulary(show, tokenizer):
    row = make_row(tokenizer, [record("x", "a", "dots")])
    row.batch.tokens[1, 2] = 70_000
    chip = chips(show([row], tokenizer))[2]
    assert chip.attributes["data-i"] == "70000 " and not chip.classes
    assert chip.tags("s")[0].attributes["data-x"] == "id 70000 is in no vocabulary"


def test_rows_that_cannot_be_shown(show, tokenizer):
    row = three(tokenizer)
    with pytest.raises(ValueError, match="batch 7 has 3 segments and 2 records"):
        show([dataclasses.replace(row, records=row.records[:2])], tokenizer)
    with pytest.raises(ValueError, match="image_index 7; the features of its 2 images end at 5"):
        show([dataclasses.replace(row, pictures=slots(6, 3).preview(row.batch.media, 1))], tokenizer)


def test_the_size_of_a_long_page(tmp_path, smollm2):
    """What a token costs of the file: 100 rows of 2048 tokens must stay a page that opens."""
    words = " ".join(["what is left of the circle"] * 300)
    row = make_row(smollm2, [record("x", words, words)], template="chatml", tokens=4096)
    sizes = []
    for count in (1, 3):
        write_page(tmp_path / "page.html", [row] * count, smollm2, title="Rows")
        sizes.append((tmp_path / "page.html").stat().st_size)
    tokens = int((row.batch.segments > 0).sum())
    text = len(json.dumps(words)) * 2
    assert tokens > 3000
    assert (sizes[1] - sizes[0]) / 2 - text < 90 * tokens
