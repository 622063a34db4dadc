"""Text that spells a placeholder and was marked with `spelled` stays text, and shifts no image."""

import pytest

from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError, Turn, spelled, unspelled
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.media import Video
from tests.data.test_conversation import CHAT, llama_tokenizer
from tests.data.test_media_templates import SORTED, qwen_tokenizer

TEXT = "Is <image> a tag, as <video> is? <<image>image>"
OWN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def asked(text, *media, before=()):
    return Record("a", (*before, Turn("user", text)), media, "a")


@pytest.mark.parametrize("special", [(), (IMAGE,), (IMAGE, VIDEO)])
@pytest.mark.parametrize("template", ["vicuna_v1", "llama2", "chatml", "tokenizer"])
def test_it_has_the_ids_of_other_text(template, special):
    """The ids are those of the same text with another letter in each spelling, at which only that letter differs."""
    tokenizer = llama_tokenizer(special=(*CHAT, *special))
    tokenizer.chat_template = OWN
    renderer = Renderer(tokenizer, template, image_token_id=image_token_id(tokenizer), system="Be kind.")
    before = (Turn("user", f"{IMAGE}\n{spelled(TEXT)}"), Turn("assistant", f"I see {IMAGE}."))
    other = (Turn("user", f"{IMAGE}\n{TEXT.replace('age>', 'agq>').replace('eo>', 'eq>')}"), before[1])
    have = renderer.render_prompt(asked(f"{IMAGE}\nAnd {spelled('<image>')}?", "1.png", "2.png", before=before))
    want = renderer.render_prompt(asked(f"{IMAGE}\nAnd <imagq>?", "1.png", "2.png", before=other))
    q, e, o = tokenizer.convert_tokens_to_ids(["q", "e", "o"])
    assert have.is_image.sum() == 2 and have.is_image.tolist() == want.is_image.tolist()
    differing = [(a, b) for a, b in zip(have.tokens.tolist(), want.tokens.tolist(), strict=True) if a != b]
    assert differing == [(e, q), (o, q), (e, q), (e, q), (e, q)]
    assert have.loss_weights.tolist() == want.loss_weights.tolist()


@pytest.mark.parametrize("template", [None, SORTED])
def test_templates_that_write_images_themselves(template):
    tokenizer = qwen_tokenizer(**({} if template is None else {"pads": [IMAGE, VIDEO], "template": template}))
    renderer = Renderer(tokenizer, "tokenizer", image_token_id=image_token_id(tokenizer))
    text = f"{TEXT} <|image_pad|>"
    for media in (("1.png",), ("1.png", Video("a.mp4"))):
        places = "".join(IMAGE if isinstance(medium, str) else VIDEO for medium in media)
        sample = renderer.render_prompt(asked(f"{places}{spelled(text)}", *media))
        assert sample.is_image.sum() == len(media)
        assert text in tokenizer.decode(sample.tokens[~sample.is_image])


def test_only_what_spells_a_placeholder_is_marked():
    assert spelled("a < b <img> image>") == "a < b <img> image>"
    assert unspelled(spelled(TEXT)) == TEXT and IMAGE not in spelled(TEXT) and VIDEO not in spelled(TEXT)


@pytest.mark.parametrize("text", ["\ufdd4", "<\ufdd4", "<\ufdd4img>", "<\ufdd4\ufdd4image>", "a\ufdd0"])
def test_no_other_text_has_the_mark(text):
    renderer = Renderer(llama_tokenizer(), "vicuna_v1", image_token_id=0)
    with pytest.raises(RecordError, match="not valid in text"):
        renderer.render_prompt(asked(text))
    with pytest.raises(RecordError, match="not valid in text"):  # only user turns have placeholders
        renderer.render_prompt(asked("b", before=(Turn("user", "a"), Turn("assistant", spelled(IMAGE)))))
