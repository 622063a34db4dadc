"""Tokens of a prompt as text."""

from jaxvlm.inspect.token_text import Vocabulary, text_tokens


class _Bytes:
    """A byte-level vocabulary of three tokens."""

    added_tokens_decoder = {}

    class backend_tokenizer:  # noqa: N801
        decoder = "ByteLevel()"

    @staticmethod
    def convert_ids_to_tokens(id):
        return ["a", "\u00c3", "\u00a9"][id] if id < 3 else None


def test_a_character_of_two_tokens():
    found = text_tokens([0, 1, 2, 7], Vocabulary(_Bytes))
    assert [token["text"] for token in found] == ["a", "\u27e8C3\u27e9", "\u27e8A9\u27e9\u00e9", ""]
    assert [token["control"] for token in found] == [False, False, False, True]
