"""Chat templates as published: what one drops, changes or never ends is refused or named, not trained on in silence."""

import dataclasses

import numpy as np
import pytest

from jaxvlm.data.records import IMAGE, RecordError
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.errors import UserError
from tests.data.test_conversation import CHAT, CHATML, own_template, read, record, supervised_runs

# As the templates of LLaVA's and Qwen's processors: a string as content writes nothing.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def renderer_of(template, *, special=(), **arguments):
    tokenizer = own_template(template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer, Renderer(
        tokenizer, "tokenizer", image_token_id=tokenizer.convert_tokens_to_ids(IMAGE), **arguments
    )


def text_of(tokenizer, sample):
    return tokenizer.decode(sample.tokens)


@pytest.mark.parametrize("system", [None, "Be."])
def test_a_template_that_takes_parts_gets_parts(system):
    tokenizer, renderer = renderer_of(PARTS, system=system)
    rec = record("<image>\nWhat?", "A cat.", "Be?", "A 5")
    sample = renderer.render(rec)
    parts = [
        [{"type": "image"}, {"type": "text", "text": "What?"}],
        *([{"type": "text", "text": text}] for text in ("A cat.", "Be?", "A 5")),
    ]
    messages = [{"role": turn.role, "content": content} for turn, content in zip(rec.turns, parts, strict=True)]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    # A template of parts is a processor's, which lets the tokenizer add its special tokens.
    assert sample.tokens.tolist() == tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids
    assert int(sample.is_image.sum()) == 1
    assert [tokenizer.decode(run) for run in supervised_runs(sample)] == ["A cat.<|im_end|>", "A 5<|im_end|>"]


def test_a_template_without_a_system_message_is_refused_before_it_drops_one():
    with pytest.raises(UserError, match="does not write the system message") as caught:
        renderer_of(NO_SYSTEM, system="Be.")
    assert "config.data.system" in str(caught.value)
    _, renderer = renderer_of(NO_SYSTEM)
    renderer.render(record("What?", "A cat."))
    with pytest.raises(RecordError, match="system"):
        renderer.render(record("What?", "A cat.", system="Be."))


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_template_that_drops_a_role(role):
    dropping = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] != '" + role + "' %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match=f"does not write messages of the {role}"):
        renderer_of(dropping)


def test_a_template_that_ends_the_text_after_the_last_message_is_refused():
    """As Phi-3.5's: what it writes for one round is no beginning of what it writes for two."""
    ending = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    with pytest.raises(UserError, match="changes the text before itself"):
        renderer_of(ending)


def test_a_template_that_teaches_no_end_is_named():
    endless = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    _, renderer = renderer_of(endless)
    assert "does not learn to stop" in " ".join(renderer.warnings)
    _, renderer = renderer_of(PARTS)
    assert renderer.warnings == ()


def test_control_tokens_of_the_text_are_plain_and_counted_unless_allowed():
    rec = record("What <|ask|>?", "A <|ask|> cat.")
    for allowed in ((), ("<|ask|>",)):
        tokenizer, renderer = renderer_of(CHATML, special=("<|ask|>",), control_tokens=allowed)
        sample, ask = renderer.render(rec), tokenizer.convert_tokens_to_ids("<|ask|>")
        assert int((sample.tokens == ask).sum()) == (2 if allowed else 0)
        # Supervised in the answer, not in the question.
        assert int((sample.loss_weights[sample.tokens == ask] > 0).sum()) == (1 if allowed else 0)
        assert ["<|ask|>" in note for note in renderer.notes(rec)] == ([] if allowed else [True])
    if allowed:
        messages = [{"role": turn.role, "content": turn.text} for turn in rec.turns]
        assert sample.tokens.tolist() == list(tokenizer.apply_chat_template(messages)["input_ids"])


def test_a_control_token_that_the_tokenizer_lacks():
    with pytest.raises(UserError, match="<nope>"):
        renderer_of(CHATML, control_tokens=("<nope>",))


def test_a_template_that_reads_the_clock_writes_the_given_date():
    dated = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
    tokenizer, renderer = renderer_of(dated, date="2001-02-03")
    assert "03 Feb 2001" in text_of(tokenizer, renderer.render(record("What?", "A cat.")))
    other = renderer_of(dated, date="2001-02-04")[1]
    assert other.fingerprint() != renderer.fingerprint()  # so that no index of another day is taken
    days = ("2001-02-03", "2001-02-04")
    assert len({renderer_of(CHATML, date=day)[1].fingerprint() for day in days}) == 1
    assert renderer.warnings == ()
    _, renderer = renderer_of(dated.replace("'%d %b %Y'", "'%d' + ' %b'"), date="2001-02-03")
    assert "from day to day" in renderer.warnings[0]


@pytest.mark.parametrize("answer", ["  A cat.", "A cat.\n", "\n A cat. \n\n"])
def test_white_space_of_an_answer_gives_the_ids_of_transformers(answer):
    tokenizer, renderer = renderer_of(CHATML)
    rec = record("What?", answer)
    messages = [{"role": turn.role, "content": turn.text} for turn in rec.turns]
    sample = renderer.render(rec)
    assert sample.tokens.tolist() == list(tokenizer.apply_chat_template(messages)["input_ids"])
    (run,) = supervised_runs(sample)
    assert tokenizer.decode(run).lstrip(" ") == f"{answer}<|im_end|>".lstrip(" ")  # decoding drops one in front


@pytest.mark.parametrize("template", ["tokenizer", "chatml"])
def test_an_answer_of_weight_zero_is_seen_and_not_supervised(template):
    tokenizer = own_template(CHATML)
    renderer = Renderer(tokenizer, template, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))
    rec = record("What?", "A cat.", "Be?", "A 5")
    weighted = tuple(
        dataclasses.replace(turn, weight=weight) for turn, weight in zip(rec.turns, (1.0, 0.0, 1.0, 0.5), strict=True)
    )
    plain, switched = renderer.render(rec), renderer.render(dataclasses.replace(rec, turns=weighted))
    assert switched.tokens.tolist() == plain.tokens.tolist()
    first = int(np.flatnonzero(np.diff(np.pad(plain.loss_weights, 1)))[1])  # the end of the first answer
    assert not switched.loss_weights[:first].any()
    assert (switched.loss_weights[first:] == plain.loss_weights[first:] / 2).all()
    assert CHAT[1] in read(tokenizer, plain)
