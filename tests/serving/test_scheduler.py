"""The scheduler: its answers are the engine's, whoever else is being served."""

import base64
import dataclasses
import io
import random
import threading

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data.records import RecordError
from jaxvlm.errors import UserError
from jaxvlm.inference.sampling import GREEDY, Sampling
from jaxvlm.inspect.token_text import Vocabulary
from jaxvlm.serving.limits import Limits
from jaxvlm.serving.requests import QueueFullError, Request, RequestError
from jaxvlm.serving.scheduler import Scheduler, StoppedError
from tests.serving import models
from tests.serving.models import LONG, TEXTS, Heard, png, record

SLOTS, STEPS, COUNT = 3, 2, 12
FEWER = 9  # the engine has as much room for its tokens, hence no other programs
NIGHTLY = [pytest.param(family, marks=pytest.mark.nightly) for family in ("qwen", "text")]
LIMITS = Limits(SLOTS, queue=40, steps=STEPS, image_cache_bytes=20_000, prefix_cache_bytes=400_000, max_images=3)


def serve(engine, limits=LIMITS):
    made = Scheduler(engine, limits)
    made.start()
    return made


@pytest.fixture(scope="module", params=["llava", *NIGHTLY])
def each(request, tmp_path_factory):
    """(family, engine, scheduler) of each family."""
    engine = getattr(models, request.param)(tmp_path_factory.mktemp(request.param))
    scheduler = serve(engine)
    yield request.param, engine, scheduler
    scheduler.close(0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return models.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def scheduler(engine):
    made = serve(engine)
    yield made
    assert is_idle(made)
    made.close(0)


def is_idle(scheduler):
    """Whether nothing is left of any request, and no program was compiled for one."""
    stats = scheduler.stats()
    caches = stats.image_cache_bytes <= 20_000 and stats.prefix_cache_bytes <= 400_000
    return not stats.slots_used and not stats.queued and not stats.compilations and caches


def ask(scheduler, asked, **options):
    """Submits a request; returns its ticket and its events."""
    heard = Heard()
    return scheduler.submit(Request(asked, **{"max_new_tokens": COUNT} | options), heard), heard


def answer(scheduler, asked, **options):
    """The text of a request that ends as it should."""
    _, heard = ask(scheduler, asked, **options)
    text, reason = heard.wait()
    assert reason in ("stop", "length"), heard.finished
    return text


def questions(family):
    """Of one to two images of different sizes, and of none; some more than once."""
    images = () if family == "text" else (png(1), png(2, 17, 40), png(3, 40, 12))
    asked = [record(text, *images[i % 4 : i % 4 + 1]) for i, text in enumerate((*TEXTS, *TEXTS[:2]))]
    asked.append(record("is it red?", *images[:2]))
    return [*asked, record("what?", *images[:1], earlier=("say hello", "hello red"))]


def test_answers_are_the_engines_whoever_else_is_served(each):
    family, engine, scheduler = each
    asked = questions(family)
    samplings = [GREEDY, Sampling(1.0, 0.9, 20, seed=5)]
    # One by one: in a batch the random numbers of a record depend on its place.
    want = {
        (which, how, count): engine.answer([one], max_new_tokens=count, batch_size=1, sampling=sampling)[0]
        for which, one in enumerate(asked)
        for how, sampling in enumerate(samplings)
        for count in (FEWER, COUNT)
    }
    assert len(set(want.values())) > len(asked)
    draw, open_requests = random.Random(7), []
    for number in range(45):
        which, how = draw.randrange(len(asked)), draw.randrange(2)
        count, top = draw.choice((FEWER, COUNT, COUNT)), draw.choice((None, None, None, 3))
        options = {"max_new_tokens": count, "sampling": samplings[how], "top_logprobs": top}
        ticket, heard = ask(scheduler, asked[which], **options)
        open_requests.append((heard, want[which, how, count]))
        if number % 6 == 5:
            if draw.random() < 0.7:
                heard.first.wait(60)
            scheduler.cancel(ticket)
            scheduler.cancel(ticket)
        if number % 4 == 0:
            open_requests[draw.randrange(len(open_requests))][0].wait()
    reasons = []
    for heard, expected in open_requests:
        text, reason = heard.wait()
        assert expected.startswith(text) if reason == "cancelled" else text == expected
        reasons.append(reason)
    assert set(reasons) <= {"length", "stop", "cancelled"} and reasons.count("length") > 30
    assert is_idle(scheduler)
    assert sum(scheduler.stats().finished.values()) == 45
    if family != "text":
        assert scheduler.stats().image_hits > 0


def test_a_beginning_is_read_once(each):
    family, engine, scheduler = each
    images = () if family == "text" else (png(11, 24, 24),)
    before = scheduler.stats()
    asked = [record(f"{LONG} {end}", *images) for end in ("red?", "hello", "green? red?")]
    asked.append(record("what?", *images, earlier=(LONG, "blue")))
    want = engine.answer(asked, max_new_tokens=FEWER, batch_size=1)
    assert [answer(scheduler, one, max_new_tokens=FEWER) for one in asked] == want
    stats = scheduler.stats()
    hits = stats.prefix_hits - before.prefix_hits
    assert hits == 3 if images else hits >= 2  # without an image, little is shared with the last
    shared = (stats.cached_tokens - before.cached_tokens) / (stats.prompt_tokens - before.prompt_tokens)
    assert 0.3 < shared < 0.75
    if images:  # the same text about another image shares nothing after its begin
        other = dataclasses.replace(asked[0], images=(png(12, 24, 24),))
        _, heard = ask(scheduler, other, max_new_tokens=FEWER)
        assert heard.wait()[0] == engine.answer([other], max_new_tokens=FEWER, batch_size=1)[0] != want[0]
        assert heard.finished.cached_tokens == 0
    assert is_idle(scheduler)


def test_features_of_an_image_are_made_once(scheduler):
    before = scheduler.stats()
    for text in TEXTS:
        answer(scheduler, record(text, png(21)), max_new_tokens=1)
    stats = scheduler.stats()
    assert (stats.image_misses - before.image_misses, stats.image_hits - before.image_hits) == (1, 4)


def test_likelihoods_are_those_of_the_model(engine, scheduler):
    asked = record("is it red?", png(1))
    logits = engine.logits(asked)[-1].astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    _, heard = ask(scheduler, asked, top_logprobs=4)
    text, _ = heard.wait()
    assert text == answer(scheduler, asked) and len(heard.tokens) == COUNT
    stream, vocabulary = engine.stream(asked, max_new_tokens=COUNT), Vocabulary(engine.tokenizer)
    assert "".join(stream) == text
    assert [token.text for token in heard.tokens] == [vocabulary[token].text or b"" for token in stream.tokens]
    first = heard.tokens[0]
    assert first.logprob == pytest.approx(logs.max(), abs=1e-4) and (first.text, first.logprob) == first.top[0]
    assert [log for _, log in first.top] == pytest.approx(np.sort(logs)[::-1][:4], abs=1e-4)
    _, heard = ask(scheduler, asked, top_logprobs=0, sampling=Sampling(1.5, seed=3))
    heard.wait()
    assert len(heard.tokens) == COUNT and not any(token.top for token in heard.tokens)
    assert len({token.logprob for token in heard.tokens}) > 3 and all(token.logprob < 0 for token in heard.tokens)


def test_an_answer_ends_before_a_stop_text(scheduler):
    asked = record("say hello")
    whole = answer(scheduler, asked)
    stop = whole[5:7]
    _, heard = ask(scheduler, asked, stop_texts=("never", stop), top_logprobs=0)
    text, reason = heard.wait()
    assert (text, reason) == (whole[: whole.index(stop)].rstrip(), "stop")
    spelled = b"".join(token.text for token in heard.tokens).decode(errors="replace").strip()
    assert spelled.startswith(text) and not spelled[len(text) + 4 :]
    with pytest.raises(UserError, match="a stop text is empty"):
        ask(scheduler, asked, stop_texts=("",))


@pytest.mark.parametrize("limit", [None, 2048])
def test_an_answer_may_take_the_room_that_is_left(scheduler, limit):
    _, heard = ask(scheduler, record("say hello"), max_new_tokens=limit)
    heard.wait()
    assert heard.finished.prompt_tokens + heard.finished.completion_tokens == models.TOKENS


def test_requests_that_can_never_be_answered(scheduler):
    before = scheduler.stats()
    cases = [
        (
            record("hello " * 80),
            {},
            "context_length_exceeded",
            r"context is 64 tokens, the prompt has 84 ",
        ),
        (record("what?", b"no image"), {}, "invalid_image", "request: "),
        (record("what?", png(1), png(1)[:20]), {}, "invalid_image", "request: "),
        (record("what?", *[png(1)] * 4), {}, "invalid_image", "4 images, a request may have at most 3"),
        (record("red", earlier=("what?",)), {}, "invalid_conversation", "request: "),
        (record("what? <image>"), {}, "invalid_conversation", "request: "),
    ]
    params = []
    for asked, options, code, message in cases:
        with pytest.raises(RequestError, match=message) as raised:
            ask(scheduler, asked, **options)
        assert raised.value.code == code, raised.value
        params.append(raised.value.param)
    assert params == ["messages", "images[0]", "images[1]", "images[3]", None, None]
    assert scheduler.stats() == before


def test_an_image_that_breaks_late_ends_its_request_alone(scheduler, monkeypatch):
    def load(self, source, origin, *, exact):
        raise RecordError(f"{origin}: image cannot be decoded", origin, "image_corrupt")

    _, other = ask(scheduler, record("say hello"))
    monkeypatch.setattr("jaxvlm.families.llava.layout.ImageSlots.load", load)
    _, heard = ask(scheduler, record("what?", png(98)))
    assert heard.wait() == ("", "error") and heard.finished.problem == "request: image cannot be decoded"
    assert other.wait() == (answer(scheduler, record("say hello")), "length")


def test_a_failure_of_one_request_is_its_own(scheduler, monkeypatch):
    def fail(image):
        raise RuntimeError("boom")

    _, other = ask(scheduler, record("say hello"))
    monkeypatch.setattr(scheduler._device, "_encode", fail)
    _, heard = ask(scheduler, record("what?", png(99)))
    assert heard.wait() == ("", "error") and heard.finished.problem == "RuntimeError: boom"
    assert other.wait()[1] == "length"


def test_an_event_that_cannot_be_delivered_cancels(scheduler):
    finished = []

    def deliver(event):
        finished.append(event)
        raise BrokenPipeError

    before = scheduler.stats().finished["cancelled"]
    scheduler.submit(Request(record("say hello"), 40), deliver)
    answer(scheduler, record("what?"), max_new_tokens=50)
    assert finished[-1].reason == "cancelled" and scheduler.stats().finished["cancelled"] == before + 1


def test_hundreds_of_requests_leave_nothing_behind(scheduler):
    before, draw, heard = scheduler.stats(), random.Random(1), []
    for number in range(300):
        while True:
            try:
                ticket, one = ask(
                    scheduler,
                    record(TEXTS[number % 5], *[png(draw.randrange(30))] * (number % 3 == 0)),
                    max_new_tokens=draw.randrange(1, 5),
                )
                break
            except QueueFullError:
                heard[-20].wait()
        heard.append(one)
        if number % 3 == 1:
            scheduler.cancel(ticket)
    reasons = [one.wait()[1] for one in heard]
    stats = scheduler.stats()
    assert is_idle(scheduler) and set(reasons) <= {"length", "stop", "cancelled"}
    assert sum((stats.finished - before.finished).values()) == 300
    assert sum(stats.time_to_first_token.counts) - sum(before.time_to_first_token.counts) >= 200
    tokens = sum(one.finished.completion_tokens for one in heard)
    assert stats.completion_tokens - before.completion_tokens == tokens


def hold(scheduler, monkeypatch):
    """Keeps a scheduler in its next step until the second event is set.

    Returns:
      an event that is set when the step begins; that second event; a list of how many answers each step has.
    """
    step, counts, begun, may_go = scheduler._device.step, [], threading.Event(), threading.Event()

    def held(answers):
        if answers:
            counts.append(len(answers))
            begun.set()
            may_go.wait(60)
        return step(answers)

    monkeypatch.setattr(scheduler._device, "step", held)
    return begun, may_go, counts


def test_all_who_wait_enter_before_the_next_step(scheduler, monkeypatch):
    begun, may_go, counts = hold(scheduler, monkeypatch)
    heard = [ask(scheduler, record("say hello"))[1]]
    assert begun.wait(60)
    heard += [ask(scheduler, record(text))[1] for text in TEXTS[:SLOTS]]
    may_go.set()
    assert [one.wait()[1] for one in heard] == ["length"] * (SLOTS + 1)
    assert counts[:2] == [1, SLOTS]


def test_a_full_queue_and_closing(engine, monkeypatch):
    small = serve(engine, dataclasses.replace(LIMITS, queue=2))
    begun, may_go, _ = hold(small, monkeypatch)
    requests = [ask(small, record("say hello"), max_new_tokens=40)]
    assert begun.wait(60)
    requests += [ask(small, record("say hello"), max_new_tokens=40) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        ask(small, record("say hello"))
    small.cancel(requests[2][0])
    may_go.set()
    assert requests[2][1].wait() == ("", "cancelled")
    small.close(120)
    assert [heard.wait()[1] for _, heard in requests] == ["length", "length", "cancelled"]
    with pytest.raises(StoppedError, match="closed"):
        ask(small, record("say hello"))
    again = serve(engine, LIMITS)
    requests = [ask(again, record("say hello"), max_new_tokens=40) for _ in range(SLOTS + 1)]
    again.close(0)
    assert requests[-1][1].wait()[1] == "cancelled"
    again.close(0)


def test_a_crash_ends_all_and_is_reported(engine, monkeypatch):
    broken = serve(engine)
    all_there = threading.Event()

    def step(answers):
        all_there.wait(60)
        return 1 / 0

    monkeypatch.setattr(broken._device, "step", step)
    requests = [ask(broken, record("say hello")) for _ in range(5)]
    all_there.set()
    for _, heard in requests:
        assert heard.wait()[1] == "error" and "ZeroDivisionError" in heard.finished.problem
    with pytest.raises(StoppedError, match="it has failed .ZeroDivisionError.*restart it"):
        ask(broken, record("say hello"))
    broken.close(1)


def test_it_must_be_started(engine):
    with pytest.raises(StoppedError, match="not started"):
        ask(Scheduler(engine, LIMITS), record("say hello"))


def test_limits_that_make_no_sense(engine, monkeypatch):
    with pytest.raises(UserError, match="slots = 0, expected 1 or more; steps = 40, expected at most 32"):
        Limits(slots=0, steps=40).checked(engine)
    assert Limits().checked(engine).tokens == models.TOKENS
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="2 processes"):
        Limits().checked(engine)


@pytest.mark.nightly
def test_eight_devices_give_the_same_answers(engine, scheduler, tmp_path):
    asked = questions("llava")[:4]
    wide = serve(models.llava(tmp_path, devices=8), dataclasses.replace(LIMITS, prefix_cache_bytes=0))
    assert wide.limits.slots == 8
    heard = [ask(wide, one)[1] for one in asked * 3]
    assert [one.wait()[0] for one in heard] == [answer(scheduler, one) for one in asked] * 3
    assert is_idle(wide)
    wide.close(0)


def test_a_prompt_to_look_at(scheduler):
    images = [models.png(1), models.png(2, 20, 30)]
    request = Request(models.record("is it red?", *images))
    found = scheduler.view(request).to_json()
    prompt = scheduler._builder.build(request)
    shown = [token["id"] for token in found["tokens"] if "id" in token]
    assert shown == prompt.piece.tokens[prompt.piece.image_index < 0].tolist()
    assert [token["picture"] for token in found["tokens"] if "picture" in token] == [0, 1]
    counts = [token["count"] for token in found["tokens"] if "picture" in token]
    assert counts == [pixels["features"] for pixels in found["pixels"]] == list(prompt.counts)
    assert found["length"] == len(prompt.piece.tokens) == len(shown) + sum(counts)
    assert "red" in "".join(token.get("text", "") for token in found["tokens"])
    for pixels, image in zip(found["pixels"], images, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(pixels["url"].partition(",")[2])))
        assert shown.size == (pixels["width"], pixels["height"])
        given = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), float).mean()
        assert abs(np.asarray(shown, float).mean() - given) < 30  # padding is grey, like the mean of noise


def test_a_prompt_without_images_or_with_a_broken_one(scheduler):
    found = scheduler.view(Request(models.record("say hello"))).to_json()
    assert found["pixels"] == [] and all("id" in token for token in found["tokens"])
    broken = models.png(1)[:-40]
    with pytest.raises(RequestError):
        scheduler.view(Request(models.record("is it red?", broken)))
