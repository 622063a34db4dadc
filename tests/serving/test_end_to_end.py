"""The whole server with a tiny model: its answers are the engine's, and whatever is sent, nothing is left over."""

import concurrent.futures
import dataclasses
import gc
import random
import resource
from collections import Counter

import openai
import pytest

from jaxvlm.data.records import Record, Turn, spelled
from jaxvlm.inference.sampling import Sampling
from jaxvlm.serving.limits import Limits
from jaxvlm.serving.protocol import Served
from jaxvlm.serving.scheduler import Scheduler
from tests.serving import models
from tests.serving.fake import serving
from tests.serving.images import HOSTILE, data_url
from tests.serving.test_server import ask, client_of, error_of, leave, wait_until

LIMITS = Limits(slots=2, tokens=64, queue=400, steps=2, max_images=2)
MAX_BODY = 50_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = models.llava(tmp_path_factory.mktemp("llava"))
    return dataclasses.replace(made, data=dataclasses.replace(made.data, tokens=LIMITS.tokens))


@pytest.fixture(scope="module")
def server(engine):
    scheduler = Scheduler(engine, LIMITS)
    served = Served("jaxvlm", tokens=LIMITS.tokens, max_choices=scheduler.limits.slots, max_images=LIMITS.max_images)

    with serving(scheduler, served=served, max_body=MAX_BODY, max_calls=402) as made:
        yield made


def image_part(number):
    return {"type": "image_url", "image_url": {"url": data_url(models.png(number))}}


def asked(text, *images):
    return {"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}


QUESTIONS = [("what color is it?", 1), ("what color is it?", 2), ("say hello",), ("is <image> red?", 1)]


def record_of(text, *images):
    turn = Turn("user", "<image>\n" * len(images) + spelled(text))
    return Record(text, (turn,), tuple(map(models.png, images)), text)


def test_answers_are_those_of_the_engine(server, engine):
    """Greedy and sampled, streamed or not, many at once."""
    records, length = [record_of(*question) for question in QUESTIONS], 10
    want = engine.answer(records, max_new_tokens=length, batch_size=1)
    assert len(set(want)) > 2
    client = client_of(server, timeout=120)

    def answer(question, stream):
        reply = client.chat.completions.create(
            model="jaxvlm", messages=[asked(*question)], max_tokens=length, temperature=0, stream=stream
        )
        if not stream:
            return reply.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(answer, question, stream) for stream in (False, True) for question in QUESTIONS]
        found = [future.result().strip() for future in futures]
    assert found == want * 2
    sampling = Sampling(temperature=1.0, top_k=5, seed=3)
    with engine.stream(records[0], max_new_tokens=length, sampling=sampling) as pieces:
        want = "".join(pieces)
    extra = {"extra_body": {"top_k": 5}, "temperature": 1.0, "seed": 3, "max_tokens": length}
    replies = [client.chat.completions.create(model="jaxvlm", messages=[asked(*QUESTIONS[0])], **extra) for _ in "ab"]
    assert {reply.choices[0].message.content for reply in replies} == {want}


def test_what_the_model_refuses(server):
    client = client_of(server, timeout=120)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="jaxvlm", messages=[asked("red " * 200)])
    assert caught.value.code == "context_length_exceeded" and "64 tokens" in str(caught.value)
    usage = client.chat.completions.create(model="jaxvlm", messages=[asked("red", 1)], max_tokens=5000).usage
    assert usage.total_tokens <= LIMITS.tokens  # a longer answer than there is room for is cut to the room


def broken_image(number):
    names = sorted(name for name, (_, error) in HOSTILE.items() if error and name != "broken in the middle")
    content = HOSTILE[names[number % len(names)]][0]
    part = {"type": "image_url", "image_url": {"url": data_url(content)}}
    return {"role": "user", "content": [part, {"type": "text", "text": "what?"}]}


def send(server, number):
    """Sends one of many kinds of requests, two thirds of them well; returns its status, and the one that is wanted."""
    draw = random.Random(number)
    good = {"messages": [asked("red blue green"[: draw.randint(3, 14)], *range(draw.randint(0, 2)))]}
    good |= {"max_tokens": draw.randint(1, 12), "temperature": draw.choice([0, 1]), "stream": draw.random() < 0.5}
    kinds = {
        "malformed": ({"raw": b'{"messages": [' + b"[" * draw.randint(0, 5000)}, 400),
        "oversized": ({"raw": b"x" * (MAX_BODY + 1)}, 413),
        "too long": ({"body": {"messages": [asked("red " * 500)]}}, 400),
        "image": ({"body": {"messages": [broken_image(number)]} | {"stream": draw.random() < 0.5}}, 400),
        "field": ({"body": good | {"temperature": "hot"}}, 400),
        "model": ({"body": good | {"model": "other"}}, 404),
    }
    if number % 3:
        return ask(server, good)[0], 200
    if number % 4 == 0:
        leave(server, good | {"max_tokens": 40}, after=lambda connection: draw.random() < 0.5 and connection.recv(1))
        return 0, 0
    arguments, status = kinds[draw.choice(sorted(kinds))]
    reply = ask(server, **arguments)
    error_of(reply)
    return reply[0], status


def counted(server):
    text = ask(server, path="/metrics", method="GET", raw=b"")[2]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines.items()}


@pytest.mark.parametrize("total", [60, pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_nothing_is_left_over(server, total):
    """A third of the requests are malformed, too large, have broken images, or are of clients that leave."""
    before, statuses, peaks = counted(server), Counter(), []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for chunk in range(0, total, total // 2):
            for status, wanted in pool.map(lambda number: send(server, number), range(chunk, chunk + total // 2)):
                assert status == wanted
                statuses[status] += 1
            wait_until(lambda: server.open == 0 and server.scheduler.stats().slots_used == 0, 60)
            gc.collect()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    after = counted(server)
    path = 'jaxvlm_http_requests_total{path="/v1/chat/completions",status='
    found = {name: after[name] - before.get(name, 0) for name in after if name.startswith(path)}
    gone = statuses.pop(0)
    assert sum(found.values()) == total
    for status, count in statuses.items():
        # One that leaves may do so after its whole answer was sent.
        have = found[f'{path}"{status}"}}']
        assert have == count if status != 200 else count <= have <= count + gone
    assert found[f'{path}"499"}}'] + found[f'{path}"200"}}'] == statuses[200] + gone
    assert after["jaxvlm_slots_used"] == after["jaxvlm_queued"] == after["jaxvlm_compilations_total"] == 0
    assert after['jaxvlm_answers_total{reason="error"}'] == 0
    if total >= 1000:
        grown = peaks[1] - peaks[0]
        assert grown < 64 * 1024, f"{grown // 1024} MiB more after the second half of the requests than after the first"
