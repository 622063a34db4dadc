"""The page of rows in Chromium: it asks for nothing, no record runs, and what a person sees and reads is the row."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from jaxvlm.inspect.page import write_page
from tests.browser import visit
from tests.data.test_page import make_row, record, three

pytestmark = pytest.mark.browser


ATTACKS = (
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</div></details><style>* { display: none }</style><svg onload=\"document.title='owned'\">",
    "\u202eexe.gnp <a href=\"javascript:document.title='owned'\">",
)


@pytest.fixture
def page(tmp_path):
    return tmp_path / "page.html"


def test_what_a_browser_shows(page, tokenizer):
    row = three(tokenizer)
    write_page(page, [row], tokenizer, title="Rows")
    seen = visit(
        page,
        scripts={
            "chips": "document.querySelectorAll('main .t b, main .t mark').length",
            "positions": "[...document.querySelectorAll('main .t b, main .t mark')].map(e => +e.dataset.p)",
            "learned": "[...document.querySelectorAll('.seg')].map(s => "
            "[...s.querySelectorAll('mark')].map(e => e.innerText).join(''))",
            "sizes": "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width, i.height])",
            "title": "document.title",
            "colours": "['main mark', 'main b'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)",
            "overflow": "document.documentElement.scrollWidth - innerWidth",
        },
    )
    assert seen.loaded and seen.requests == [page.as_uri()] and seen.console == []
    batch, results = row.batch, seen.results
    is_text = (batch.segments[1] > 0) & (batch.image_index[1] < 0)
    assert results["positions"] == np.flatnonzero(is_text).tolist() and results["chips"] == is_text.sum()
    assert results["learned"] == [" a square</s> two dots</s>", " the circle</s>", ""]
    height, width = batch.media.pixels.shape[2:4]
    assert results["sizes"] == [[True, width, height, 336, 336]] * 2
    assert results["title"] == "Rows" and results["overflow"] <= 0
    learned, read = results["colours"]
    assert learned != read


def test_text_of_many_scripts_is_read_back(page, smollm2):
    answer = "naïve 猫 🐈 שלום\n\n\tend  of x\u0301"
    write_page(page, [make_row(smollm2, [record("x", "say", answer)], template="chatml")], smollm2, title="Rows")
    seen = visit(
        page,
        scripts={
            "learned": "[...document.querySelectorAll('main mark')].map(e => e.innerText).join('')",
            "bytes": "[...document.querySelectorAll('main mark s')].map(e => getComputedStyle(e, '::before').content)",
            "lines": "new Set([...document.querySelectorAll('.t mark')].map(e => e.getBoundingClientRect().top)).size",
        },
    )
    assert seen.console == [] and seen.results["learned"] == f"{answer}<|im_end|>"
    assert '"F0 9F"' in seen.results["bytes"]
    assert seen.results["lines"] >= 3  # a newline breaks the line


def test_hovering(page, tokenizer):
    row = three(tokenizer)
    write_page(page, [row], tokenizer, title="Rows")
    places = np.flatnonzero(row.batch.loss_weights[1]) + 1
    for at in (places[0], places[-1]):
        tip = "getComputedStyle(document.querySelector('main :is(b, mark):hover'), '::after')"
        seen = visit(
            page,
            hover=f"[data-p='{at}']",
            scripts={"position": "+document.querySelector('main mark:hover').dataset.p", "tip": f"{tip}.content"},
        )
        assert seen.results["position"] == at
        lines = seen.results["tip"].strip('"').split("\\a ")
        batch = row.batch
        id = batch.tokens[1, at]
        assert lines == [
            f"position {at} in the row, {batch.positions[1, at]} in its segment",
            f"id {id} {tokenizer.convert_ids_to_tokens(int(id))}",
            f"target {batch.targets[1, at]}, loss weight {batch.loss_weights[1, at]:g}",
        ]


def test_no_record_runs(page, tokenizer):
    row = make_row(tokenizer, [record("x", "a", " and ".join(ATTACKS))])
    turns = [["user", ATTACKS[0]], ["assistant", " ".join(ATTACKS)]]
    described = {"id": ATTACKS[1], "origin": ATTACKS[2], "images": [], "turns": turns}
    row = dataclasses.replace(row, records=[described], name=ATTACKS[0])
    write_page(page, [row], tokenizer, title="Rows", notes=ATTACKS)
    seen = visit(
        page,
        scripts={
            "title": "document.title",
            "made": "document.querySelectorAll('script, img, svg, [onerror], [onload], a[href^=javascript]').length",
            "shown": "document.querySelector('main aside dd').textContent",
            "styles": "document.querySelectorAll('style').length",
        },
    )
    assert seen.results == {"title": "Rows", "made": 0, "shown": ATTACKS[0], "styles": 1}
    assert seen.requests == [page.as_uri()] and seen.console == []


def test_the_policy_stops_what_escaping_would_let_through(page, tokenizer):
    """The same attacks pasted into the page as markup, with the policy and, to see that they are attacks, without."""
    write_page(page, [three(tokenizer)], tokenizer, title="Rows")
    attack = f'{ATTACKS[0]}{ATTACKS[1]}<img src="http://127.0.0.1:9/x.png">'
    text = page.read_text().replace("</main>", f"{attack}</main>")
    page.write_text(text)
    stopped = visit(page, scripts={"title": "document.title"})
    assert stopped.results["title"] == "Rows" and stopped.requests == [page.as_uri()] and stopped.console
    page.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    free = visit(page, scripts={"title": "document.title"})
    assert free.results["title"] == "owned" and "http://127.0.0.1:9/x.png" in free.requests


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_light_and_dark(page, tokenizer, tmp_path, dark):
    """The picture of the window is the page's colours, and text stands out of them (WCAG AA: 4.5 to 1)."""
    write_page(page, [three(tokenizer)], tokenizer, title="Rows")
    texts = [
        "h1",
        "h3",
        ".quiet",
        "main b:not(.c)",
        "main b.c",
        "main mark",
        "main .t a",
        "main .t .p",
        "dt s",
        "nav a",
    ]
    seen = visit(
        page,
        dark=dark,
        picture=tmp_path / "page.png",
        scripts={
            "page": "getComputedStyle(document.body).backgroundColor",
            "pairs": f"""{texts!r}.map(s => {{
                const element = document.querySelector(s); let behind = element; const clear = 'rgba(0, 0, 0, 0)'
                while (getComputedStyle(behind).backgroundColor == clear) behind = behind.parentElement
                return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor] }})""",
        },
    )
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    page_colour = _colour(seen.results["page"])
    assert tuple(pixels[2, 2]) == page_colour and (np.mean(page_colour) < 60) == dark
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    contrasts = {s: _contrast(*map(_colour, pair)) for s, pair in zip(texts, seen.results["pairs"], strict=True)}
    assert all(contrast >= 4.5 for contrast in contrasts.values()), contrasts


@pytest.mark.parametrize("rows", [10, pytest.param(100, marks=pytest.mark.nightly)])
def test_many_rows_of_2048_tokens(page, tokenizer, smollm2, rows):
    words = " ".join(["what is left of the circle"] * 83)
    records = [record(f"r{k}", "<image>\nsay " + words, words, images=1) for k in range(2)]
    row = make_row(smollm2, records, template="chatml", tokens=2048, size=64)
    write_page(page, [row] * rows, smollm2, title="Rows")
    tokens = int(((row.batch.segments[1] > 0) & (row.batch.image_index[1] < 0)).sum())
    assert tokens > 1500
    seen = visit(
        page,
        hover=f"#r{rows} .seg:last-of-type mark:last-of-type",
        scripts={
            "chips": "document.querySelectorAll('main .t b, main .t mark').length",
            "hovered": "document.querySelector('mark:hover').textContent",
            "images": "document.images.length",
        },
    )
    assert seen.results == {"chips": rows * tokens, "hovered": "<|im_end|>", "images": 2 * rows}


def _colour(text):
    return tuple(int(float(number)) for number in re.findall(r"[\d.]+", text)[:3])


def _contrast(one, other):
    """Source: WCAG 2.2, contrast ratio and relative luminance."""

    def luminance(colour):
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
