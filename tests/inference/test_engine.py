"""From records to answers: prompts, batches, streams, scores."""

import dataclasses

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
from jaxvlm.evaluation.scoring import score
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.inference.decoding import Stream
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.sampling import Sampling
from jaxvlm.models.vlm import VLM
from jaxvlm.sharding import Rules, make_mesh
from tests import tiny
from tests.inference import tiny_run
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
        params = self.params if params is None else params
        return Engine(self.model, params, self.tokenizer, data or self.data, mesh, Rules())

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
    params = jax.jit(lambda: jax.tree.map(lambda w: 2 * w, model.init(jax.random.key(1))))()
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


def test_the_same_records_compile_once_whatever_the_weights(world, records, monkeypatch):
    traces, prefill = [], VLM.prefill
    monkeypatch.setattr(VLM, "prefill", lambda self, *args: traces.append(1) or prefill(self, *args))
    world.ask(records[:1], count=20)
    assert len(traces) == 1
    world.ask(records[5:], count=20, params=jax.tree.map(lambda w: w + 0.1, world.params))
    assert len(traces) == 1


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
    world.ask(questions)
    assert len(loaded) == 2


def test_a_stream_is_the_answer_in_pieces(world, records, capfd):
    engine, expected = world.engine(), world.ask(records, count=12)
    for record, answer in zip(records, expected, strict=True):
        stream = engine.stream(record, max_new_tokens=12)
        pieces = list(stream)
        assert "".join(pieces) == stream.text and all(pieces)
        assert engine.renderer.decode(stream.tokens) == answer  # of bytes that are no UTF-8 the texts may differ
        assert stream.finish_reason in ("stop", "length") and stream.prompt_tokens > 0
    assert capfd.readouterr().out == ""  # library code does not print


def test_a_sampled_stream_is_the_sampled_answer(world, records):
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    answer = world.ask(records[3:4], sampling=sampling, count=9)
    stream = world.engine().stream(records[3], max_new_tokens=9, sampling=sampling)
    list(stream)
    assert [world.engine().renderer.decode(stream.tokens)] == answer


def test_streams_take_turns(world, records):
    engine, expected = world.engine(), world.ask(records[:2], count=12)
    running = [engine.stream(record, max_new_tokens=12) for record in records[:2]]
    while any(stream.finish_reason == "" for stream in running):
        for stream in running:
            next(stream, "")
    assert [engine.renderer.decode(stream.tokens) for stream in running] == expected


def test_a_cancelled_stream_ends_and_leaves_the_engine_as_it_was(world, records):
    engine, expected = world.engine(), world.ask(records[3:4], count=12)
    stream = engine.stream(records[3], max_new_tokens=12)
    first = next(stream)
    stream.cancel()
    assert list(stream) == [] and stream.finish_reason == "cancelled" and stream.text == first
    assert len(stream.tokens) < 12
    with engine.stream(records[3], max_new_tokens=12) as left:
        next(left)
    assert left.finish_reason == "cancelled"
    again = engine.stream(records[3], max_new_tokens=12)
    list(again)
    assert [engine.renderer.decode(again.tokens)] == expected


def test_other_limits_and_prompts_of_a_size_compile_nothing(world, records, monkeypatch):
    traces, prefill = [], VLM.prefill
    monkeypatch.setattr(VLM, "prefill", lambda self, *args: traces.append(1) or prefill(self, *args))
    engine = world.engine()
    for limit in (40, 44, 48):  # one size of the cache
        list(engine.stream(records[0], max_new_tokens=limit))
        list(engine.stream(records[5], max_new_tokens=limit, steps=3))
    assert len(traces) == 1


def test_no_piece_ends_within_a_character():
    text = "é漢🙂 no"
    ids = [*text.encode(), 1]
    reads = iter([np.array([[id]]) for id in ids])
    stream = Stream(reads, lambda ids: bytes(ids).decode(errors="replace").strip(), stop_ids=(1,), prompt=3)
    assert list(stream) == ["é", "漢", "🙂", " n", "o"]
    assert (stream.text, stream.finish_reason, stream.tokens) == (text, "stop", ids[:-1])


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


def test_exact_match_by_group():
    asked = [
        Record("1", (Turn("user", "?"), Turn("assistant", " red ")), (), "", "color"),
        Record("2", (Turn("user", "?"), Turn("assistant", "blue")), (), "", "color"),
        Record("3", (Turn("user", "?"), Turn("assistant", "no")), (), "", "yes/no"),
        Record("4", (Turn("user", "?"), Turn("assistant", "42")), (), ""),
    ]
    assert score(asked, ["red\n", "green", "No", "42"]) == {
        "exact_match": 0.5,
        "count": 4,
        "by_group": {"color": {"exact_match": 0.5, "count": 2}, "yes/no": {"exact_match": 0.0, "count": 1}},
    }
    assert score([], []) == {"exact_match": 0.0, "count": 0, "by_group": {}}
