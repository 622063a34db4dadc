"""Likelihoods of answers: those of transformers, whatever the batch, and consistent with greedy answers."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import torch

from jaxvlm.config import MeshConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.sources import folder_codec
from jaxvlm.families.text.config import TextConfig
from jaxvlm.inference import likelihood
from jaxvlm.inference.engine import Engine
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.source_model import open_model, read_sources
from tests import tiny
from tests.families.qwen_vl import folders
from tests.inference import tiny_run
from tests.parity import pairs, tiny_llava

pytestmark = pytest.mark.torch


@dataclasses.dataclass
class World:
    """One LLaVA in torch and here, with a tokenizer and images."""

    pair: pairs.Pair
    tokenizer: object
    data: object
    folder: object

    def engine(self, *, devices=1, **data):
        mesh = make_mesh(MeshConfig(data=1, fsdp=devices, tensor=1), jax.devices()[:devices])
        stage = dataclasses.replace(self.data, **data)
        return Engine(self.pair.model, self.pair.params, self.tokenizer, stage, mesh, Rules())

    def decoder(self):
        """The engine of the decoder alone."""
        config = TextConfig("text", self.pair.model.config.language, "float32", "none")
        params = {"language": self.pair.params["language"]}
        return dataclasses.replace(self.engine(), model=build_model(config), params=params)

    def words(self):
        """The spelling of each id."""
        return self.tokenizer.convert_ids_to_tokens(range(tiny_run.VOCAB))

    def record(self, question, answer, *colours):
        images = tuple(str(self.folder / f"{colour}.png") for colour in colours)
        turns = (Turn("user", "<image>\n" * len(images) + question), Turn("assistant", answer))
        return Record(question, turns, images, f"q[{question}|{answer}]")

    def reference(self, engine, record):
        """(logprob, tokens, is_greedy) from torch: all between the prompt and the end token."""
        prompt = engine.renderer.render_prompt(dataclasses.replace(record, turns=record.turns[:-1]))
        whole = engine.renderer.render(record)
        answer = whole.tokens[len(prompt.tokens) :]
        np.testing.assert_array_equal(whole.tokens[: len(prompt.tokens)], prompt.tokens)
        end = int(np.flatnonzero(np.isin(answer, engine.renderer.stop_ids))[0])
        ids = []
        for token, is_image in zip(prompt.tokens, prompt.is_image, strict=True):
            ids += [token] * (self.pair.model.config.vision.features_per_image if is_image else 1)
        inputs = {"input_ids": torch.tensor([[*ids, *answer[:end]]], dtype=torch.long)}
        if record.images:
            pixels = np.stack([engine.layout.load(image, "", exact=True) for image in record.images])
            inputs["pixel_values"] = torch.from_numpy(tiny_llava.normalise(self.pair.model.config, pixels))
        return of_logits(self.pair.hf, inputs, end)


def of_logits(hf, inputs, count):
    """(logprob, tokens, is_greedy) of the last tokens of a row."""
    with torch.no_grad():
        logits = hf(**inputs).logits[0, -count - 1 : -1]
    targets = inputs["input_ids"][0, -count:]
    logprob = logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
    return logprob, count, bool((logits.argmax(-1) == targets).all())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    recipe = tiny.config(tiny_run.recipe(tiny_run.write_data(folder)))
    tokenizer = tiny_run.tokenizer(recipe)
    config = tiny_llava.tiny_config()
    language = dataclasses.replace(config.language, vocab_size=tiny_run.VOCAB)
    pair = pairs.make_pair(dataclasses.replace(config, language=language))
    pair.hf.config.image_token_id = image_token_id(tokenizer)
    return World(pair, tokenizer, recipe.stage["finetune"].data, folder)


@pytest.fixture
def records(world):
    two_rounds = world.record("what color is it?", "green", "green")
    two_rounds = dataclasses.replace(two_rounds, turns=(*two_rounds.turns, *world.record("is it red?", "no").turns))
    return [
        world.record("is it red?", "yes", "blue"),
        world.record("is it red?", "no", "blue"),
        world.record("what color is it?", "a very long answer, red and green and blue, in many words", "red"),
        world.record("say hello", "hello 龍"),  # in bytes
        world.record("what color?", "red", "red", "blue"),
        two_rounds,
    ]


def check(found, expected):
    """Equal up to what float32 sums of up to 50 tokens round off."""
    for have, (logprob, tokens, is_greedy) in zip(found, expected, strict=True):
        assert (have.tokens, have.is_greedy) == (tokens, is_greedy)
        assert have.logprob == pytest.approx(logprob, abs=1e-4)


def test_they_are_those_of_transformers(world, records):
    engine = world.engine()
    expected = [world.reference(engine, record) for record in records]
    assert len({round(logprob, 2) for logprob, *_ in expected}) == 6 and max(n for _, n, _ in expected) > 20
    check(engine.loglikelihoods(records, batch_size=4), expected)


@pytest.mark.parametrize(("devices", "batch_size"), [pytest.param(1, 1, marks=pytest.mark.nightly), (1, 64), (8, 3)])
def test_the_batch_changes_nothing(world, records, devices, batch_size):
    engine = world.engine(devices=devices)
    found = engine.loglikelihoods(records[::-1], batch_size=batch_size)[::-1]
    check(found, map(dataclasses.astuple, world.engine().loglikelihoods(records, batch_size=4)))


def test_a_decoder_alone(world):
    engine, records = world.decoder(), [world.record("say hello", text) for text in ("hello", "red blue", "no")]
    check(engine.loglikelihoods(records, batch_size=2), [world.reference(engine, record) for record in records])


def test_greedy_answers_are_greedy(world):
    """Of a model that writes whole words, so that most answers are tokenized as they were generated."""
    whole = [token.startswith("▁") and token[1:].isalpha() for token in world.words()]
    head = np.where(np.array(whole)[:, None], world.pair.params["language"]["head"]["w"], 0)
    params = world.pair.params | {"language": world.pair.params["language"] | {"head": {"w": head}}}
    engine = dataclasses.replace(world.engine(), params=params)
    pictures = itertools.product(tiny_run.COLOURS, repeat=2)
    asked = [world.record("what color is it?", "?", *colours) for colours in pictures]
    for count in (1, 3):
        texts = engine.answer(asked, max_new_tokens=count, batch_size=8)
        found = engine.loglikelihoods(list(map(answered, asked, texts)), batch_size=8)
        same = [one.tokens == count for one in found]
        assert sum(same) > 4 and [one.is_greedy for one in found] == same
        later = engine.loglikelihoods(
            [answered(record, f"{text} x") for record, text in zip(asked, texts, strict=True)], batch_size=8
        )
        assert not any(one.is_greedy for one in later)


def answered(record, text):
    return dataclasses.replace(record, turns=(record.turns[0], Turn("assistant", text)))


def test_an_image_is_decoded_once_and_a_shape_compiled_once(world, monkeypatch):
    engine, loaded = world.engine(), []
    load = type(engine.layout).load
    monkeypatch.setattr(
        type(engine.layout), "load", lambda self, *args, **kw: loaded.append(args[0]) or load(self, *args, **kw)
    )
    asked = [world.record("is it red?", "no", colour) for colour in ("red", "green")]
    records = [answered(record, text) for text in ("no", "yes") for record in asked]
    engine.loglikelihoods(records * 2, batch_size=4)
    compiled = likelihood._score._cache_size()
    engine.loglikelihoods(list(map(answered, records, ["red", "blue"] * 2)), batch_size=4)
    assert len(loaded) == 4 and likelihood._score._cache_size() == compiled


def test_no_records(world):
    assert world.engine().loglikelihoods([], batch_size=4) == []


def test_mistakes_are_named_together(world):
    question = world.record("say hello", "hello")
    question = dataclasses.replace(question, turns=question.turns[:1], origin="q[a question]")
    with pytest.raises(UserError) as raised:
        world.engine(tokens=30).loglikelihoods([world.record("is it red?", "no " * 40, "red"), question], batch_size=4)
    assert "q[is it red?" in str(raised.value) and "the prompt with its answer has" in str(raised.value)
    assert "have 30 (data.tokens)" in str(raised.value)
    assert "q[a question]: the last turn must be of role assistant" in str(raised.value)
    with pytest.raises(UserError, match="image .*purple.png is missing"):
        world.engine().loglikelihoods([world.record("is it red?", "no", "purple")], batch_size=4)


def test_qwen_with_its_own_chat_template(tmp_path):
    folders.write_folder(tmp_path / "base", "qwen2_5_vl")
    images = [str(tmp_path / name) for name in folders.write_images(tmp_path)]
    reference = folder_codec(tmp_path / "base").reference
    hf = reference.model.from_pretrained(tmp_path / "base", dtype=torch.float32, attn_implementation="eager").eval()
    processor = reference.processor.from_pretrained(tmp_path / "base")
    cases = [("how many?", images[:2], "two blue squares"), ("is it red?", images[2:3], "no"), ("is it?", [], "yes")]
    records, expected = [], []
    for question, media, answer in cases:
        turns = (Turn("user", "<image>" * len(media) + question), Turn("assistant", answer))
        records.append(Record(question, turns, tuple(media), "test"))
        content = [*[{"type": "image"}] * len(media), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        count = len(processor.tokenizer(answer, add_special_tokens=False).input_ids)
        expected.append(of_logits(hf, reference.inputs(processor, text + answer, media), count))
    engine = Engine.of(open_model(read_sources([str(tmp_path / "base")])))
    engine = dataclasses.replace(
        engine, model=build_model(dataclasses.replace(engine.model.config, compute_dtype="float32"))
    )
    check(engine.loglikelihoods(records, batch_size=2), expected)
