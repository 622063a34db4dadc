"""Settings, images, placeholders and batches of the harnesses, in our words."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data.media.images import decode
from jaxvlm.data.records import Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.inference.sampling import Sampling
from jaxvlm.integrations import questions
from jaxvlm.integrations.questions import Generation, Question, answer_all, image_file, open_engine, with_placeholders


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Generation(128, Sampling(seed=7))),
        ({"until": None, "max_new_tokens": None, "do_sample": False}, Generation(128, Sampling(seed=7))),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1}, Generation(16, Sampling(seed=7))),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.0}, Generation(128, Sampling(seed=7))),
        ({"do_sample": True, "temperature": 0.0}, Generation(128, Sampling(seed=7))),
        ({"do_sample": True, "top_k": 5}, Generation(128, Sampling(1.0, 1.0, 5, 7))),
        ({"temperature": 0.2, "top_p": 0.9, "seed": 1}, Generation(128, Sampling(0.2, 0.9, 0, 1))),
        ({"until": "USER:", "image_aspect_ratio": "pad"}, Generation(128, Sampling(seed=7), ("USER:",))),
        ({"until": ["a", "b"]}, Generation(128, Sampling(seed=7), ("a", "b"))),
    ],
)
def test_settings_in_the_words_of_generate(settings, expected):
    assert Generation.of(settings, 7) == expected


def test_settings_that_cannot_be_honoured_are_named_together():
    settings = {"num_beams": 4, "repetition_penalty": 1.2, "until": [""], "max_new_tokens": 0, "penalty_alpha": 0.6}
    with pytest.raises(UserError) as raised:
        Generation.of(settings)
    for part in (
        "num_beams = 4, only 1",
        "repetition_penalty = 1.2",
        "until = ['']",
        "max_new_tokens = 0",
        "unknown: p",
    ):
        assert part in str(raised.value)
    with pytest.raises(UserError, match="top_p is 0.0, expected more than 0"):
        Generation.of({"temperature": 1.0, "top_p": 0})


def test_an_answer_ends_before_the_first_stop_text():
    assert Generation(stop_texts=("USER:", "\n\n")).cut("Paris. \n\nUSER: and") == "Paris."
    assert Generation(stop_texts=("USER:",)).cut("Paris. ") == "Paris. "
    assert Generation().cut("Paris") == "Paris"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_an_image_keeps_its_pixels(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(pixels[..., 1]))
    file = image_file(image)
    again = Image.open(io.BytesIO(file))
    assert again.format == "PNG"
    np.testing.assert_array_equal(again, image.convert(again.mode))
    assert again.mode == (mode if mode not in ("CMYK", "YCbCr") else "RGB")
    if "A" not in mode:  # our decoder puts transparent pixels on white
        wanted = pixels[..., :1].repeat(3, 2) if mode == "I;16" else image.convert("RGB")
        np.testing.assert_array_equal(decode(file, "test"), wanted)


def test_an_image_is_upright():
    image = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6))
    image.getexif()[0x0112] = 6
    assert Image.open(io.BytesIO(image_file(image))).size == (5, 6)


def test_placeholders():
    assert with_placeholders("Who?", 2, "t[0]") == "<image>\n<image>\nWho?"
    assert with_placeholders("Who? <image> or <image>", 2, "t[0]") == "Who? <image> or <image>"
    assert with_placeholders("Who?", 0, "t[0]") == "Who?"
    with pytest.raises(UserError, match=r"t\[0\]: its text has 1 <image> for 2 images"):
        with_placeholders("<image> Who?", 2, "t[0]")


class Echo:
    """An engine that answers with the question and how it was asked."""

    def __init__(self):
        self.calls = []

    def answer(self, records, *, max_new_tokens, batch_size, sampling):
        self.calls.append((len(records), max_new_tokens, batch_size, sampling.seed))
        return [f"{record.turns[-1].text} STOP {max_new_tokens}" for record in records]


def test_equal_settings_are_answered_together_and_few_images_are_held(monkeypatch):
    monkeypatch.setattr(questions, "_RECORDS_AT_ONCE", 3)
    built = []

    def question(number):
        def build():
            built.append(number)
            return Record("", (Turn("user", f"q{number}"),), (), "")

        sampling = Sampling(1.0, seed=2**32 - 1)
        return Question(build, Generation(5 + number % 2, sampling, ("STOP",)))

    engine, answers = Echo(), {}
    asked = answer_all(engine, [question(number) for number in range(9)], 2)
    for number, text in asked:
        answers[number] = text
        assert len(built) <= len(answers) + 3
    assert answers == {number: f"q{number}" for number in range(9)}
    assert engine.calls == [(3, 5, 2, 2**32 - 1), (2, 5, 2, 0), (3, 6, 2, 2**32 - 1), (1, 6, 2, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither was given"),
        ({"run": "a", "source": "b"}, "both were given"),
        ({"source": "b", "step": 3}, "leave them out with published weights"),
        ({"run": "a", "template": "chatml"}, "leave template out"),
    ],
)
def test_one_model_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        open_engine(**arguments)
