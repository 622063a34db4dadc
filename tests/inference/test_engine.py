"""From records to answers: prompts, batches, pieces of text."""

import copy
import dataclasses
import gc
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlm.config import MeshConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.data.rows.packing import fill_row
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.inference.decoding import AnswerText, Stream
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.programs import STEP_TOKENS
from jaxvlm.inference.sampling import Sampling
from jaxvlm.sharding import Rules, make_mesh
from tests import tiny
from tests.inference import tiny_run
from tests.inference.programs import compilations
from tests.layouts import empty_batch, expand


@dataclasses.dataclass
class World:
    """A model with weights, and what it takes to ask it."""

    config: object
    model: object
    params: dict
    tokenizer: object
    folder: object

    @property
    def data(self):
        return self.config.stage["finetune"].data

    def engine(self, *, data=None, params=None, devices=1):
        mesh = make_mesh(MeshConfig(data=1, fsdp=devices, tensor=1), jax.devices()[:devices])
        return Engine(self.model, params or self.params, self.tokenizer, data or self.data, mesh, Rules())

    def ask(self, records, *, data=None, params=None, devices=1, count=5, batch_size=4, **options):
        engine = self.engine(data=data, params=params, devices=devices)
        return engine.answer(records, max_new_tokens=count, batch_size=batch_size, **options)

    def record(self, text, *colours, group="", truth=None):
        images = tuple(str(self.folder / f"{colour}.png") for colour in colours)
        ends = () if truth is None else (Turn("assistant", truth),)
        return Record(text, (Turn("user", "<image>\n" * len(images) + text), *ends), images, f"q[{text}]", group)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    config = tiny.config(tiny_run.recipe(tiny_run.write_data(folder)))
    model = build_model(config.model)
    # Larger weights than those of a new model, whose answers would all be the same.
    params = jax.tree.map(lambda w: 2 * w, tiny.params(model, 3))
    return World(config, model, jax.device_put(params, jax.devices()[0]), tiny_run.tokenizer(config), folder)


@pytest.fixture
def records(world):
    return [
        world.record("what color is it?", "green"),
        world.record("say hello"),
        world.record("is it red?", "blue"),
        world.record("what color is it? is it red? say hello", "red"),
        world.record("what color?", "red", "blue"),
        world.record("what color is it?", "blue"),
    ]


def greedy_by_hand(world, record, count):
    """The answer from the full forward of a row that grows by a token at a time."""
    vision = world.config.model.vision
    renderer = Renderer(
        world.tokenizer, world.data.template, image_token_id=image_token_id(world.tokenizer), system=world.data.system
    )
    layout = ImageSlots.of(vision, world.data.media.aspect)
    piece = expand(renderer.render_prompt(record), layout)
    batch = empty_batch(layout, tokens=80, images=2)
    fill_row(batch, 0, [piece], [layout.load(image, "", exact=True) for image in record.images], layout)
    length = len(piece.tokens)
    for at in range(length, length + count):
        logits = _forward(world.model, world.params, batch)
        batch.tokens[0, at] = int(np.argmax(logits[0, at - 1]))
        batch.positions[0, at], batch.segments[0, at] = at, 1
    return renderer.decode(batch.tokens[0, length : length + count])


def _forward(model, params, batch):
    if not hasattr(_forward, "compiled"):
        _forward.compiled = jax.jit(lambda p, b: model.bind(p).logits(model.bind(p).hidden(b)))
    return _forward.compiled(params, batch)


def test_answers_come_in_order_and_are_those_of_the_full_forward(world, records):
    expected = [greedy_by_hand(world, record, 5) for record in records]
    assert len(set(expected)) > 3
    assert world.ask(records) == expected
    assert world.ask(records[::-1]) == expected[::-1]


def test_eight_devices_give_the_same_answers(world, records):
    params = jax.device_get(world.params)
    assert world.ask(records, params=params, devices=8, batch_size=3) == world.ask(records)


def test_the_truth_is_not_shown(world):
    asked = world.record("is it red?", "blue")
    assert world.ask([dataclasses.replace(asked, turns=(*asked.turns, Turn("assistant", "no")))]) == world.ask([asked])


def test_a_conversation_has_its_earlier_turns_as_context(world):
    first = world.record("what color is it?", "green", truth="blue")
    later = dataclasses.replace(first, turns=(*first.turns, Turn("user", "is it red?")))
    assert world.ask([later]) == [greedy_by_hand(world, later, 5)]


def test_the_same_records_compile_once_whatever_the_weights(world, records):
    with compilations() as found:
        world.ask(records[:1], count=9)
    assert found["_prefill"] == found["_step"] == 1
    with compilations() as found:
        world.ask(records[5:], count=9, params=jax.tree.map(lambda w: w + 0.1, world.params))
    assert not any(found.values())


@pytest.mark.nightly  # test_decode.py has it of the programs
def test_samples_do_not_depend_on_the_batch_size(world):
    sampling = Sampling(temperature=1.0, seed=3)
    asked = [world.record("is it red?", colour) for colour in ("red", "green", "blue")]
    drawn = world.ask(asked, sampling=sampling)
    assert drawn == world.ask(asked, sampling=sampling, batch_size=1)
    assert drawn != world.ask(asked, sampling=Sampling(temperature=1.0, seed=4))


def test_an_image_is_decoded_once_for_all_its_questions(world, monkeypatch):
    loaded = []
    load = ImageSlots.load
    monkeypatch.setattr(ImageSlots, "load", lambda self, *args, **kw: loaded.append(args[0]) or load(self, *args, **kw))
    questions = [world.record("is it red?", colour) for _ in range(6) for colour in ("red", "green")]
    world.ask([dataclasses.replace(question, origin=f"line {n}") for n, question in enumerate(questions)])
    assert len(loaded) == 2


def test_nothing_to_answer(world):
    assert world.ask([]) == []


def test_too_long_prompts_are_named_with_their_numbers(world):
    data = dataclasses.replace(world.data, tokens=20)
    with pytest.raises(UserError, match=r"the prompt has \d\d tokens \(18 of 2 images, \d+ of text\)") as raised:
        world.ask([world.record("is it red?", "red", "blue"), world.record("say hello " * 9)], data=data)
    assert all(part in str(raised.value) for part in ("q[is it red?]", "q[say hello", "have 20 (data.tokens)"))


def test_a_missing_image_names_its_record(world):
    with pytest.raises(UserError, match=r"q\[is it red\?\]: image .*purple.png is missing"):
        world.ask([world.record("is it red?", "purple")])


def test_a_changed_image_is_read_again(world, tmp_path):
    path = tmp_path / "a.png"
    record = dataclasses.replace(world.record("what color is it?", "red"), images=(str(path),))
    colours = []
    for colour in ("green", "red"):
        Image.new("RGB", (30, 20), tiny_run.COLOURS[colour]).save(path)
        colours.append(world.ask([record]))
    assert colours[0] != colours[1]
    assert colours == [world.ask([world.record("what color is it?", colour)]) for colour in ("green", "red")]


def test_a_stream_is_the_answer(world, records):
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
        for record in records[2:4]:
            stream = world.engine().stream(record, max_new_tokens=20, sampling=sampling)
            pieces = list(stream)
            assert ["".join(pieces)] == world.ask([record], count=20, sampling=sampling)
            assert stream.text == "".join(pieces) and all(pieces)
            assert stream.finish_reason == "length" and len(stream.tokens) == 20
    chunks = world.engine(devices=8, params=jax.device_get(world.params)).stream(records[3], max_new_tokens=20, steps=6)
    assert ["".join(chunks)] == world.ask([records[3]], count=20)


def test_a_long_answer_takes_several_steps(world, records):
    assert STEP_TOKENS == 32
    whole = world.ask(records, count=80)
    for record, text in zip(records, whole, strict=True):
        assert text == "".join(world.engine().stream(record, max_new_tokens=80))
    assert world.ask(records, count=80, batch_size=1) == whole


def test_a_stream_ends_at_a_stop_id(world, records):
    free = world.engine().stream(records[0], max_new_tokens=20)
    list(free)
    stop, engine = free.tokens[4], world.engine()
    renderer = copy.copy(engine.renderer)
    renderer.stop_ids = (stop,)
    engine.__dict__["renderer"] = renderer  # in the place of the cached one
    stream = engine.stream(records[0], max_new_tokens=20)
    assert "".join(stream) == engine.answer([records[0]], max_new_tokens=20, batch_size=1)[0]
    assert stream.finish_reason == "stop" and stream.tokens == free.tokens[: free.tokens.index(stop)]


def test_a_cancelled_stream_leaves_the_engine_as_it_was(world, records):
    engine = world.engine()
    records = records[2:4]
    whole = engine.answer(records, max_new_tokens=20, batch_size=2)
    caches = num_caches()
    for count in (0, 1):
        stream = engine.stream(records[1], max_new_tokens=20)
        pieces = [next(stream) for _ in range(count)]
        stream.cancel()
        assert list(stream) == [] and whole[1].startswith("".join(pieces))
        assert stream.finish_reason == "cancelled"
        assert num_caches() == caches  # although the stream is still referred to
    with engine.stream(records[1], max_new_tokens=20) as closed:
        next(closed)
    assert closed.finish_reason == "cancelled"
    assert engine.answer(records, max_new_tokens=20, batch_size=2) == whole


def num_caches():
    gc.collect()
    return sum(array.ndim == 5 and array.dtype != np.uint8 for array in jax.live_arrays())


def test_two_streams_do_not_disturb_each_other(world, records):
    engine = world.engine()
    expected = [world.ask([record], count=20)[0] for record in records[2:4]]
    list(engine.stream(records[2], max_new_tokens=20))
    with compilations() as found:
        pairs = list(itertools.zip_longest(*(engine.stream(r, max_new_tokens=20) for r in records[2:4]), fillvalue=""))
    assert ["".join(pieces) for pieces in zip(*pairs, strict=True)] == expected
    assert not any(found.values()) or records[2].images != records[3].images


def test_no_piece_ends_within_a_character(world):
    engine, text = world.engine(), "hello 龍 red blue 🐉 what color is it?"
    ids = world.tokenizer(text, add_special_tokens=False).input_ids
    assert not {token for token in ids if token in engine.open_ids}.isdisjoint(ids)  # no token for the dragons
    for cut in range(1, len(ids) + 1):
        pieces = list(Stream(iter(np.array([[token], [7]]) for token in ids[:cut]), engine.renderer, engine.open_ids))
        assert "".join(pieces) == engine.renderer.decode(ids[:cut])
        assert not any("\ufffd" in piece for piece in pieces[:-1])
    assert "".join(pieces) == text and len(pieces) > 5


def test_a_long_answer_is_not_decoded_from_its_beginning_each_time(world):
    engine, decoded = world.engine(), []

    class Counting:
        stop_ids = engine.renderer.stop_ids

        def decode(self, ids):
            decoded.append(len(ids))
            return engine.renderer.decode(ids)

    words = "hello 龍 red blue 🐉 what color is it?  \n\n is it 🐉🐉🐉 red? "
    ids = world.tokenizer(words * 40, add_special_tokens=False).input_ids
    for step in (1, 3, 50):
        text = AnswerText(Counting(), engine.open_ids)
        pieces = [text.push(ids[at : at + step]) for at in range(0, len(ids), step)] + [text.rest()]
        assert "".join(pieces) == engine.renderer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)
        assert max(decoded) < 400 < len(ids)
        decoded.clear()


def test_the_engine_prints_nothing(world, records, capfd):
    world.ask(records[:2])
    list(world.engine().stream(records[0], max_new_tokens=5))
    assert capfd.readouterr() == ("", "")
