"""Tokenizers trained on the text of a recipe, and tokenizers loaded from folders."""

import pytest

from jaxvlm.config import TokenizerConfig
from jaxvlm.data.records import Record, Turn
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.text.tokenizer import image_token_id, load_tokenizer, train_tokenizer, training_texts
from jaxvlm.errors import UserError

RECORD = Record(
    "a",
    (Turn("user", "What?\n<image>"), Turn("assistant", "cat"), Turn("user", "how many?"), Turn("assistant", "two")),
    ("a.png",),
    "a",
)


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_training_texts():
    (text,) = training_texts([RECORD], "vicuna_v1", "Be kind.")
    assert text == "Be kind. USER: <image>\nWhat? ASSISTANT: cat</s>USER: how many? ASSISTANT: two</s>"
    (text,) = training_texts([RECORD], "plain")
    assert text.startswith("<image>cat\n")
    with pytest.raises(UserError, match="vicuna_v1"):
        list(training_texts([RECORD], "tokenizer"))


@pytest.fixture(scope="module")
def quickstart():
    source = load_source("easy_vqa:train")
    records = [source[i] for i in range(400)]
    return train_tokenizer(training_texts(records, "vicuna_v1", ""), 1024)


def test_words_of_the_template_and_answers_are_single_tokens(quickstart):
    text = (
        "USER: <image>\nwhat is the blue shape? ASSISTANT: rectangle</s>USER: is no circle present? ASSISTANT: no</s>"
    )
    first = ["▁USER:", "▁", "<image>", "\n", "what", "▁is", "▁the", "▁blue", "▁shape?", "▁ASSISTANT:", "▁rectangle"]
    second = ["USER:", "▁is", "▁no", "▁circle", "▁present?", "▁ASSISTANT:", "▁no"]
    assert pieces(quickstart, text) == ["<s>", *first, "</s>", *second, "</s>"]
    import easy_vqa

    for answer in easy_vqa.get_answers():
        assert len(quickstart(f" {answer}").input_ids) == 2, answer  # <s> and itself


def test_special_ids_are_those_of_llama(quickstart):
    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<0x00>"]
    assert quickstart.convert_tokens_to_ids(names) == list(range(6))
    assert (quickstart.bos_token_id, quickstart.eos_token_id, quickstart.pad_token_id) == (1, 2, 3)
    assert image_token_id(quickstart) == 4


def test_unseen_text_comes_back(quickstart):
    text = "héllo wörld 漢字 🙂\nwhat, X?"
    ids = quickstart(text, add_special_tokens=False).input_ids
    assert quickstart.unk_token_id not in ids
    assert quickstart.decode(ids) == text


def test_same_texts_same_tokenizer(quickstart):
    source = load_source("easy_vqa:train")
    again = train_tokenizer(training_texts([source[i] for i in range(400)], "vicuna_v1", ""), 1024)
    assert again.backend_tokenizer.to_str() == quickstart.backend_tokenizer.to_str()


def test_saved_and_loaded(quickstart, tmp_path):
    quickstart.save_pretrained(tmp_path)
    loaded = load_tokenizer(TokenizerConfig(str(tmp_path), 0))
    text = "USER: <image>\nwhat is this? ASSISTANT: ünseen</s>"
    assert loaded(text).input_ids == quickstart(text).input_ids
    assert loaded.special_tokens_map == quickstart.special_tokens_map
    assert loaded.decode([1, 4, 2], skip_special_tokens=True) == ""


def test_vocab_size_is_a_limit():
    texts = list(training_texts([RECORD] * 5, "vicuna_v1", ""))
    assert len(train_tokenizer(texts, 300)) == 300
    with pytest.raises(UserError, match="set it to at least 28[0-9]$") as caught:
        train_tokenizer(texts, 262)
    least = int(str(caught.value).split("set it to at least ")[1].split()[0])
    assert len(train_tokenizer(texts, least)) == least


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"contains none of tokenizer.json"):
        load_tokenizer(TokenizerConfig(str(tmp_path), 0))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_tokenizer(TokenizerConfig(str(tmp_path), 0))


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="point tokenizer.source at a folder"):
        load_tokenizer(TokenizerConfig("nobody/no-such-tokenizer", 0))


def test_image_token_id_falls_back(quickstart):
    class Bare:
        name_or_path = "bare"
        unk_token_id = pad_token_id = None
        eos_token_id = 9

        def get_vocab(self):
            return {"a": 0}

    assert image_token_id(Bare()) == 9
    Bare.unk_token_id = 0
    assert image_token_id(Bare()) == 0
    Bare.unk_token_id = Bare.eos_token_id = None
    with pytest.raises(UserError, match="add <image>"):
        image_token_id(Bare())
