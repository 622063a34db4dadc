"""Our classes of lmms-eval on stand-ins for the three classes that they import; test_lmms_eval.py has the real ones."""

import dataclasses
import importlib
import sys
import types

import pytest
from PIL import Image

from jaxvlm.errors import UserError
from jaxvlm.inference.likelihood import LogLikelihood

RED, BLUE = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (2, 2), "blue")
DOCS = [{"text": "Who?", "images": [RED]}, {"text": "<image> or <image>?", "images": [RED, BLUE]}]
DOCS += [{"text": "Hello", "images": []}, {"text": "What?", "images": [BLUE, RED]}]


@dataclasses.dataclass
class Instance:
    """As lmms_eval/api/instance.py, as far as a model sees it."""

    args: tuple


@dataclasses.dataclass
class GenerationResult:
    """As there."""

    text: object


class Base:
    """As lmms_eval/api/model.py."""

    def __init__(self):
        self.task_dict = {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)


def chat_messages(messages):
    """As lmms_eval/protocol.py: typed parts instead of dicts."""

    def typed(message):
        parts = [types.SimpleNamespace(**part) for part in message["content"]]
        return types.SimpleNamespace(role=message["role"], content=parts)

    return types.SimpleNamespace(messages=[typed(message) for message in messages])


class Engine:
    """Answers with the question, the number of images and the limit."""

    def answer(self, records, *, max_new_tokens, batch_size, sampling):
        self.records = records
        return [f"{record.turns[-1].text}|{len(record.images)}|{max_new_tokens}" for record in records]

    def loglikelihoods(self, records, *, batch_size):
        self.records = records
        return [LogLikelihood(-6.0, len(record.turns[-1].text), bool(record.images)) for record in records]


@pytest.fixture
def models(monkeypatch):
    """The module of the classes, with an engine that echoes."""
    fakes = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"Instance": Instance, "GenerationResult": GenerationResult},
    }
    fakes |= {"lmms_eval.api.model": {"lmms": Base}, "lmms_eval.protocol": {"ChatMessages": chat_messages}}
    for name, values in fakes.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "jaxvlm.integrations.lmms_eval_models", raising=False)
    module = importlib.import_module("jaxvlm.integrations.lmms_eval_models")
    monkeypatch.setattr(module, "open_engine", lambda **_: Engine())
    yield module
    sys.modules.pop("jaxvlm.integrations.lmms_eval_models", None)


def made(cls, **arguments):
    model = cls(run="runs/x", batch_size=2, **arguments)
    model.task_dict = {"task": {"test": DOCS}}
    return model


def simple(doc_id, **settings):
    doc = DOCS[doc_id]
    return Instance((doc["text"], settings, lambda doc: doc["images"], doc_id, "task", "test"))


def chat(doc_id, messages, **settings):
    return Instance((DOCS[doc_id]["text"], messages, settings, doc_id, "task", "test"))


def user(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "url": p} for p in parts]
    return {"role": "user", "content": content}


def test_simple_requests_in_order_whatever_their_settings(models):
    model = made(models.SimpleModel)
    cached = []
    model.cache_hook.add_partial = lambda *call: cached.append(call)
    requests = [
        simple(0, max_new_tokens=5),
        simple(1, max_new_tokens=9),
        simple(2, until="|"),
        simple(3, max_new_tokens=5),
    ]
    answers = model.generate_until(requests)
    expected = ["<image>\nWho?|1|5", "<image> or <image>?|2|9", "Hello", "<image>\n<image>\nWhat?|2|5"]
    assert answers == expected
    assert sorted(cached) == sorted(
        ("generate_until", (request.args[0], request.args[1]), answer)
        for request, answer in zip(requests, expected, strict=True)
    )


def test_chat_messages_become_turns(models):
    model = made(models.ChatModel)
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "A man."}]}
    conversations = [
        [user(RED, "Who?")],
        [user(RED, BLUE, "<image> or <image>?")],
        [system, user("Look:", RED, " and ", BLUE), said, user("Sure?")],
    ]
    answers = model.generate_until([chat(number, lambda _, m=m: m) for number, m in enumerate(conversations)])
    assert answers == ["<image>\nWho?|1|128", "<image> or <image>?|2|128", "Sure?|2|128"]
    assert [(turn.role, turn.text) for turn in model._engine.records[2].turns] == [
        ("system", "Be brief."),
        ("user", "Look:<image>\n and <image>\n"),
        ("assistant", "A man."),
        ("user", "Sure?"),
    ]
    assert model._engine.records[2].origin == "task/test[2]"


def test_rounds_end_when_the_task_says_so(models):
    def messages(rounds, doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return [user("0")]
        assert len(previous_output) == round_idx and previous_round_info == (round_idx - 1 or None)
        return [user(f"{round_idx} of {rounds}")], round_idx == rounds, previous_output, round_idx

    model = made(models.ChatModel)
    requests = [chat(number, lambda *a, n=n, **k: messages(n, *a, **k)) for number, n in enumerate((2, 1, 3))]
    assert model.generate_until_multi_round(requests) == [
        ["0|0|128", "1 of 2|0|128"],
        ["0|0|128"],
        ["0|0|128", "1 of 3|0|128", "2 of 3|0|128"],
    ]
    endless = chat(0, lambda *a, **k: messages(-1, *a, **k))
    with pytest.raises(UserError, match=r"task/test\[0\]: the task has not ended after 100 rounds"):
        model.generate_until_multi_round([endless])


def test_likelihoods_are_losses_of_a_token(models):
    model = made(models.SimpleModel)
    args = ("Who?", " me", lambda doc: doc["images"], 0, "task", "test")
    targeted = ("Hello", lambda doc: doc["text"] + "!", lambda doc: None, 2, "task", "test")
    found = model.loglikelihood([Instance(args), Instance(targeted)])
    assert [one.text for one in found] == [(3.0, True), (1.0, False)]
    assert model._engine.records[0].turns[-1].text == "me"


def test_what_is_not_supported_is_refused(models):
    chats, simples = made(models.ChatModel), made(models.SimpleModel)
    refusals = [
        (lambda: simples.generate_until([simple(0, num_beams=3)]), "num_beams = 3"),
        (lambda: simples.generate_until_multi_round([]), "leave --force_simple out"),
        (lambda: chats.loglikelihood([]), "pass --force_simple"),
        (
            lambda: chats.generate_until([chat(0, lambda _: [user("a"), {**user("b"), "role": "assistant"}])]),
            "end with",
        ),
        (lambda: simples.loglikelihood([Instance(("", "a"))]), "acc_mutual_info"),
        (lambda: models.SimpleModel(run="x", model_base="y"), "unknown names: model_base"),
        (lambda: models.SimpleModel(run="x", batch_size="auto"), "--batch_size auto"),
        (lambda: models.SimpleModel(run="x", device="cuda"), "--device cuda"),
    ]
    for call, message in refusals:
        with pytest.raises(UserError, match=message):
            call()
    video = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
    with pytest.raises(UserError, match=r"task/test\[0\] has a part of type video"):
        chats.generate_until([chat(0, lambda _: [video])])
    with pytest.raises(UserError, match=r"task/test\[0\] has a visual of type str"):
        simples.generate_until([Instance(("Who?", {}, lambda _: ["a.mp4"], 0, "task", "test"))])
