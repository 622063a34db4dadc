"""From bodies to requests: what is read, ignored and refused, without HTTP and without a model."""

import json
import math

import pytest

from jaxvlm.data.records import spelled
from jaxvlm.data.text.turns import check_turns
from jaxvlm.inference.sampling import Sampling
from jaxvlm.serving import protocol
from jaxvlm.serving.protocol import Served, parse_json, read_call
from jaxvlm.serving.replies import Choice, Completion, to_event
from jaxvlm.serving.requests import Finished, Piece, RequestError, Token

SERVED = Served("jaxvlm", max_choices=4, max_images=3)
IMAGE = {"type": "image_url", "image_url": {"url": "u"}}


def text(content):
    return {"type": "text", "text": content}


def call(served=SERVED, **body):
    """The call of a body that went through JSON."""
    body = {"messages": [{"role": "user", "content": "hi"}]} | body
    return read_call(parse_json(json.dumps(body).encode()), served, lambda url, param: url.encode())


def refused(**body):
    with pytest.raises(RequestError) as caught:
        call(**body)
    return caught.value


def turns(*messages, **served):
    found = call(Served("jaxvlm", **served), messages=list(messages))
    record = found.requests[0].record
    check_turns(record, last="user")
    return [(turn.role, turn.text) for turn in record.turns], record.images


# --- what the tools of others send ----------------------------------------------------------------------------------

# lmms-eval, models/chat/openai.py: build_payload_for_index, with the messages of to_openai_messages.
LMMS_EVAL = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "What is it?\nAnswer the question using a single word or phrase."},
            ],
        }
    ],
    "model": "jaxvlm",
    "max_tokens": 16,
    "temperature": 0,
}
# The same for names with "o1", "o3", "o4" or "gpt-5" in them.
LMMS_EVAL_O1 = {key: LMMS_EVAL[key] for key in ("messages", "model")} | {
    "response_format": {"type": "text"},
    "max_completion_tokens": 5000,
}
# VLMEvalKit, api/gpt.py: OpenAIWrapper.generate_inner.
VLMEVALKIT = {
    "model": "jaxvlm",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Question: what is it?\nOptions:\nA. a\nB. b\n"},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/", "detail": "low"}},
                {"type": "text", "text": "Please select the correct answer from the options above."},
            ],
        },
    ],
    "n": 1,
    "temperature": 0,
    "max_tokens": 2048,
}
# Open WebUI: a history with images in earlier turns, streamed.
OPEN_WEBUI = {
    "model": "jaxvlm",
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": [text("hi"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}],
        },
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now?"},
    ],
    "stream_options": {"include_usage": True},
    "metadata": {"chat_id": "1"},
    "user": "somebody",
}


@pytest.mark.parametrize("body", [LMMS_EVAL, LMMS_EVAL_O1, VLMEVALKIT, OPEN_WEBUI])
def test_payloads_of_other_tools(body):
    found = call(**body)
    (request,) = found.requests
    assert request.sampling.temperature == 0 and found.unknown == () and len(request.record.images) == 1
    check_turns(request.record, last="user")
    assert request.max_new_tokens == body.get("max_completion_tokens", body.get("max_tokens"))
    assert found.stream == found.include_usage == ("stream" in body)


def test_the_text_of_payloads():
    record = call(**VLMEVALKIT).requests[0].record
    assert [turn.role for turn in record.turns] == ["system", "user"]
    assert record.turns[1].text.split("<image>") == [
        "Question: what is it?\nOptions:\nA. a\nB. b\n",
        "Please select the correct answer from the options above.",
    ]
    assert call(**LMMS_EVAL).requests[0].record.turns[0].text.startswith("<image>\nWhat is it?\nAnswer")


# --- messages -------------------------------------------------------------------------------------------------------


def user(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        ((IMAGE, text("a")), "<image>\na"),
        ((IMAGE, IMAGE, text("a")), "<image>\n<image>\na"),
        ((text("a"), IMAGE), "a<image>"),
        ((text("a "), IMAGE, text(" b "), IMAGE, text("c")), "a <image> b <image>c"),
        ((IMAGE, text("a"), IMAGE), "<image>a<image>"),
        ((IMAGE,), "<image>\n"),
        ((text(""), IMAGE, text("a"), text("b")), "<image>\nab"),
        ((text("<image>"), IMAGE, text("<video>")), f"{spelled('<image>')}<image>{spelled('<video>')}"),
        ((text("<im"), text("age>"), IMAGE), f"{spelled('<image>')}<image>"),
        (({"type": "image_url", "image_url": "u"}, text("a")), "<image>\na"),
    ],
)
def test_parts_become_text_with_placeholders(parts, want):
    ((_, found),), images = turns(user(*parts))
    assert found == want and images == (b"u",) * sum(part["type"] == "image_url" for part in parts)


def test_turns():
    found, images = turns(
        {"role": "developer", "content": "a"},
        {"role": "system", "content": [text("b")]},
        {"role": "user", "content": "c <image>"},
        user(IMAGE, text("d")),
        {"role": "assistant", "content": [text("e"), text("f")], "refusal": None, "tool_calls": []},
        {"role": "assistant", "content": "<image>"},
        {"role": "user", "content": "g", "name": "me"},
    )
    assert found == [
        ("system", "a\n\nb"),
        ("user", f"c {spelled('<image>')}\n\n<image>\nd"),
        ("assistant", "ef\n\n<image>"),
        ("user", "g"),
    ]
    assert images == (b"u",)
    assert turns({"role": "system", "content": ""}, {"role": "user", "content": "a"})[0] == [("user", "a")]


SAID = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (None, "messages", "expected a list of messages, found null"),
        ([], "messages", "expected a list"),
        ("hello", "messages", "expected a list"),
        ([1], "messages[0]", "expected an object"),
        ([{}], "messages[0].role", "found null"),
        ([{"role": "tool", "content": "a"}], "messages[0].role", 'found "tool"'),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "found a list"),
        ([{"role": "user"}], "messages[0].content", "is empty"),
        ([{"role": "user", "content": 5}], "messages[0].content", "found 5"),
        ([{"role": "user", "content": " \n"}], "messages[0].content", "is empty"),
        ([{"role": "system", "content": "a"}], "messages[0]", "last message must be of the user"),
        ([{"role": "system", "content": ""}], "messages[0]", "last message must be of the user"),
        ([{"role": "assistant", "content": "a"}, SAID], "messages[0]", "begins with the user"),
        ([SAID, {"role": "assistant", "content": "a"}], "messages[1]", "last message must be of the user"),
        ([SAID, {"role": "assistant", "content": None}, SAID], "messages[1].content", "is empty"),
        ([SAID, {"role": "system", "content": "a"}, SAID], "messages[1]", "only taken first"),
        ([SAID, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls", "does not support"),
        ([user("a")], "messages[0].content[0]", 'found "a"'),
        ([user({"type": "input_audio"})], "messages[0].content[0]", 'found "input_audio"'),
        ([user({"type": "video_url", "video_url": "u"})], "messages[0].content[0]", 'found "video_url"'),
        ([user({"type": "text"})], "messages[0].content[0].text", "found null"),
        ([user({"type": "image_url"})], "messages[0].content[0].image_url", "found nothing"),
        ([user({"type": "image_url", "image_url": {"url": 3}})], "messages[0].content[0].image_url", "found int"),
        ([user(*[IMAGE] * 4)], "messages[0].content[3].image_url", "4 images, at most 3 are taken (--max-images)"),
        ([{"role": "system", "content": [IMAGE]}, SAID], "messages[0].content[0].image_url", "one of the system"),
        ([{"role": "user", "content": "a\ud800"}], "messages[0].content", "U+D800 at character 1"),
        ([{"role": "user", "content": "a\ufdd4"}], "messages[0].content", "U+FDD4"),
        ([user(text("\udfff"))], "messages[0].content[0].text", "U+DFFF"),
    ],
)
def test_messages_that_are_refused(messages, param, message):
    error = refused(messages=messages)
    assert error.param == param and message in str(error)


# --- fields ---------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_model():
    served = Served("jaxvlm", sampling=Sampling(0.7, 0.8, 20))
    (request,) = call(served).requests
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.7, 0.8, 20)
    assert (request.max_new_tokens, request.stop_texts, request.top_logprobs) == (None, (), None)
    nulls = dict.fromkeys((*protocol._READ, *protocol.NEUTRAL, *protocol.IGNORED))
    del nulls["messages"]
    assert call(served, seed=1).requests == call(served, **nulls | {"seed": 1}).requests
    (request,) = call(served, temperature=0, top_p=1, top_k=-1).requests
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0, 1, 0)
    assert 0 < call(top_p=0).requests[0].sampling.top_p < 1e-5


def test_choices_have_seeds_of_their_own():
    assert [request.sampling.seed for request in call(n=3, seed=2**32 - 1).requests] == [2**32 - 1, 0, 1]
    assert [request.sampling.seed for request in call(seed=-1).requests] == [2**32 - 1]
    assert len({call(temperature=1).requests[0].sampling.seed for _ in range(5)}) == 5


def test_lengths_and_stops():
    assert call(max_tokens=5).requests[0].max_new_tokens == 5
    assert call(max_tokens=5.0, max_completion_tokens=7).requests[0].max_new_tokens == 7
    assert call(stop="a").requests[0].stop_texts == ("a",) and call(stop=["a", "b"]).requests[0].stop_texts == (
        "a",
        "b",
    )
    assert call(logprobs=True).requests[0].top_logprobs == 0
    assert call(logprobs=True, top_logprobs=20).requests[0].top_logprobs == 20
    assert not call(stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 2.1, "1", True, [], math.inf)),
        *(("top_p", value) for value in (-0.1, 1.1, "x")),
        *(("top_k", value) for value in (-2, 1.5)),
        *(("n", value) for value in (0, 5, 1.5, "2")),
        *(("max_tokens", value) for value in (0, -1, 2.5, "9", 2**31)),
        ("max_completion_tokens", 0),
        *(("stop", value) for value in ("", ["a", ""], [1], {}, ["x"] * 17)),
        *(("seed", value) for value in (1.5, "1", True)),
        *(("logprobs", value) for value in (1, "true")),
        *(("top_logprobs", value) for value in (1, 21, -1)),  # 1: without logprobs
        *(("stream", value) for value in (1, "false")),
        ("stream_options", True),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a"}),
        ("echo", True),
    ],
)
def test_values_that_are_refused(name, value):
    if value == math.inf:
        with pytest.raises(RequestError, match="Infinity is no JSON number"):
            call(**{name: value})
        return
    error = refused(**{name: value})
    assert error.param == name and str(error).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"), [(name, other) for name in protocol.NEUTRAL for other in protocol.NEUTRAL[name]]
)
def test_values_that_ask_for_nothing(name, value):
    assert call(**{name: value}).unknown == ()


def test_all_problems_come_together():
    error = refused(temperature=3, n=9, tools=[1], messages=[{"role": "x"}])
    assert all(f"{name}: " in str(error) for name in ("temperature", "n", "tools", "messages[0].role"))
    assert error.param == "tools" and error.code == "unsupported_parameter"


def test_all_broken_images_come_together():
    def read(url, param):
        raise RequestError(f"{param}: broken", "invalid_image", param)

    body = {"messages": [user(text("a"), IMAGE, IMAGE)]}
    with pytest.raises(RequestError) as caught:
        read_call(body, SERVED, read)
    assert str(caught.value).count("broken") == 2 and caught.value.param == "messages[0].content[1].image_url"


def test_unknown_fields_and_models():
    assert call(banana=1, user="x", metadata={}).unknown == ("banana",)
    error = refused(model="gpt-4")
    assert error.code == "model_not_found" and "'jaxvlm'" in str(error)
    assert refused(model=7).code == "model_not_found"


def test_nested_values_are_no_trouble():
    deep = json.loads("[" * 400 + "]" * 400)
    for name in ("n", "stop", "tools", "logit_bias", "messages", "temperature", "model"):
        refused(**{name: deep})
    refused(messages=[user(deep)])


# --- replies --------------------------------------------------------------------------------------------------------


def test_log_probabilities_of_half_characters():
    """A token may be half of a character, and JSON has no infinity."""
    choice = Choice()
    tokens = (Token(b"\xc3", -math.inf, ((b"\n", -0.25),)), Token(b"\xa9", 0.0))
    for event in (Piece("é", tokens), Finished("length", 3, 1, 2)):
        choice.add(event)
    reply = Completion("m", logprobs=True).whole([choice])
    (written,) = reply["choices"]
    assert written["finish_reason"] == "length" and written["message"]["content"] == "é"
    first, second = written["logprobs"]["content"]
    assert first == {
        "token": "\ufffd",
        "logprob": -9999.0,
        "bytes": [0xC3],
        "top_logprobs": [{"token": "\n", "logprob": -0.25, "bytes": [10]}],
    }
    assert second["bytes"] == [0xA9]
    assert to_event(reply).count(b"\n") == 2  # line breaks of texts are escaped


def test_usage_counts_the_prompt_once():
    choices = [Choice("a", [], Finished("stop", 7, 0, 1)), Choice("b", [], Finished("stop", 7, 5, 2))]
    assert Completion("m", logprobs=False).whole(choices)["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
