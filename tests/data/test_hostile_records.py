"""Hostile records, through the whole pipeline from a file to batches, and through `inspect_data check`.

Whatever a file contains, each of its records is counted once, no exceptions except `RecordError` and `UserError` are
raised, and valid records are trained on. The expected fate of a record is known when it is made (`KINDS`).
"""

import collections
import contextlib
import functools
import io
import itertools
import json
import os
import random
import re
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvlm import inspect_data
from jaxvlm.command import run
from jaxvlm.data import cache
from jaxvlm.data.rows.ledger import FATES
from jaxvlm.data.text import turns
from jaxvlm.errors import UserError
from tests.data.conftest import WORDS, data_config
from tests.data.test_formats import ITEMS
from tests.data.test_pipeline import VISION
from tests.layouts import make_pipeline

RECIPE = "tests/e2e/small.py"
PLACES = ["llava.jsonl", "llava.json", "sharegpt", "openai", "alpaca"]
RECORDS, EXAMPLES = 420, 5  # for each place; 10,500 in total
TOKENS, IMAGES = 64, 2

# Expected fates of a record; every other string is the reason for which it is rejected.
WHOLE, CUT, LATE, ANY = "whole", "cut", "late", "any"  # LATE: its image is corrupt between header and end


# --- images -----------------------------------------------------------------------------------------------------------


def encoded(kind, size=(23, 17)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def png(width, height, *chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


@functools.cache
def zip_of_death():
    """A zip file of 130 KB that unpacks to 128 MiB."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("0", "w", force_zip64=True) as file,
    ):
        for _ in range(128):
            file.write(bytes(2**20))
    return out.getvalue()


# Name of an image -> the expected fate of a record that names it.
PICTURES = {
    "good.png": WHOLE,
    "good.jpg": WHOLE,
    "sub/../good.png": WHOLE,
    "more than its header says.png": WHOLE,
    "damaged.png": LATE,
    "cut.png": "image_broken",
    "cut.jpg": "image_broken",
    "empty.png": "image_broken",
    "text.png": "image_broken",
    "header.png": "image_broken",
    "header.jpg": "image_broken",
    "text bomb.png": "image_broken",
    "zip.png": "image_broken",
    "folder.png": "image_broken",
    "pipe.png": "image_broken",
    "n" * 300: "image_broken",
    "strip.png": "image_too_large",
    "bomb.png": "image_too_large",
    "none.png": "image_missing",
    "no\nfolder\x1b[31m/\u202e.png": "image_missing",
    "good.png/a.png": "image_missing",
    "http://localhost/a.png": "image_url",
    "data:image/png;base64,AAAA": "image_base64",
    "../good.png": "image_outside",
    "/etc/passwd": "image_outside",
    "a\0.png": "image_path",
    "\ud800.png": "invalid_unicode",
    "": "image_count",
}


def write_pictures(folder):
    files = {
        "good.png": encoded("PNG"),
        "good.jpg": encoded("JPEG"),
        "damaged.png": encoded("PNG")[:400] + encoded("PNG")[410:],
        "cut.png": encoded("PNG")[:400],
        "cut.jpg": encoded("JPEG")[:700],
        "more than its header says.png": png(9, 9, (b"IDAT", zlib.compress(bytes(10**8)))),
        "empty.png": b"",
        "text.png": b"no image",
        "header.png": encoded("PNG")[:20],
        "header.jpg": encoded("JPEG")[:30],
        "text bomb.png": png(9, 9, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        "zip.png": zip_of_death(),
        "strip.png": encoded("PNG", (60_000, 1)),
        "bomb.png": png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(10**7)))),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")


# --- records ----------------------------------------------------------------------------------------------------------


class Writer:
    """Makes random items for one place."""

    def __init__(self, place, chance, pool, pictures):
        self.place, self.chance, self.pool, self.pictures = place, chance, pool, pictures
        self.lines = place.endswith(".jsonl")
        self.chat = place != "alpaca"
        openai = place == "openai"
        self.messages = {"alpaca": "output", "openai": "messages"}.get(place, "conversations")
        self.role, self.content = ("role", "content") if openai else ("from", "value")
        self.names = ("user", "assistant") if openai else ("human", "gpt")
        self.images = "image" if place.startswith("llava") else "images"

    def log(self):
        more = self.chance.choices([*WORDS, "é", "\u2028", "🙂", "\\", '"'], k=self.chance.randrange(4))
        return " ".join([self.chance.choice(WORDS), *more])

    def texts(self):
        return [self.log() for _ in range(2 * self.chance.randint(1, 2))]

    def item(self, *texts, images=()):
        """An item with `texts` as alternating turns of a user and an assistant."""
        item = {"id": f"r{self.chance.randrange(10**9)}"}
        if images:
            item[self.images] = list(images)
        if not self.chat:
            *history, question, answer = texts
            rounds = list(map(list, zip(history[::2], history[1::2], strict=True)))
            return item | {"instruction": question, "output": answer} | ({"history": rounds} if rounds else {})
        turns = [{self.role: self.names[i % 2], self.content: text} for i, text in enumerate(texts)]
        return item | {self.messages: turns}

    def good(self):
        return self.item(*self.texts())

    def anything(self):
        return self.chance.choice(self.pool)

    def no_string(self):
        return self.chance.choice([None, True, 7, -1.5, {"a": 1}, float("nan"), 10**400])


def picture(w, name=None):
    name = name or next(w.pictures)
    images = [name] * w.chance.randint(1, IMAGES)
    first, *rest = w.texts()
    if not w.chat:  # alpaca counts placeholders of earlier rounds first, so any turn can have them
        return w.item(f"{'<image>' * len(images)}{first}", *rest, images=images), PICTURES[name]
    return w.item(f"{'<image>' * len(images)}{first}", *rest, images=images), PICTURES[name]


def sound(w):
    return w.good(), WHOLE


def sound_with_extras(w):
    """Fields that nothing reads may have any value."""
    return w.good() | {"extra": w.anything(), "": None, "\ud800": float("inf")}, WHOLE


def answer_first(w):
    if not w.place.startswith("llava"):
        return sound(w)
    item = w.good()
    item[w.messages].insert(0, {"from": "gpt", "value": "Hello."})
    return item, WHOLE


def no_object(w):
    value = w.anything()
    return (value, ANY) if isinstance(value, dict) else (value, "wrong_type")


def noise(w):
    item = w.good() | {w.chance.choice(["id", w.messages, w.images, "instruction", "system"]): w.anything()}
    return item, ANY


def noise_in_a_turn(w):
    item = w.good()
    if w.chat:
        w.chance.choice(item[w.messages])[w.chance.choice([w.role, w.content])] = w.anything()
    else:
        item["history"] = [["q", w.anything()]]
    return item, ANY


def missing_key(w):
    item = {"a\n\x1b[31m\u202e": 1} | w.good()  # the message lists the keys of the item
    del item[w.messages]
    return item, "missing_key"


def wrong_type(w):
    return w.good() | {w.messages: w.no_string()}, "wrong_type"


def wrong_id(w):
    return w.good() | {"id": w.chance.choice([True, 1.5, [], {}, float("nan")])}, "wrong_type"


def number_for_text(w):
    item = w.good()
    if w.chat:
        item[w.messages][0][w.content] = w.no_string()
    else:
        item["instruction"] = w.chance.choice([7, True, [], {}])
    return item, "wrong_type"


def broken_turn(w):
    item = w.good()
    if not w.chat:
        return item | {"history": w.chance.choice([7, "x", [7], [["q"]], [["q", 7]], [[]], {"q": "a"}])}, "wrong_type"
    at = w.chance.randrange(len(item[w.messages]))
    if w.chance.random() < 0.5:
        item[w.messages][at] = w.chance.choice([None, 7, "x", [], [[]]])
        return item, "wrong_type"
    del item[w.messages][at][w.chance.choice([w.role, w.content])]
    return item, "missing_key"


def wrong_roles(w):
    if not w.chat:
        return missing_key(w)
    item = w.good()
    turns = item[w.messages]
    match w.chance.randrange(4):
        case 0:
            turns[-1][w.role] = w.chance.choice(["bot", "", "\ud800", None, 7, ["gpt"], {}])
            return item, "unknown_role"
        case 1:
            turns.append(turns[-1])
            return item, "roles"
        case 2:
            turns.pop()
            left = w.place.startswith("llava") and any(turn[w.role] == "gpt" for turn in turns)
            return item, WHOLE if left else "last_turn"  # the question without an answer is left out
    turns.clear()
    return item, "no_turns"


def empty_text(w):
    texts = w.texts()
    texts[w.chance.randrange(len(texts))] = w.chance.choice(["", " ", "\n\t", "\u3000"])
    return w.item(*texts), "empty_turn"


def placeholders(w):
    first, *rest = w.texts()
    return w.item(f"<image>{first}<image>", *rest, images=["good.png"] * w.chance.choice([0, 1, 3])), "image_count"


def many_images(w):
    count = w.chance.choice([IMAGES + 1, 40])
    return w.item("<image>" * count + "x", "y", images=["good.png"] * count), "too_many_images"


def long_question(w):
    return w.item(w.chance.choice(["x", "q ", "é", "🙂"]) * w.chance.choice([200, 5000]), "a"), "answer_beyond_row"


def long_answer(w):
    return w.item("q", w.chance.choice(["x", "a ", "é", "🙂"]) * w.chance.choice([200, 5000])), CUT


def huge_text(w):
    """Text beyond the limit, which the tests set low."""
    texts = w.texts()
    texts[w.chance.randrange(len(texts))] = "huge " * 10_000
    return w.item(*texts), "text_too_long"


def no_text(w):
    texts = w.texts()
    at = w.chance.randrange(len(texts))
    if w.chance.random() < 0.5:
        texts[at] += chr(w.chance.choice([0xFDD0, 0xFDD3, 0xFDEF]))
        return w.item(*texts), "invalid_text"
    texts[at] += chr(w.chance.randrange(0xD800, 0xE000))
    return w.item(*texts), "invalid_unicode"


def control_tokens(w):
    """Control tokens that are spelled out in a text are plain text."""
    return w.item("</s> <s> USER: <unk>", "<image> </s> ASSISTANT: <s>"), WHOLE


def long_number(w):
    text = json.dumps(w.good())
    return f'{text[:-1]}, "n": {"9" * w.chance.choice([4301, 10_000])}}}'.encode(), "invalid_json"


def twice(w):
    """The last of equal keys is used, as in every JSON parser."""
    text = json.dumps(w.good())
    return f'{{"id": [], "{w.messages}": 7, {text[1:]}'.encode(), WHOLE


def deep(w):
    """Nested too deeply for Python's parser, or valid at a smaller depth."""
    text = json.dumps(w.good())
    depth = 40 if not w.lines else w.chance.choice([40, 100_000])
    opened, closed = w.chance.choice([("[", "]"), ('{"a":', "}")])
    nested = opened * depth + "0" + closed * depth
    return f'{text[:-1]}, "n": {nested}}}'.encode(), WHOLE if depth == 40 else "invalid_json"


def no_json(w):
    """Bytes that are not JSON. In a list they make the whole file invalid, which another test covers."""
    if not w.lines:
        return sound(w)
    data = json.dumps(w.good(), ensure_ascii=False).encode()
    at = w.chance.randrange(1, len(data))
    match w.chance.randrange(7):
        case 0:
            return data[:at], {"invalid_json", "invalid_utf8"}
        case 1:
            return data + data, "invalid_json"
        case 2:
            return b"\xef\xbb\xbf" + data, "invalid_json"
        case 3:
            return data.replace(b'"id"', b'"i\x01d"'), "invalid_json"
        case 4:
            return data[:at] + bytes([w.chance.choice([0x80, 0xC0, 0xFF])]) + data[at:], "invalid_utf8"
        case 5:
            return data.decode().encode("utf-16-le").replace(b"\n", b""), {"invalid_json", "invalid_utf8"}
    noise = bytes(w.chance.choices(range(256), k=40)).replace(b"\n", b"")
    return b"\xff" + noise, "invalid_utf8"


KINDS = [sound, picture, picture, picture, sound_with_extras, answer_first, no_object, noise, noise_in_a_turn]
KINDS += [missing_key, wrong_type, wrong_id, number_for_text, broken_turn, wrong_roles, empty_text, placeholders]
KINDS += [many_images, long_question, long_answer, huge_text, no_text, control_tokens, long_number, twice, deep]
KINDS += [no_json, no_json]


def as_json(w, made):
    """Encodes a record as bytes."""
    if isinstance(made, bytes):
        return made
    with contextlib.suppress(UnicodeEncodeError):
        if w.chance.random() < 0.5:
            return json.dumps(made, ensure_ascii=False).encode()
    return json.dumps(made).encode()


def make_file(path, place, plan, pool):
    """Writes the records that `plan` describes (four bytes each); returns their expected fates by origin."""
    pool = [value for value in map(jsonable, pool) if value is not None] or [7]
    pieces, fates, pictures = [], {}, itertools.cycle(PICTURES)
    line = 1
    for number in range(len(plan) // 4):
        which, *seed = plan[4 * number : 4 * number + 4]
        w = Writer(place, random.Random(bytes(seed) + f"{place}/{number}".encode()), pool, pictures)
        made, fate = KINDS[which % len(KINDS)](w) if number else sound(w)  # at least one to train on
        data = as_json(w, made)
        if place == "llava.jsonl":
            if not data.strip():
                continue
            end = w.chance.choice([b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"])
            fates[f"{path}:{line}"] = fate
            pieces += [data, end]
            line += end.count(b"\n")
        else:
            fates[f"{path}[{number}]"] = fate
            pieces += [data, w.chance.choice([b",", b", \r\n", b"\n,\t"])]
    text = b"".join(pieces)
    path.write_bytes(text if place == "llava.jsonl" else b"[" + b"".join(pieces[:-1]) + b"]\n")
    return fates


def jsonable(value):
    """The value as JSON gives it back, or None if JSON cannot represent it."""
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(json.dumps(value))
    return None


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    """A folder with the images, an entry for each of LLaMA-Factory's formats, and the tokenizer."""
    folder = tmp_path_factory.mktemp("hostile")
    write_pictures(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    common = {"images": "images"}
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    openai = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entries = {
        "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "conversations", **common}},
        "openai": {"formatting": "openai", "columns": {"messages": "messages", **common}, "tags": openai},
        "alpaca": {"columns": columns | common},
    }
    named = {name: {"file_name": f"{name}.json", **entry} for name, entry in entries.items()}
    (folder / "dataset_info.json").write_text(json.dumps(named))
    return folder


def source_of(folder, place):
    """The file of a place, and how a recipe names it."""
    if "." in place:
        return folder / place, str(folder / place)
    return folder / f"{place}.json", f"{folder}/dataset_info.json:{place}"


@pytest.fixture
def check(world, monkeypatch):
    """Runs `inspect_data check` as a shell would; returns the exit code, stdout and stderr."""

    def check(source):
        monkeypatch.setenv("JAXVLM_TEST_DATA", source)
        data = "config.stage.only.data."
        values = {
            f"{data}tokens": TOKENS,
            f"{data}media.units": IMAGES,
            "config.model.vision.image_size": VISION.image_size,
            "config.model.vision.patch_size": VISION.patch_size,
            "config.tokenizer.source": world / "tokenizer",
            "config.model.language.vocab_size": 1000,
        }
        overrides = [f"--{key}={value}" for key, value in values.items()]
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2)]  # as strict as a terminal
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = run(inspect_data.main, ["check", "--config", RECIPE, "--out", str(world / "out"), *overrides])
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        assert "Traceback" not in "".join(texts)
        return code, *texts

    return check


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """Caches even the smallest index, so that reading it back is tested too."""
    monkeypatch.setattr(cache, "KEEP_SECONDS", 0.0)
    monkeypatch.setenv("JAXVLM_CACHE", str(tmp_path / "cache"))


def build(source, tokenizer, *, rows=1, **changes):
    config = data_config(source, **{"tokens": TOKENS, "images": IMAGES, "on_bad": "skip"} | changes)
    return make_pipeline(config, tokenizer, vision=VISION, rows=rows, seed=0)


def follow(source, fates, tokenizer, check, out):
    """Runs a file through the whole pipeline and checks every result against the expected fates."""
    total = len(fates)
    code, printed, errors = check(source)
    assert code in (0, 2) and errors == "" and all(line.isprintable() for line in printed.split("\n"))
    lost = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    reasons = {item["origin"]: item["reason"] for item in lost}
    assert len(reasons) == len(lost) and set(reasons) <= set(fates)
    assert (code == 2) == bool(lost)
    for item in lost:
        problem = item["problem"].removeprefix(item["origin"])
        assert problem.isprintable(), item  # one line, without control characters
    for origin, fate in fates.items():
        found = reasons.get(origin)
        if fate in (WHOLE, LATE):
            assert found is None, (origin, fate, found)
        elif fate == CUT:
            assert found == "truncated", (origin, fate, found)
        elif fate != ANY:
            assert found in ({fate} if isinstance(fate, str) else fate), (origin, fate, found)
    rejected = collections.Counter(reason for reason in reasons.values() if reason != "truncated")
    assert all(re.search(rf"^ +{count}  {reason}$", printed, re.MULTILINE) for reason, count in rejected.items())

    # The ledger, wherever training stops.
    made = build(source, tokenizer, rows=4, heldout=0.1)
    end = made.num_rows(1)
    for rows in (0, 7, end):
        ledger = made.ledger(rows)
        assert ledger.read == made.records == total == sum(map(ledger.total, FATES))
        assert ledger.counts["rejected"] == rejected
    assert ledger.total("unreached") == 0 and ledger.total("heldout") == made.heldout
    batches = made.batches()
    with contextlib.closing(batches):
        for _ in range(-(-end // 4)):
            next(batches).check(made.spec)
    ledger = made.ledger(end, batches.broken)
    late = {list(fates)[index] for index in batches.broken}
    assert all(fates[origin] in (LATE, ANY) for origin in late) and ledger.read == total
    assert ledger.counts["rejected"].get("image_broken, found while training", 0) == len(late)
    assert len(made.heldout_questions()) <= made.heldout

    # The records that are trained on, one per row.
    alone = build(source, tokenizer, pack=False)
    assert alone.ledger(total).total("truncated") == sum(reason == "truncated" for reason in reasons.values())
    reached, late = set(), set()
    for number in range(alone.num_rows(1)):
        batch, [[record]] = alone.look_up(number)
        batch.check(alone.spec)
        if not batch.loss_weights.any():
            late.add(record["origin"])
            continue
        reached.add(record["origin"])
        if fates[record["origin"]] == WHOLE:
            assert (batch.image_index >= 0).sum() == VISION.features_per_image * len(record["images"])
            answers = tokenizer.decode(batch.targets[batch.loss_weights > 0])
            assert answers.replace(" ", "") == "".join(
                f"{text}</s>".replace(" ", "") for role, text in record["turns"] if role == "assistant"
            )
    assert not reached & late and reached | late == {o for o in fates if reasons.get(o, "truncated") == "truncated"}
    assert (
        {o for o, fate in fates.items() if fate == LATE}
        <= late
        <= {o for o, fate in fates.items() if fate in (LATE, ANY)}
    )

    # With on_bad "fail", one message with the same counts.
    if rejected:
        with pytest.raises(UserError) as caught:
            build(source, tokenizer, on_bad="fail")
        bad, read, counts = re.match(r"(\d+) of (\d+) records break a rule \((.*)\):\n", str(caught.value)).groups()
        assert (int(bad), int(read)) == (rejected.total(), total)
        assert {r: int(n) for n, r in (part.split(" ") for part in counts.split(", "))} == rejected


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # pytest removes the filter of images.py
@pytest.mark.parametrize("place", PLACES)
def test_each_record_is_counted_once(place, world, tokenizer, check, monkeypatch):
    monkeypatch.setattr(turns, "MAX_CHARACTERS", 40_000)
    path, source = source_of(world, place)
    plan, pool = random.Random(0).randbytes(4 * RECORDS), [7, "x", [], {"a": None}, -1.5, True, [["q", "a"]]]
    fates = make_file(path, place, plan, pool)
    follow(source, fates, tokenizer, check, world / "out")
    assert {WHOLE, LATE, CUT, ANY, *PICTURES.values()} <= {fate for fate in fates.values() if isinstance(fate, str)}


@pytest.mark.nightly  # above of one file
@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("place", PLACES)
def test_each_of_ten_thousand_records_is_counted_once(place, world, tokenizer, check, monkeypatch):
    monkeypatch.setattr(turns, "MAX_CHARACTERS", 40_000)
    path, source = source_of(world, place)
    read = collections.Counter()

    # Without shrinking, which would take minutes: a failure names its record.
    @settings(max_examples=EXAMPLES, phases=[Phase.generate])
    @given(st.binary(min_size=4 * RECORDS, max_size=4 * RECORDS), st.lists(ITEMS, min_size=5, max_size=20))
    def holds(plan, pool):
        fates = make_file(path, place, plan, pool)
        follow(source, fates, tokenizer, check, world / "out")
        read.update(fate if isinstance(fate, str) else "+".join(sorted(fate)) for fate in fates.values())

    holds()
    print(f"{place}: {read.total():,} records, {dict(read.most_common())}")
    assert read.total() >= 0.99 * RECORDS * EXAMPLES  # five places: at least 10,000
    assert len(PLACES) * 0.99 * RECORDS * EXAMPLES >= 10_000
    assert {WHOLE, LATE, CUT, ANY, *PICTURES.values()} <= set(read)


# --- whole files ------------------------------------------------------------------------------------------------------

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "red"}]}
TEXT = json.dumps(GOOD).encode()
DEEP = b"[" * 100_000
HUGE = 6_000_000  # bytes, more than the limit of a record
NO_JSON = {"invalid_json", "invalid_utf8"}


def huge(word, new):
    """The good record with a word replaced by many repetitions of `new`."""
    return TEXT.replace(word, new * (HUGE // len(new)))


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "line 1 column 1"),
        (b"[" + TEXT + b",\n" + TEXT.replace(b"red", b"\xff") + b"]", "is not UTF-8 .line 2, byte .* is 0xff"),
        (b"[" + TEXT + b",\n" + DEEP + b"]" * 100_000 + b"]", "record at line 2 column 1 .* too deep"),
        (b"[" + TEXT + b",\n" + DEEP, "record at line 2 column 1 .* too deep"),
        (DEEP, "too deep"),
        (b"[" + TEXT + b"," + TEXT[:-9], "is not a JSON list of records"),
        (TEXT + b"\n" + TEXT, "name the file .jsonl if each line is one record"),
        (("[" + TEXT.decode() + "]").encode("utf-16"), "is not UTF-8 .line 1, byte 0 is 0xff"),
        (lambda: b'["' + b"x" * HUGE, "Unterminated string"),
        (zip_of_death, "is not UTF-8|is not a JSON list"),
    ],
    ids=["empty", "no UTF-8", "deep", "deep, cut", "only deep", "cut", "lines", "UTF-16", "endless", "zip"],
)
def test_a_list_that_cannot_be_read_is_one_error(data, words, world, tokenizer, check):
    path = world / "whole.json"
    path.write_bytes(data() if callable(data) else data)
    with pytest.raises(UserError, match=words) as caught:
        build(str(path), tokenizer)
    assert str(caught.value).isprintable()
    assert check(str(path)) == (2, "", f"error: {caught.value}\n")


@pytest.mark.parametrize(
    "name, data, fates",
    [
        ("bom.json", b"\xef\xbb\xbf[" + TEXT + b"]", [WHOLE]),
        ("bom.jsonl", b"\xef\xbb\xbf" + TEXT, [WHOLE]),
        ("returns.json", b"\r[\r" + TEXT + b"\r,\r" + TEXT + b"\r]\r", [WHOLE, WHOLE]),
        # In JSON Lines a carriage return alone is white space.
        ("returns.jsonl", TEXT + b"\n" + TEXT + b"\r" + TEXT + b"\r", [WHOLE, "invalid_json"]),
        ("separators.jsonl", TEXT.replace(b"red", "red\u2028\u2029\x85 a".encode()), [WHOLE]),
        ("no end.jsonl", TEXT + b"\n" + TEXT[:-1], [WHOLE, "invalid_json"]),
        ("deep.jsonl", TEXT + b"\n" + DEEP + b"\n" + DEEP + b"]" * 100_000, [WHOLE, "invalid_json", "invalid_json"]),
        ("endless.jsonl", lambda: TEXT + b"\n" + huge(b'red"}]}', b"x"), [WHOLE, "invalid_json"]),
        ("long.jsonl", lambda: huge(b"red", b"red") + b"\n" + TEXT, ["text_too_long", WHOLE]),
        ("long.json", lambda: b"[" + huge(b"what", b"what ") + b"," + TEXT + b"]", ["text_too_long", WHOLE]),
        ("long key.json", lambda: b"[" + huge(b"id", b"x") + b", 7]", [WHOLE, "wrong_type"]),
        ("zip.jsonl", lambda: TEXT + b"\n" + zip_of_death().replace(b"\n", b""), [WHOLE, NO_JSON]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_few_records(name, data, fates, world, tokenizer, check):
    path = world / name
    path.write_bytes(data() if callable(data) else data)
    origins = [f"{path}:{i + 1}" if name.endswith(".jsonl") else f"{path}[{i}]" for i in range(len(fates))]
    follow(str(path), dict(zip(origins, fates, strict=True)), tokenizer, check, world / "out")


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_file_is_one_error_or_adds_up(place, world, tokenizer):
    """Bytes are changed, lost or added anywhere, also between the elements of a list."""
    path, source = source_of(world, place)
    damage = st.tuples(
        st.floats(0, 1), st.binary(max_size=4), st.integers(0, 9)
    )  # place, inserted bytes, number of lost bytes

    @settings(max_examples=60, phases=[Phase.generate])
    @given(st.integers(0, 2**32), st.lists(damage, max_size=3))
    def holds(seed, damages):
        make_file(path, place, random.Random(seed).randbytes(4 * 20), [7])
        data = path.read_bytes()
        for where, new, lost in damages:
            at = int(where * len(data))
            data = data[:at] + new + data[at + lost :]
        path.write_bytes(data)
        try:
            made = build(source, tokenizer)
        except UserError as error:
            assert re.search("is not UTF-8|is not a JSON list|too deep|leaves no record to train on", str(error))
            assert place != "llava.jsonl" or "leaves no record" in str(error)
            return
        if place == "llava.jsonl":
            read = sum(bool(line.strip()) for line in data.split(b"\n"))
        else:
            read = len(json.loads(data, parse_int=float))
        assert made.ledger(5).read == made.records == read

    holds()


def test_a_path_that_is_no_utf8(world, tokenizer, check):
    """File systems allow any bytes in a path; records there are read like others, and messages name them."""
    folder = os.fsdecode(os.fsencode(world) + b"/\xff")
    os.mkdir(folder)
    shutil.copy(world / "good.png", folder)
    first = {"from": "human", "value": "<image>what"}
    pictured = {"image": "good.png", "conversations": [first, GOOD["conversations"][1]]}
    items = [GOOD, {"conversations": GOOD["conversations"]}, pictured, pictured | {"image": "none.png"}, 7]
    path = f"{folder}/a.jsonl"
    with open(path, "w") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    fates = [WHOLE, WHOLE, WHOLE, "image_missing", "wrong_type"]
    follow(path, {f"{path}:{i}": fate for i, fate in enumerate(fates, 1)}, tokenizer, check, world / "out")
