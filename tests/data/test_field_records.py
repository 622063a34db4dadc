"""Records as people have them: keys that change what a record teaches are read, or refused by name."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from jaxvlm.data.records import IMAGE, RecordError
from jaxvlm.data.sources.formats import AnyChat, ImageRule, make_record
from tests.data.conftest import conversation


def read(item):
    return make_record(item, "f.json[0]", AnyChat(), ImageRule(Path("/data")))


def chat(*texts, **keys):
    return {"conversations": conversation(*(texts or ("Who?", "I."))), **keys}


def said(record):
    return [(turn.role, turn.text) for turn in record.turns]


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (255, 0, 0)).save(file, "png")
    return file.getvalue()


UNTRAINABLE = {
    "audios": ["a.wav"],
    "tools": '[{"name": "search"}]',
    "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]},
    "kto_tag": True,
    "label": False,
}


@pytest.mark.parametrize("key", UNTRAINABLE)
def test_a_key_that_cannot_be_trained_on_is_refused_by_name(key):
    with pytest.raises(RecordError, match=f'"{key}"') as caught:
        read(chat(**{key: UNTRAINABLE[key]}))
    assert caught.value.reason == "unsupported"
    assert said(read(chat(**{key: None}))) == [("user", "Who?"), ("assistant", "I.")]


def test_all_such_keys_are_named_at_once():
    with pytest.raises(RecordError) as caught:
        read(chat(audio="a.wav", objects={"ref": ["cat"]}))
    assert re.findall(r'"(audio|objects)"', str(caught.value)) == ["audio", "objects"]


def test_a_label_that_is_no_mark_and_other_unread_keys_are_counted():
    assert read(chat(label="cat", source="web", empty=[])).notes == ('key "source"',)


@pytest.mark.parametrize("switch", [{"loss": False}, {"train": False}, {"weight": 0}, {"loss_weight": 0.0}])
def test_a_turn_that_is_not_to_be_trained(switch):
    item = {
        "messages": [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "wrong", **switch},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "I."},
        ]
    }
    record = read(item)
    assert [turn.weight for turn in record.turns if turn.role == "assistant"] == [0, 1]
    assert record.notes == ()


def test_a_turn_that_counts_half():
    item = chat()
    item["conversations"][1]["loss_weight"] = 0.5
    assert read(item).turns[1].weight == 0.5


@pytest.mark.parametrize(
    "turn, switches, words",
    [
        (1, {"train": "no"}, '"train" is true, false or a number'),
        (1, {"weight": -1}, '"weight" is true, false or a number'),
        (1, {"loss": True, "weight": 0}, 'disagree: "loss" true, "weight" 0'),
        (0, {"train": True}, "only answers can be"),
    ],
)
def test_a_loss_switch_that_cannot_be_meant(turn, switches, words):
    item = chat()
    item["conversations"][turn] |= switches
    with pytest.raises(RecordError, match=words):
        read(item)


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_message_in_its_own_key(key):
    assert said(read(chat(**{key: "Be brief."})))[0] == ("system", "Be brief.")
    assert said(read({"question": "Who?", "answer": "I.", key: "Be brief."}))[0] == ("system", "Be brief.")


def test_two_system_messages_that_differ_are_told():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    turns.append({"role": "assistant", "content": "I."})
    record = read({"messages": turns, "system": "Be brief."})
    assert said(record)[0] == ("system", "Be kind.")
    assert record.notes == ('key "system", since the turns have another system message',)
    assert read({"messages": turns, "system": "Be kind."}).notes == ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<video>\nWho?", "<video>"),
        ("<|vision_start|><|image_pad|><|vision_end|>Who?", "<|image_pad|>"),
        ("Compare <image 1> and <image 2>.", "<image N>"),
        ("<img>a.png</img>Who?", "<img>...</img>"),
        ("[IMG]Who?", "[IMG]"),
        ("<Image>Who?", "<Image>"),
    ],
)
def test_a_placeholder_of_others_is_told(text, shown):
    """It stays text: whoever asks about HTML writes <video>, too."""
    (note,) = read(chat(text, "I.")).notes
    why = "the record has no video" if shown == "<video>" else "<image> stands for an image"
    assert note == f'"{shown}" in a question is text and stands for nothing; {why}'
    assert read(chat("<image>\nWho?", text, image="a.png")).notes == ()


@pytest.mark.parametrize("key", ["image", "images", "img", "picture", "image_path", "image_paths", "image_file"])
def test_an_image_under_any_of_its_names(key):
    assert read(chat("<image>\nWho?", "I.", **{key: "a.png"})).images == ("/data/a.png",)


def test_images_under_two_names():
    with pytest.raises(RecordError, match='"img" and "image_path"'):
        read(chat("<image>\nWho?", "I.", img="a.png", image_path="b.png"))
    # Next to "image" the others are meta data, and are counted.
    assert read(chat("<image>\nWho?", "I.", image="a.png", image_url="https://b/a.png")).notes == ('key "image_url"',)


def test_one_image_without_a_placeholder_comes_first():
    assert said(read(chat(image="a.png")))[0] == ("user", f"{IMAGE}\nWho?")


def test_an_image_as_text(png):
    text = base64.b64encode(png).decode()
    for image in (f"data:image/png;base64,{text}", text, {"base64": text}, {"bytes": png}, png):
        assert read(chat("<image>\nWho?", "I.", image=image)).images == (png,)
    assert read(chat("<image>\nWho?", "I.", image_base64=text)).images == (png,)
    with pytest.raises(RecordError, match="base64") as caught:
        read(chat("<image>\nWho?", "I.", image=f"data:image/png;base64,{text[:50]}!"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("form", ["openai", "anthropic", "transformers"])
def test_an_image_in_a_part_of_a_message(form, png):
    text = base64.b64encode(png).decode()
    part = {
        "openai": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
        "transformers": {"type": "image", "base64": text},
    }[form]
    content = [part, {"type": "text", "text": "Who?"}]
    record = read({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "I."}]})
    assert record.images == (png,)
    assert said(record) == [("user", f"{IMAGE}Who?"), ("assistant", "I.")]


def test_an_image_in_an_answer_is_refused():
    content = [{"type": "image"}, {"type": "text", "text": "Here."}]
    messages = [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": content}]
    with pytest.raises(RecordError, match="image of the assistant") as caught:
        read({"messages": messages, "images": ["a.png"]})
    assert caught.value.reason == "unsupported"


def test_a_name_of_64_letters_is_a_path():
    name = "a" * 64
    assert read(chat("<image>\nWho?", "I.", image=name)).images == (f"/data/{name}",)
