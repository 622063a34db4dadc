"""Exported folders, read by transformers: the same ids and pixels as ours."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvlm.config import GenerationConfig, VisionConfig
from jaxvlm.config_reading import build_config
from jaxvlm.data.media.images import load_image
from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.jinja_template import chat_template
from jaxvlm.data.text.templates import TEMPLATES
from jaxvlm.data.text.tokenizer import train_tokenizer, training_texts
from jaxvlm.errors import UserError
from jaxvlm.exported_settings import exported_text
from jaxvlm.families.llava.processor import ensure_image_token, write_processor
from jaxvlm.models import variants
from jaxvlm.weights.codec import Export
from jaxvlm.weights.saved_tokenizer import write_text_files
from tests.data.conftest import WORDS, data_config
from tests.data.test_conversation import CHAT, byte_tokenizer, llama_tokenizer, record
from tests.parity.tiny_llava import tiny_config


def quickstart_tokenizer():
    """As the quickstart trains one."""
    turns = tuple(Turn(("user", "assistant")[i % 2], " ".join(WORDS)) for i in range(4))
    return train_tokenizer(training_texts([Record("a", turns, (), "a")] * 3, "vicuna_v1", ""), 400)


TOKENIZERS = {
    "quickstart": quickstart_tokenizer,
    "llama": lambda: llama_tokenizer(special=CHAT),
    "new_llama": lambda: llama_tokenizer(legacy=False, special=CHAT),
    "bytes": byte_tokenizer,
}
FITTING = [
    (kind, name)
    for kind in TOKENIZERS
    for name in TEMPLATES
    if not (kind == "bytes" and name in ("vicuna_v1", "llama2")) and not (kind == "quickstart" and name == "chatml")
]
CONVERSATIONS = [
    record("<image>\nWhat is it?", "A cat."),
    record("What is it? <image>", "A cat.", "And now?", " Be\nWhat ", "So?"),
    record("<image>"),
    record("Who?", "日本 cat", system="Be  brief."),
    record("Who?", system=""),
    record("<image> vs <image>\nWhich?", "B", "<image>Why", "\nA"),
    record("<image><image> ", "It", " now "),
]
DOCUMENTS = [record("", "A cat."), record("", " A\ncat "), record("the cat")]  # the last is a prompt
CAPTIONS = [record("<image>"), record("<image>", "A cat"), record("Say <image>", " A\ncat"), record("<image>", "cat ")]


def vision(name="clip_l14_336"):
    return build_config(VisionConfig, variants.vision(name))


def write_files(folder, tokenizer, vision, data, **generation):
    """The files of a folder without config.json and weights; returns the notes."""
    tokenizer, stop_ids, notes = exported_text(tokenizer, data)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_files(
        folder, Export(None, tokenizer, 0, stop_ids, data.media, GenerationConfig(**generation), "float32", 64)
    )
    write_processor(folder, vision, data.media.aspect)
    return notes


def messages(rec, *, parts):
    """A record as transformers takes one, with text as strings or as parts.

    Images of a list before all of its text get a newline each. So a turn in which they come first, without newlines,
    stays a string.
    """
    found = []
    for turn in rec.turns:
        *before, last = turn.text.split(IMAGE)
        if not parts or (len(before) > 1 and not any(before) and last):
            found.append({"role": turn.role, "content": turn.text})
            continue
        content = []
        for index, text in enumerate(turn.text.split(IMAGE)):
            content += [{"type": "image"}] if index else []
            content += [{"type": "text", "text": text}] if text else []
        found.append({"role": turn.role, "content": content})
    return found


def ours(tokenizer, name, rec, system=None):
    renderer = Renderer(tokenizer, name, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE), system=system)
    return (renderer.render if rec.turns[-1].role == "assistant" else renderer.render_prompt)(rec).tokens.tolist()


def theirs(tokenizer, rec, *, parts=False):
    """The ids of a text that the template writes, with the special tokens that a processor adds."""
    asks = rec.turns[-1].role == "user"
    text = tokenizer.apply_chat_template(messages(rec, parts=parts), add_generation_prompt=asks, tokenize=False)
    return tokenizer(text).input_ids


@pytest.mark.parametrize("system", [None, "", 'Say "cat".\n'])
@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_templates_give_our_ids(kind, name, system):
    tokenizer, _, _ = ensure_image_token(TOKENIZERS[kind]())
    if system and not TEMPLATES[name].takes_system:
        with pytest.raises(UserError, match="writes no system message"):
            ours(tokenizer, name, CAPTIONS[0], system)
        return
    tokenizer.chat_template, notes = chat_template(tokenizer, name, system)
    assert notes == []
    for rec in {"plain": CAPTIONS, "document": DOCUMENTS}.get(name, CONVERSATIONS):
        expected = ours(tokenizer, name, rec, system)
        assert theirs(tokenizer, rec) == expected
        assert theirs(tokenizer, rec, parts=True) == expected


@pytest.fixture(scope="module")
def ready():
    """Tokenizers with the template of Vicuna, one of each kind that fits it."""
    found = []
    for kind in ("llama", "new_llama", "quickstart"):
        tokenizer, _, _ = ensure_image_token(TOKENIZERS[kind]())
        tokenizer.chat_template, _ = chat_template(tokenizer, "vicuna_v1", None)
        renderer = Renderer(tokenizer, "vicuna_v1", image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))
        found.append((tokenizer, renderer))
    return found


TEXTS = st.lists(st.sampled_from(["cat", " ", "\n", "What", "日", IMAGE, "USER:", "{", "'"]), min_size=1, max_size=6)


@settings(max_examples=60)
@given(questions=st.lists(TEXTS, min_size=1, max_size=3), answer=st.sampled_from(["A cat.", " B", "\nC "]))
def test_any_conversation_gives_our_ids(ready, questions, answer):
    texts = []
    for words in questions:
        text = "".join(words)
        texts += [text if text.strip() else "What", answer]
    rec = record(*texts[:-1])
    for tokenizer, renderer in ready:
        assert theirs(tokenizer, rec, parts=True) == renderer.render_prompt(rec).tokens.tolist()


def test_a_tokenizer_that_one_pass_cannot_please():
    tokenizer, _, _ = ensure_image_token(llama_tokenizer(legacy=False))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["rstrip"] = token["content"] == IMAGE  # swallows the white space behind it, in one pass only
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", extra_special_tokens=[IMAGE]
    )
    _, notes = chat_template(tokenizer, "vicuna_v1", None)
    assert len(notes) == 1 and notes[0].startswith("text after <image> gets other ids than in training")


@pytest.mark.parametrize("encoder", ["clip_l14_336", "siglip_b16"])
@pytest.mark.parametrize("aspect", ["pad", "square", "squeeze"])
@pytest.mark.parametrize("kind", ["llama", "new_llama", "quickstart"])
def test_processor_gives_our_ids_and_pixels(kind, aspect, encoder, tmp_path):
    config = vision(encoder)
    tokenizer, image_id, _ = ensure_image_token(TOKENIZERS[kind]())
    write_files(tmp_path, tokenizer, config, data_config("", template="vicuna_v1", system=None, aspect=aspect))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is transformers.LlavaProcessor

    random = np.random.default_rng(0)
    shapes = [(50, 50), (40, 60), (61, 33)]
    for index, shape in enumerate(shapes):
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).resize((240, 240) if not index else (310, 210)).save(path)
        rec = record("What <image>", "A cat.", "And?")
        chat = messages(rec, parts=True)
        chat[0]["content"][1]["url"] = str(path)
        out = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)

        expected = []
        for id in ours(tokenizer, "vicuna_v1", rec):
            expected += [id] * (config.features_per_image if id == image_id else 1)
        assert out["input_ids"][0] == expected

        normal = np.asarray(out["pixel_values"])[0].transpose(1, 2, 0)
        levels = 255 * (normal * np.float32(config.image_std) + np.float32(config.image_mean))
        expected_pixels = load_image(str(path), config.image_size, aspect, pad_colour=config.pad_colour).astype(
            np.float32
        )
        assert np.abs(levels - expected_pixels).max() <= 1.01


@pytest.mark.parametrize(("kind", "name"), [pair for pair in FITTING if pair[1] != "plain"])
def test_two_images_give_our_ids_in_both_idioms(kind, name, tmp_path):
    config = tiny_config().vision
    tokenizer, image_id, _ = ensure_image_token(TOKENIZERS[kind]())
    write_files(tmp_path, tokenizer, config, data_config("", template=name, system=None))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    pictures = [Image.new("RGB", (30, 40), colour) for colour in ("red", "blue")]
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": content}]
    at_once = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    in_two = processor(text=text, images=pictures)

    expected = []
    for id in ours(tokenizer, name, record(f"{IMAGE}\n{IMAGE}\nWhat?")):
        expected += [id] * (config.features_per_image if id == image_id else 1)
    assert at_once["input_ids"][0] == in_two["input_ids"][0] == expected
    assert expected[:2].count(tokenizer.bos_token_id) == (kind != "bytes")


PARTS = (
    "{% for m in messages %}{{ m.role.upper() ~ ': ' }}"
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text ~ ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize("writes_bos", [False, True])
@pytest.mark.parametrize("kind", ["llama", "new_llama", "quickstart"])
def test_a_processors_own_template_gives_its_ids(kind, writes_bos, tmp_path):
    """One BOS, whether the template or the tokenizer writes it; a line says which idiom would give two."""
    tokenizer, _, _ = ensure_image_token(TOKENIZERS[kind]())
    tokenizer.chat_template = "{{ bos_token }}" * writes_bos + PARTS
    notes = write_files(tmp_path, tokenizer, vision(), data_config("", template="tokenizer", system=None))
    assert ["add_special_tokens=False" in note for note in notes] == [True] * writes_bos
    rec = record("<image>\n<image>\nWhat?", "A cat.", "And?")
    chat = messages(record("What?", "A cat.", "And?"), parts=True)
    chat[0]["content"] = [{"type": "image"}, {"type": "image"}, *chat[0]["content"]]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert processor.tokenizer(text, add_special_tokens=not writes_bos).input_ids == ours(tokenizer, "tokenizer", rec)


def test_a_template_of_strings_that_the_processor_puts_a_bos_before(tmp_path):
    tokenizer, _, _ = ensure_image_token(llama_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ ' ' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    notes = write_files(tmp_path, tokenizer, vision(), data_config("", template="tokenizer", system=None))
    assert [note for note in notes if "adds a BOS token that training does not have" in note]
    rec = record("<image>\nWhat?", "A cat.")
    read = transformers.AutoProcessor.from_pretrained(tmp_path)
    text = read.apply_chat_template(messages(rec, parts=False))
    assert read.tokenizer(text, add_special_tokens=False).input_ids == ours(tokenizer, "tokenizer", rec)


def test_a_tokenizer_that_transformers_4_reads(tmp_path):
    tokenizer, _, _ = ensure_image_token(quickstart_tokenizer())
    write_files(tmp_path, tokenizer, vision(), data_config(""))
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == [IMAGE] and "extra_special_tokens" not in values
    assert values["model_input_names"] == ["input_ids", "attention_mask"]
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("what<image>").input_ids == tokenizer("what<image>").input_ids
    assert IMAGE in read.all_special_tokens


def test_stop_tokens_are_written_and_end_an_answer(tmp_path):
    tokenizer, image_id, _ = ensure_image_token(llama_tokenizer(special=CHAT))
    write_files(tmp_path, tokenizer, vision(), data_config("", stop_tokens=(CHAT[0],)))
    stop = tokenizer.convert_tokens_to_ids(CHAT[0])
    written = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert written.eos_token_id == [tokenizer.eos_token_id, stop]
    write_files(tmp_path, tokenizer, vision(), data_config(""), temperature=0.6, top_k=20)
    written = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (written.do_sample, written.temperature, written.top_p, written.top_k) == (True, 0.6, 1.0, 20)
    renderer = Renderer(tokenizer, "vicuna_v1", image_token_id=image_id, stop_tokens=(CHAT[0],))
    cat = tokenizer("cat", add_special_tokens=False).input_ids
    assert renderer.decode([*cat, stop, *cat]) == "cat"
    with pytest.raises(UserError, match=r"data.stop_tokens has '<nope>': give tokens that"):
        Renderer(tokenizer, "vicuna_v1", image_token_id=image_id, stop_tokens=("<nope>",))


def test_files_of_a_folder(tmp_path):
    tokenizer, _, added = ensure_image_token(byte_tokenizer())
    assert added == [IMAGE]
    before = tokenizer.chat_template, tokenizer.padding_side
    notes = write_files(
        tmp_path / "new" / "folder", tokenizer, vision("siglip_b16"), data_config("", template="chatml", aspect="pad")
    )
    assert notes == []
    assert (tokenizer.chat_template, tokenizer.padding_side) == before
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    generation = transformers.GenerationConfig.from_pretrained(folder)
    end, stop = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|im_end|>"))
    assert (generation.eos_token_id, generation.pad_token_id, generation.do_sample) == ([stop, end], end, False)
    values = json.loads((folder / "processor_config.json").read_text())
    assert (values["num_additional_image_tokens"], values["vision_feature_select_strategy"]) == (0, "full")
    assert not any(str(tmp_path) in path.read_text() for path in folder.iterdir())


def test_the_tokenizers_own_template_is_kept(tmp_path):
    tokenizer, _, _ = ensure_image_token(byte_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    notes = write_files(tmp_path, tokenizer, vision(), data_config("", template="tokenizer", system="Be brief."))
    assert [note.partition(":")[2] for note in notes] == [
        ' write "<image>" and a newline before the question yourself',
        " give the system message of the training yourself",
    ]
    read = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert read.chat_template == read.tokenizer.chat_template == tokenizer.chat_template
    rec = record("<image>\nWhat?", "A", "B?")
    assert theirs(read.tokenizer, rec) == ours(tokenizer, "tokenizer", rec)


def test_a_folder_for_a_tiny_model(tmp_path):
    config = tiny_config().vision
    write_files(tmp_path, quickstart_tokenizer(), config, data_config("", aspect="square"))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    out = processor(text=f"{IMAGE}\nwhat", images=Image.new("RGB", (30, 40)))
    assert out["input_ids"][0].count(processor.image_token_id) == config.features_per_image


def test_the_image_token():
    plain = llama_tokenizer()
    tokenizer, id, added = ensure_image_token(plain)
    assert (id, added) == (len(plain), [IMAGE]) and IMAGE not in plain.get_vocab()
    assert tokenizer(f"a{IMAGE}b", add_special_tokens=False).input_ids.count(id) == 1
    assert ensure_image_token(tokenizer) == (tokenizer, id, [])
    # There already, but as plain text: it keeps its id.
    old = llama_tokenizer(not_special=[IMAGE])
    tokenizer, id, added = ensure_image_token(old)
    assert (id, added) == (old.convert_tokens_to_ids(IMAGE), []) and IMAGE in tokenizer.all_special_tokens


def test_other_special_tokens_stay():
    old = llama_tokenizer()
    old.add_special_tokens({"extra_special_tokens": ["<box>"]})
    tokenizer, _, _ = ensure_image_token(old)
    assert {"<box>", IMAGE} <= set(tokenizer.all_special_tokens)


def test_refused(tmp_path):
    tokenizer, _, _ = ensure_image_token(llama_tokenizer())
    with pytest.raises(UserError, match='no template "vicuna"'):
        write_files(tmp_path, tokenizer, vision(), data_config("", template="vicuna"))
    with pytest.raises(UserError, match='no template "vicuna"; templates: plain, vicuna_v1'):
        chat_template(tokenizer, "vicuna", None)
    with pytest.raises(UserError, match="lacks: <.im_start.>"):
        write_files(tmp_path, tokenizer, vision(), data_config("", template="chatml"))
