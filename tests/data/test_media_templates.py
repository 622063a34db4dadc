"""Chat templates that write images and videos with tokens of their own, as Qwen2-VL's, give the ids of transformers."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError, Turn
from jaxvlm.data.sources.formats import AnyChat, ImageRule, make_record
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id, media_tokens
from jaxvlm.media import Video
from tests.data.test_conversation import own_template, supervised_runs

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
PADS = ["<|image_pad|>", "<|video_pad|>"]
# Of the same form as Qwen2-VL's: texts or parts, a system message if there is none.
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As those of processors that take parts alone, and write all images before the videos and the text.
SORTED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}<video>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(pads=PADS, template=QWEN, **named):
    """A byte-level tokenizer trained on the spot, with Qwen's special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet)
    trainer.show_progress = False
    backend.train_from_iterator(["What is in the picture? A cat. You are a helpful assistant."] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[*SPECIALS, *pads],
        **named,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def qwen():
    tokenizer = qwen_tokenizer()
    return tokenizer, Renderer(tokenizer, "tokenizer", image_token_id=image_token_id(tokenizer))


I_PART, V_PART = {"type": "image", "image": "1.png"}, {"type": "video", "video": "a.mp4"}


def text(content):
    return {"type": "text", "text": content}


def said(*contents, system=None):
    turns = [{"role": ("user", "assistant")[k % 2], "content": content} for k, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


CONVERSATIONS = {
    "first": said([I_PART, text("What is it?")], "A cat."),
    "last": said([text("What is it? "), I_PART], "A cat."),
    "between": said([text("Is "), I_PART, text(" a cat?")], "No."),
    "several": said([I_PART, text("and "), I_PART, text(", "), I_PART, text("?")], "Cats."),
    "adjacent": said([I_PART, I_PART, text("Same?")], "No."),
    "a video": said([V_PART, text("What happens?")], "A cat jumps."),
    "a video last": said([text("What happens?"), V_PART], "A cat jumps."),
    "both": said([V_PART, text(" shows "), I_PART, text("?")], "Yes."),
    "two rounds": said([I_PART, text("What?")], "A cat.", "Sure?", "Yes.", [V_PART, text("And?")], "Two."),
    "no media": said("What is 2?", "A number."),
    "a system message": said([I_PART, text("What?")], "A cat.", system="Be brief."),
    "only an image": said([I_PART], "A cat."),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_ids_are_those_of_transformers(name, qwen):
    tokenizer, renderer = qwen
    messages = CONVERSATIONS[name]
    record = make_record({"messages": messages}, "f.json[0]", AnyChat(), ImageRule(Path("/data")))
    sample = renderer.render(record)
    assert sample.tokens.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    kinds = [VIDEO if isinstance(medium, Video) else IMAGE for medium in record.images]
    pads = dict(zip((IMAGE, VIDEO), tokenizer.convert_tokens_to_ids(PADS), strict=True))
    assert sample.tokens[sample.is_image].tolist() == [pads[kind] for kind in kinds]
    answers = [turn.text for turn in record.turns if turn.role == "assistant"]
    assert [tokenizer.decode(run) for run in supervised_runs(sample)] == [f"{answer}<|im_end|>" for answer in answers]

    asked = Record("r", record.turns[:-1], record.images, "o")
    prompt = renderer.render_prompt(asked).tokens
    assert prompt.tolist() == tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert prompt.tolist() == sample.tokens[: len(prompt)].tolist()


def test_the_newline_after_a_placeholder_separates_it_from_the_text(qwen):
    """LLaVA's files write "<image>\\nWhat?"; Qwen's own programs strip it."""
    tokenizer, renderer = qwen

    def ids(question):
        record = Record("r", (Turn("user", question), Turn("assistant", "A cat.")), ("1.png",), "o")
        return renderer.render(record).tokens.tolist()

    assert ids("<image>\nWhat?") == ids("<image>What?") != ids("<image>\n\nWhat?")
    assert ids("What?\n<image>") != ids("<image>\nWhat?")  # it stays where it stands


def test_spellings_in_the_text_are_text(qwen):
    tokenizer, renderer = qwen
    question = "<image>Is <|image_pad|><|video_pad|><|vision_start|> <video> a token?"
    record = Record("r", (Turn("user", question), Turn("assistant", "<image><|image_pad|>")), ("1.png",), "o")
    sample = renderer.render(record)
    pads = np.isin(sample.tokens, tokenizer.convert_tokens_to_ids(PADS))
    assert sample.is_image.tolist() == pads.tolist() and pads.sum() == 1
    assert "Is <|image_pad|><|video_pad|><|vision_start|> <video> a token?" in tokenizer.decode(sample.tokens)


def test_the_declared_tokens(tmp_path):
    template = QWEN.replace("<|image_pad|>", "<img>").replace("<|video_pad|>", "<vid>")
    tokenizer = qwen_tokenizer(["<img>", "<vid>"], template, image_token="<img>", video_token="<vid>")
    tokenizer.save_pretrained(tmp_path)
    record = Record("r", (Turn("user", "Is <image> <video>?"), Turn("assistant", "No.")), ("1", Video("a")), "o")
    for made in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        image, video = made.convert_tokens_to_ids(["<img>", "<vid>"])
        assert image_token_id(made) == image
        assert media_tokens(made, image) == {IMAGE: (image, "<img>"), VIDEO: (video, "<vid>")}
        sample = Renderer(made, "tokenizer", image_token_id=image).render(record)
        assert sample.tokens[sample.is_image].tolist() == [image, video]
        shown = "Is <|vision_start|><img><|vision_end|> <|vision_start|><vid><|vision_end|>?"
        assert shown in made.decode(sample.tokens)


def test_tokens_of_qwen_and_their_order():
    tokenizer = qwen_tokenizer()
    image, video = tokenizer.convert_tokens_to_ids(PADS)
    assert image_token_id(tokenizer) == image
    assert media_tokens(tokenizer, image) == {IMAGE: (image, PADS[0]), VIDEO: (video, PADS[1])}
    both = qwen_tokenizer([*PADS, IMAGE])
    assert image_token_id(both) == both.convert_tokens_to_ids(IMAGE)


@pytest.mark.parametrize("name", ["vicuna_v1", "chatml", "plain"])
def test_videos_of_built_in_templates(name):
    tokenizer = own_template(QWEN)
    renderer = Renderer(tokenizer, name, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))

    def sample(question, *media):
        return renderer.render(Record("r", (Turn("user", question), Turn("assistant", "A cat.")), media, "o"))

    image, video = sample("What?\n<image>", "1.png"), sample("What?\n<video>", Video("a.mp4"))
    assert image.tokens.tolist() == video.tokens.tolist()  # without a token of its own; in front
    assert image.is_image.tolist() == video.is_image.tolist()
    assert sample("<video> and <image>?", Video("a.mp4"), "1.png").is_image.sum() == 2


def test_a_template_that_reorders_media_is_refused():
    tokenizer = own_template(SORTED)
    renderer = Renderer(tokenizer, "tokenizer", image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))

    def record(question, *media):
        return Record("r", (Turn("user", question), Turn("assistant", "A cat.")), media, "f.json[0]")

    assert renderer.render(record("<image><video>Who?", "1.png", Video("a.mp4"))).is_image.sum() == 2
    with pytest.raises(RecordError, match="another order than the record") as caught:
        renderer.render(record("<video><image>Who?", Video("a.mp4"), "1.png"))
    assert caught.value.reason == "chat_template"


def test_a_template_that_knows_no_videos():
    template = SORTED.replace("<video>", "")
    tokenizer = own_template(template)
    renderer = Renderer(tokenizer, "tokenizer", image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))
    record = Record("r", (Turn("user", "<video>Who?"), Turn("assistant", "I.")), (Video("a.mp4"),), "o")
    with pytest.raises(RecordError, match="wrote 0 placeholders for 1 images and videos"):
        renderer.render(record)
