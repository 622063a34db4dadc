"""Tokenizers of SentencePiece models against SentencePiece itself, with models trained here."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from jaxvlm.config import TokenizerConfig
from jaxvlm.data.text import sentencepiece_tokenizer
from jaxvlm.data.text.tokenizer import load_tokenizer
from jaxvlm.errors import UserError
from tests.data.conftest import WORDS

KINDS = {
    # As Llama 2's and Vicuna's.
    "llama": {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "nmt_nfkc": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
}
SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SETTINGS |= {"add_bos_token": True}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """A folder that has only a tokenizer.model, as many published ones do."""
    folder = tmp_path_factory.mktemp(request.param)
    chance = random.Random(0)
    lines = [" " * chance.choice((0, 0, 4, 8)) + " ".join(chance.choices(WORDS, k=9)) + "." for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=350,
        byte_fallback=True,
        hard_vocab_limit=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **KINDS[request.param],
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return folder


def texts():
    yield from ("", " ", "a", "  a", "red circle", "a\t\tb", "x\n\n  y", "é 漢字 🙂", sentencepiece_tokenizer.PROBE)
    yield from (" " * count + "the red\n" + " " * count + "dots" for count in range(1, 20))


def test_ids_are_those_of_sentencepiece(folder, tmp_path):
    original = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(TokenizerConfig(str(folder), 0))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(TokenizerConfig(str(tmp_path), 0))
    for text in texts():
        expected = original.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected, text
        assert again(text, add_special_tokens=False).input_ids == expected, text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (original.bos_id(), original.eos_id())
    assert tokenizer("red").input_ids[0] == original.bos_id()


def test_a_tokenizer_that_splits_otherwise_is_refused(folder, monkeypatch):
    right = sentencepiece_tokenizer.sentencepiece_backend

    def wrong(pieces):
        made = right(pieces)
        made.normalizer = None
        return made

    monkeypatch.setattr(sentencepiece_tokenizer, "sentencepiece_backend", wrong)
    with pytest.raises(UserError, match="otherwise than SentencePiece does"):
        load_tokenizer(TokenizerConfig(str(folder), 0))


def test_a_model_that_is_cut_off(folder, tmp_path):
    whole = (folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(TokenizerConfig(str(tmp_path), 0))


def test_the_tokenizer_of_a_gguf_file_needs_no_torch(tmp_path):
    """transformers reads such a file only with torch, which the extra does not install."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 5)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    for add, token in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_unk_token_id, 0)):
        add(token)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from jaxvlm.data.text.gguf_tokenizer import gguf_tokenizer\n"
        f"tokenizer = gguf_tokenizer({str(tmp_path / 'a.gguf')!r})\n"
        "print(*tokenizer.convert_ids_to_tokens(tokenizer('ab a').input_ids))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.stdout.split() == ["<s>", "▁ab", "▁", "a"], done.stderr
