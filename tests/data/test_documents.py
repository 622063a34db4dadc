"""Plain texts: read from files and columns, cut into passages, packed, every token supervised."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows.passages import cut
from jaxvlm.data.rows.pipeline import build_pipeline
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id, train_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout, resolve

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, 7 + 31 * n)) + ".\n" for n in range(8)]
TEXTS[3] = TEXTS[3].replace("two ", "two\n\n")
TOKENIZER = train_tokenizer(TEXTS, 400)
EOS, BOS = TOKENIZER.eos_token_id, TOKENIZER.bos_token_id


def renderer(template="document"):
    return Renderer(TOKENIZER, template, image_token_id=image_token_id(TOKENIZER))


def pipeline(source, rows=4, **data):
    c, stage = base.text_config(), base.text_stage()
    stage.data.update({"source": str(source), "template": "document", "tokens": 32} | data)
    c.model.language.vocab_size = 400
    c.stages, c.stage.only = ("only",), stage
    config = resolve(c.to_dict())
    own = config.stage["only"].data
    return build_pipeline(own, TOKENIZER, layout=media_layout(config.model, own), rows=rows, seed=0)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def rows_of(made):
    """Token ids of each segment of an epoch, BOS left out, in the order of the rows."""
    steps = -(-made.num_rows(1.0) // 4)
    batches, found = made.batches(), []
    try:
        for _ in range(steps):
            batch = next(batches)
            for row in range(4):
                for segment in range(1, int(batch.segments[row].max()) + 1):
                    here = batch.segments[row] == segment
                    found.append((batch.tokens[row][here], batch.loss_weights[row][here], batch.positions[row][here]))
    finally:
        batches.close()
    return found


def test_every_token_is_trained_on_once(corpus):
    made = pipeline(corpus)
    segments = rows_of(made)[: made.records]
    for tokens, weights, positions in segments:
        assert tokens[0] == BOS and (weights[:-1] == 1).all() and weights[-1] == 0
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    ends = sum(int(tokens[-1] == EOS) for tokens, *_ in segments)
    assert ends == len(TEXTS) < len(segments)  # an end token between documents, none within one
    words = sorted(word for text in TEXTS for word in text.split())
    told = sorted(
        word for tokens, *_ in segments for word in TOKENIZER.decode(tokens, skip_special_tokens=True).split()
    )
    assert told == words
    ledger = made.ledger(made.num_rows(1.0)).to_dict()
    assert ledger["truncated"]["total"] == ledger["rejected"]["total"] == ledger["unreached"]["total"] == 0


@given(st.text(alphabet="ab \n,é漢🙂", max_size=400), st.integers(5, 40))
def test_passages_are_the_text(text, tokens):
    own = renderer()
    spans = list(cut(text, own, tokens))
    assert "".join(text[start:end] for start, end in spans) == text and spans[0][0] == 0
    for start, end in spans:
        assert len(own.starts(text[start:end])) <= tokens - 2 or end - start == 1


def test_a_long_text_is_cut_window_by_window(monkeypatch):
    monkeypatch.setattr("jaxvlm.data.rows.passages._WINDOW", 300)
    text, own = "\n".join(TEXTS * 3), renderer()
    spans = list(cut(text, own, 32))
    assert "".join(text[start:end] for start, end in spans) == text
    assert max(len(own.starts(text[start:end])) for start, end in spans) <= 30
    starts = [text[start - 1 : start + 1] for start, _ in spans[1:]]
    assert sum(any(c.isspace() for c in place) for place in starts) > 0.9 * len(starts)


def test_text_files(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    source = load_source(str(tmp_path / "*.txt"))
    assert [source[i].turns[-1].text for i in range(len(source))] == TEXTS
    assert source[2].id == str(tmp_path / "2.txt")
    (tmp_path / "3.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RecordError, match=r"3.txt is not UTF-8 \(byte 3 is 0xe9\)"):
        load_source(str(tmp_path / "3.txt"))[0]
    with pytest.raises(UserError, match="there is no such file"):
        load_source(str(tmp_path / "none*.txt"))


def test_a_column_of_a_table(tmp_path, corpus):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS, "url": ["a"] * len(TEXTS)}), tmp_path / "a.parquet")
    source = load_source(str(tmp_path / "a.parquet"))
    assert [source[i].turns[-1].text for i in range(len(source))] == TEXTS
    assert source[0].notes == ("column url",) or 'column "url"' in source[0].notes[0]
    first = {tuple(tokens) for tokens, *_ in rows_of(pipeline(tmp_path / "a.parquet"))}
    assert first == {tuple(tokens) for tokens, *_ in rows_of(pipeline(corpus))}


def test_held_out_documents_are_held_out_whole(corpus):
    made = pipeline(corpus, heldout=0.4)
    assert 0 < made.heldout < made.records and made.heldout_questions() == []
    held = [batch for batch in made.heldout_batches(4)]
    ends = sum(int((batch.targets == EOS).sum()) for batch in held)
    assert 0 < ends < len(TEXTS)


def test_a_conversation_is_no_document_and_the_other_way_round(tmp_path, corpus):
    talk = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    with pytest.raises(UserError, match='it is a conversation, and template "document" takes texts'):
        pipeline(tmp_path / "talk.jsonl")
    with pytest.raises(UserError, match='set config.data.template = "document" to train on texts without questions'):
        pipeline(corpus, template="vicuna_v1")


def test_a_text_beside_an_image_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one two", "image": "a.png"}) + "\n")
    with pytest.raises(UserError, match='it has "image" beside its text'):
        pipeline(tmp_path / "a.jsonl")


def test_a_prompt_is_a_text_to_be_continued():
    from jaxvlm.data.records import Record, Turn

    own = renderer()
    prompt = own.render_prompt(Record("a", (Turn("user", "one two"),), (), "a"))
    whole = own.render(Record("a", (Turn("user", ""), Turn("assistant", "one two three")), (), "a"))
    assert prompt.tokens.tolist() == whole.tokens[: len(prompt.tokens)].tolist()
    assert own.stop_ids == (EOS,)
