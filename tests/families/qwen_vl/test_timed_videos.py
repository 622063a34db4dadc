"""Videos of Qwen3-VL, whose frame pairs have their time in the text: ids, positions, rows, against transformers."""

import dataclasses
import io
import json
import pickle
import re
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as original_volume

from configs.qwen_vl import video as video_of
from jaxvlm.batch import Batch
from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError, Turn
from jaxvlm.data.rows import packing
from jaxvlm.data.rows.pipeline import build_pipeline
from jaxvlm.data.sample import Sample
from jaxvlm.data.sources import prepared
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import KINDS, QwenVLMedia, VideoConfig
from jaxvlm.families.qwen_vl.resize import smart_resize
from jaxvlm.families.qwen_vl.time_tokens import TimeTokens
from jaxvlm.inspect.page import page_rows, write_page
from jaxvlm.media import Video
from tests.data.conftest import data_config
from tests.families.qwen_vl import folders, pairs
from tests.families.qwen_vl.test_layout import original_positions, png
from tests.families.qwen_vl.test_video_rows import layout_of, make_video
from tests.parity.tiny_llava import loss_of

pytestmark = pytest.mark.torch

VIDEO_LIMITS = VideoConfig(fps=2.0, min_frames=4, max_frames=32, min_pixels=256, max_pixels=6000)
MEDIA = QwenVLMedia(units=400, min_pixels=64, max_pixels=1000, video=VIDEO_LIMITS)
PADS = ("<|image_pad|>", "<|video_pad|>")
WHOLE = f"<|vision_start|>{PADS[1]}<|vision_end|>"
NTSC = 30000 / 1001
# Frames, height, width and rate: an odd number of frames, long ones, small sides.
SHORT, LONG, SLOW = make_video(3, 20, 50, 1.0), make_video(47, 33, 21, 7.5), make_video(9, 7, 40, 0.25)
REAL = make_video(100, 24, 16, NTSC)


@pytest.fixture(scope="module")
def tokenizer():
    """With tokens " <" and "(<", as the published one has."""
    made = folders.tokenizer("qwen3_vl", ["a <b and (<c"] * 9)
    assert len(made.encode(" <")) == len(made.encode("(<")) == 1
    return made


@pytest.fixture(scope="module")
def layout(tokenizer):
    return layout_of("qwen3_vl", MEDIA).with_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def renderer(tokenizer, layout):
    return Renderer(tokenizer, "tokenizer", image_token_id=image_token_id(tokenizer), video_text=layout.video_text)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "1.png"
    Image.new("RGB", (40, 24), (200, 200, 200)).save(path)
    return str(path)


def original_text(video):
    """What transformers writes for a video, and its grid in patches."""
    frames, (width, height) = len(video.source), Image.open(io.BytesIO(video.source[0])).size
    settings = SimpleNamespace(fps=2, min_frames=4, max_frames=32)
    metadata = SimpleNamespace(total_num_frames=frames, fps=video.fps)
    metadata.frames_indices = Qwen3VLVideoProcessor.sample_frames(settings, metadata)
    taken = len(metadata.frames_indices)
    limits = {"factor": 8, "min_pixels": VIDEO_LIMITS.min_pixels, "max_pixels": VIDEO_LIMITS.max_pixels}
    height, width = original_volume(taken, height, width, **limits)
    grid = [-(-taken // 2), height // 4, width // 4]
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>", video_token=PADS[1],
    )  # fmt: skip
    processor._calculate_timestamps = MethodType(Qwen3VLProcessor._calculate_timestamps, processor)
    inputs = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [metadata]}
    return Qwen3VLProcessor.replace_video_token(processor, inputs, 0), grid


def original_ids(tokenizer, question, media, *, answer):
    """Ids of a conversation of one round, its text written by transformers; types of tokens, and grids.

    A video's text replaces the tokens around it, as before transformers 5.10.
    """
    parts = []
    for piece in re.split(f"({IMAGE}|{VIDEO})", question):
        kind = {IMAGE: "image", VIDEO: "video"}.get(piece)
        parts += [{"type": kind}] if kind else [{"type": "text", "text": piece}] if piece else []
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    text, images, videos = tokenizer.apply_chat_template(messages, tokenize=False), [], []
    for medium in media:
        if isinstance(medium, Video):
            written, grid = original_text(medium)
            text = text.replace(WHOLE, written.replace(PADS[1], "<|done|>"), 1)
            videos.append(grid)
        else:
            height, width = smart_resize(24, 40, 8, MEDIA.min_pixels, MEDIA.max_pixels)
            images.append([1, height // 4, width // 4])
            text = text.replace(PADS[0], "<|picture|>" * (height * width // 64), 1)
    ids = tokenizer(text.replace("<|done|>", PADS[1]).replace("<|picture|>", PADS[0])).input_ids
    image, video = tokenizer.convert_tokens_to_ids(PADS)
    return ids, [{image: 1, video: 2}.get(token, 0) for token in ids], [grid[1:] for grid in images], videos


CONVERSATIONS = {
    "first": ("<video>what is it?", [SHORT]),
    "last": ("what is it?<video>", [LONG]),
    "between texts": ("look: <video> and?", [SLOW]),
    "after a mark": ("is it (<<video>)?", [REAL]),
    "two": ("<video> or <video>?", [LONG, SHORT]),
    "adjacent": ("one, <video><video>", [SHORT, REAL]),
    "with an image": ("a <image> b <video> c <image><video>", ["1", SLOW, "1", SHORT]),
    "text that looks alike": ("<0.5 seconds> <video>", [SHORT]),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_and_positions_of_transformers(name, tokenizer, layout, renderer, picture):
    """Ids, supervised text, number of positions and of features, and what `get_rope_index` gives."""
    question, media = CONVERSATIONS[name]
    media = tuple(picture if medium == "1" else medium for medium in media)
    ids, types, images, videos = original_ids(tokenizer, question, media, answer="two")
    sizes = [read_size(medium) for medium in media]
    sample = renderer.render(Record("r", (Turn("user", question), Turn("assistant", "two")), media, "o"))
    piece = packing.expand(sample, sizes, layout)
    assert piece.tokens.tolist() == ids
    assert ((piece.image_index >= 0) == (np.array(types) > 0)).all()
    extents = [layout.extent(size) for size in sizes]
    assert len(piece.tokens) == packing.measure(sample, extents).length
    assert sum(extent.units for extent in extents) == 4 * (piece.image_index.max() + 1)
    assert tokenizer.decode(piece.targets[piece.loss_weights > 0]) == "two<|im_end|>"
    if "<image><video>" not in question:  # transformers cannot read two media without text between
        np.testing.assert_array_equal(piece.positions, original_positions("qwen3_vl", types, images, videos))


def test_positions_by_hand(tokenizer, layout):
    """Text, twice "<0.0 seconds>" or the like, vision_start, 1 x 2 tokens, vision_end, then text."""
    size = read_size(make_video(4, 8, 16, 2.0))
    tight = layout_of("qwen3_vl", QwenVLMedia(400, 64, 1000, VideoConfig(2.0, 4, 4, 64, 512))).with_tokenizer(tokenizer)
    ids, is_feature = tight.expand(9, size)
    before = len(tokenizer.encode("0.2 seconds><|vision_start|>"))
    assert is_feature.tolist() == [False] * before + [True] * 2 + [False] * (before + 2) + [True] * 2 + [False]
    index = np.cumsum(is_feature) * is_feature - 1
    found = tight.positions(np.array([-1, *index, -1]), [size]).T
    first, second = before + 1, 2 * before + 5  # a pair takes two numbers, as many as its columns
    time = [*range(first), first, first, *range(first + 2, second), second, second, second + 2, second + 3]
    column = [*range(first + 2), *range(first + 2, second + 2), second + 2, second + 3]
    assert found.tolist() == [time, time, column]


def test_times_keep_their_ids_alone_and_in_text(tokenizer, layout):
    """Every time of up to six hours is what the tokenizer makes of it."""
    tokens = layout._times
    for tenths in [*range(0, 2000), *range(2000, 216_000, 997)]:
        text = f"<{tenths / 10:.1f} seconds><|vision_start|>"
        assert tokens.before(tenths / 10, is_first=False) == tokenizer.encode(text)
        assert tokenizer.encode(" <") + tokens.before(tenths / 10, is_first=True) == tokenizer.encode(" " + text)


def test_it_travels_to_workers_in_few_bytes(layout):
    data = pickle.dumps(layout)
    size = read_size(LONG)
    assert len(data) < 5000 and pickle.loads(data).expand(9, size)[0].tolist() == layout.expand(9, size)[0].tolist()


def test_tokenizers_that_cannot_write_times():
    made, plain = layout_of("qwen3_vl", MEDIA), folders.tokenizer("qwen3_vl")
    backend = json.loads(plain.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != "<|vision_end|>"]
    without = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(plain.backend_tokenizer).from_str(json.dumps(backend)), eos_token="<|im_end|>"
    )
    with pytest.raises(UserError, match=r"this tokenizer has no <\|vision_end\|>; take the tokenizer of a Qwen3-VL"):
        made.with_tokenizer(without)
    joining = folders.tokenizer("qwen3_vl")
    joining.add_tokens(["12"])
    with pytest.raises(UserError, match="does not split '12' between its characters"):
        made.with_tokenizer(joining)
    images = layout_of("qwen3_vl", QwenVLMedia(400, 64, 1000))
    assert images.with_tokenizer(joining) is images and images.video_text is None
    two = layout_of("qwen2_vl", MEDIA)
    assert two.with_tokenizer(joining) is two


def test_what_prepare_keeps_has_the_same_times(tokenizer, layout):
    """Through the file's format, with frames that are not at equal distances."""
    for video in (SHORT, LONG, SLOW, REAL):
        record = Record("r", (Turn("user", VIDEO), Turn("assistant", "two")), (layout.store(video, "o", 0),), "o")
        (kept,) = prepared._unpack(prepared._pack(record)).images
        assert read_size(kept)[2:] == read_size(video)[2:]
        np.testing.assert_array_equal(layout.load(kept, "o", exact=True), layout.load(video, "o", exact=True))
        assert layout.expand(9, read_size(kept))[0].tolist() == layout.expand(9, read_size(video))[0].tolist()
    strip = make_video(4, 2, 300, 2.0)  # becomes 8 x 1200 pixels, whose volume is then reduced again
    with pytest.raises(RecordError, match=r"o\[3\]: its frames would be resized again"):
        layout.store(strip, "o[3]", 0)


@pytest.mark.parametrize("template", [None, "chatml"])
def test_templates_that_write_less_around_a_video(template, tokenizer, layout, renderer):
    """The bare token, which transformers replaces alone; and a built-in template, which writes none."""
    own = folders.tokenizer("qwen3_vl", ["a <b and (<c"] * 9)
    own.chat_template = tokenizer.chat_template.replace(WHOLE, PADS[1])
    options = {"image_token_id": image_token_id(own), "video_text": layout.video_text, "system": template and ""}
    other = Renderer(own, template or "tokenizer", **options)
    record = Record("r", (Turn("user", "<video>what is it?"), Turn("assistant", "two")), (SHORT,), "o")
    pieces = [packing.expand(made.render(record), [read_size(SHORT)], layout) for made in (other, renderer)]
    found, want = (tokenizer.decode(piece.tokens) for piece in pieces)
    if template:  # which writes a newline after a video
        want = f"{want}\n".replace("<|vision_end|>what", "<|vision_end|>\nwhat")
    assert found.strip() == want.strip() and "user\n<0.5 seconds><|vision_start|>" in found


def test_the_recipes_settings_are_valid():
    for kind in KINDS:
        video = VideoConfig(**video_of(kind).to_dict())
        assert layout_of(kind, QwenVLMedia(400, 64, 1000, video)).problems(0) == []
    assert video_of("qwen3_vl").max_pixels == 32 * 256 * 32**2


def test_logits_of_transformers():
    """With two videos and text; the time has ids of its own, and pixels are those that `write` has placed."""
    pair = pairs.make_pair("qwen3_vl")
    layout = layout_of("qwen3_vl", MEDIA)
    layout._times = TimeTokens(
        {piece: (20 + at,) for at, piece in enumerate(["<", *"0123456789.", " seconds>"])}, 9, 10
    )
    tokens = np.array([11, 12, pairs.VIDEO_TOKEN, 13, pairs.VIDEO_TOKEN, 14, 15], np.int32)
    sample = Sample(tokens, (tokens > 13).astype(np.float32), tokens == pairs.VIDEO_TOKEN)
    videos = [noisy(SHORT), noisy(SLOW)]
    piece = packing.expand(sample, [read_size(video) for video in videos], layout)
    spec = Batch.spec(rows=1, tokens=160, media=layout.spec(1, MEDIA.units), position_axes=3)
    batch = Batch.empty(spec)
    loaded = [layout.load(video, "o", exact=True) for video in videos]
    packing.fill_row(batch, 0, [piece], loaded, layout)
    _, found = loss_of(pair.model, pair.params, batch)

    count, vision = sum(map(layout.units_of, loaded)), pair.model.config.vision
    values = (batch.media.pixels[0, :count] / 255 - vision.image_mean) / vision.image_std
    grids = [[-(-len(frames) // 2), frames.shape[1] // 4, frames.shape[2] // 4] for frames in loaded]
    ids = torch.from_numpy(piece.tokens.astype(np.int64))[None]
    with torch.no_grad():
        want = pair.hf(
            input_ids=ids, mm_token_type_ids=2 * (ids == pairs.VIDEO_TOKEN).int(), video_grid_thw=torch.tensor(grids),
            pixel_values_videos=torch.from_numpy(rearrange(values, "P F Y X C -> P (C F Y X)").astype(np.float32)),
        ).logits[0].numpy()  # fmt: skip
    np.testing.assert_allclose(np.asarray(found)[0, : len(want)], want, rtol=0, atol=1e-4)


def noisy(video):
    """The video with frames of noise, of the same size."""
    random, frames = np.random.default_rng(len(video.source)), []
    for frame in video.source:
        size = Image.open(io.BytesIO(frame)).size
        frames.append(png(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)))
    return dataclasses.replace(video, source=tuple(frames))


def grey_of(batch, row, at):
    """The grey of the first frame of the feature at a position."""
    patch = batch.media.pixels[row, 4 * batch.image_index[row, at]]
    return int(patch[0, 0, 0, 0])


def test_rows_of_videos_images_and_text(tmp_path, tokenizer):
    """Packed: each feature is of the frame pair, or the image, whose text stands before it."""
    names = []
    for number in range(6):
        names.append(f"{number}.png")
        Image.new("RGB", (24, 16), (10 * number,) * 3).save(tmp_path / names[-1])
    Image.new("RGB", (24, 16), (200, 200, 200)).save(tmp_path / "image.png")
    records = [
        {"videos": [names[:4], names[3:]], "images": ["image.png"], "fps": 2.0,
         "messages": [("user", "one <video> two <image> or <video>?"), ("assistant", "a red circle")]},
        {"messages": [("user", "how many?"), ("assistant", "two blue squares")]},
    ]  # fmt: skip
    lines = []
    for record in records:
        messages = [{"role": role, "content": content} for role, content in record["messages"]]
        lines.append(json.dumps(record | {"messages": messages}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    config = data_config(tmp_path / "data.jsonl", template="tokenizer", system=None, tokens=256, media=MEDIA)
    made = build_pipeline(config, tokenizer, layout=layout_of("qwen3_vl", MEDIA), rows=1, seed=0)
    batch, described = made.look_up(0)

    assert write_page(tmp_path / "rows.html", page_rows(batch, described, made.layout), tokenizer, title="rows") == 1
    assert "Not as a row should be" not in (tmp_path / "rows.html").read_text()
    tokens, index = batch.tokens[0], batch.image_index[0]
    assert batch.segments[0].max() == 2
    pads = np.isin(tokens, tokenizer.convert_tokens_to_ids(PADS)) & (batch.segments[0] > 0)
    assert (pads == (index >= 0)).all() and sorted(index[pads]) == list(range(pads.sum()))
    starts = np.flatnonzero(pads & ~np.concatenate([[False], pads[:-1]]))
    assert [grey_of(batch, 0, at) for at in starts] == [0, 20, 200, 30, 50]
    text = tokenizer.decode(tokens[batch.segments[0] > 0])
    times = re.findall(r"(<[0-9.]+ seconds>)<\|vision_start\|><\|video_pad\|>", text)
    assert times == ["<0.2 seconds>", "<1.2 seconds>", "<0.2 seconds>", "<1.0 seconds>"]
    supervised = batch.targets[0][batch.loss_weights[0] > 0]
    assert sorted(tokenizer.decode(supervised).split("<|im_end|>")) == ["", "a red circle", "two blue squares"]
