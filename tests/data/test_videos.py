"""Records with videos: their keys, their order among images, and what a family does that takes them or not."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.media.video import read_frames
from jaxvlm.data.records import Record, RecordError, Turn, answer_by_answer
from jaxvlm.data.rows.pipeline import build_pipeline, open_samples
from jaxvlm.data.rows.prepare import prepare
from jaxvlm.data.rows.samples import shuffle_turns
from jaxvlm.data.sources.formats import OPENAI, SHAREGPT, Alpaca, AnyChat, Document, ImageRule, make_record
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.sources.mix import load_mix
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.data.text.turns import check_turns, drop_last_question
from jaxvlm.errors import UserError
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.inference.prompts import build_prompts
from jaxvlm.inspect.page import page_rows, write_page
from jaxvlm.media import MediaError, MediaExtent, Size, Video
from tests import videos
from tests.data.conftest import conversation, data_config
from tests.data.test_prepare import inline  # noqa: F401
from tests.layouts import GREY, slots

RULE = ImageRule(Path("/data"))
A, B = Video("/data/a.mp4"), Video("/data/b.mp4")
FRAMES = Video(("/data/0.jpg", "/data/1.jpg"))


class VideoSlots(ImageSlots):
    """Image slots that take a video as its first and its last frame, a slot each."""

    takes_videos = True

    def measure(self, size):
        extent = super().measure(size)
        return MediaExtent(2 * extent.positions, 2) if size.is_video else extent

    def load(self, source, origin, *, exact):
        if not isinstance(source, Video):
            return super().load(source, origin, exact=exact)[None]
        frames = read_frames(source, [0, read_size(source, origin).frames - 1], origin)
        return np.stack([np.asarray(Image.fromarray(frame).resize((self.image_size,) * 2)) for frame in frames])

    def blank(self, size):
        return np.stack([super().blank(size)] * (2 if size.is_video else 1))

    def units_of(self, loaded):
        return len(loaded)

    def write(self, media, row, at, loaded):
        return np.concatenate([super(VideoSlots, self).write(media, row, at + k, x) for k, x in enumerate(loaded)])

    def store(self, source, origin, jpeg):
        def png(pixels):
            return Image.fromarray(pixels)._repr_png_()

        kept = tuple(map(png, self.load(source, origin, exact=False)))
        return Video(kept, 2 / read_size(source, origin).seconds) if isinstance(source, Video) else kept[0]


def read(item, format=None):
    return make_record(item, "f.json[0]", format or AnyChat(), RULE)


def chat(*texts, **keys):
    return {"conversations": conversation(*(texts or ("Who?", "I."))), **keys}


def refused(item, format=None):
    with pytest.raises(RecordError) as caught:
        check_turns(read(item, format))
    return caught.value.reason, str(caught.value)


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["video", "videos", "video_path", "video_paths", "video_file"])
def test_a_video_under_any_of_its_names(key):
    record = read(chat("<video>\nWho?", "I.", **{key: "a.mp4"}))
    assert record.images == (A,) and record.notes == ()


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a.mp4", [A]),
        (["a.mp4", "b.mp4"], [A, B]),
        (b"bytes", [Video(b"bytes")]),
        ({"bytes": b"bytes", "path": "a.mp4"}, [Video(b"bytes")]),
        ([{"bytes": None, "path": "a.mp4"}], [A]),
        (["0.jpg", "1.jpg"], [FRAMES]),
        ([["0.jpg", "1.jpg"], "a.mp4"], [FRAMES, A]),
        ([["0.jpg", "1.jpg"]] * 2, [FRAMES, FRAMES]),
        ("a.gif", [Video("/data/a.gif")]),
        (["a.gif", "b.gif"], [Video("/data/a.gif"), Video("/data/b.gif")]),
        ("data:video/mp4;base64,AAAA", [Video(b"\0\0\0")]),
        (None, []),
        ([], []),
    ],
)
@pytest.mark.parametrize("key", ["video", "videos"])
def test_the_forms_of_a_video(key, value, expected):
    placeholders = "<video>" * len(expected)
    assert read(chat(f"{placeholders}Who?", "I.", **{key: value})).images == tuple(expected)


@pytest.mark.parametrize("key", ["fps", "video_fps", "sample_fps"])
def test_the_rate_of_a_list_of_frames(key):
    record = read(chat("<video>Who?", "I.", video=["0.jpg", "1.jpg"], **{key: 4}))
    assert record.images == (dataclasses.replace(FRAMES, fps=4.0),) and record.notes == ()
    record = read(chat("<video><video>Who?", "I.", videos=[["0.jpg", "1.jpg"], "a.mp4"], **{key: [0.5, 9]}))
    assert record.images == (dataclasses.replace(FRAMES, fps=0.5), A)
    # A file has a rate of its own; there the key chooses frames, which the recipe does here.
    assert read(chat("<video>Who?", "I.", video="a.mp4", **{key: 4})).notes == (f'key "{key}"',)


@pytest.mark.parametrize("rate", [0, -1, "2", True, [1, 2], float("nan"), float("inf")])
def test_a_rate_that_is_none(rate):
    reason, message = refused(chat("<video>Who?", "I.", video=["0.jpg", "1.jpg"], fps=rate))
    assert reason == "wrong_type" and '"fps" is frames a second' in message


def test_one_video_without_a_placeholder_comes_first():
    assert read(chat(video="a.mp4")).turns[0].text == "<video>\nWho?"
    assert read(chat(video=["0.jpg", "1.jpg"])).turns[0].text == "<video>\nWho?"


@pytest.mark.parametrize(
    "video, reason",
    [
        ("http://host/a.mp4", "video_url"),
        ("../a.mp4", "video_outside"),
        (["0.jpg", "/etc/1.jpg"], "image_outside"),
        ("a\0.mp4", "video_path"),
        ("a\ud800.mp4", "invalid_unicode"),
        ("data:video/mp4;base64,A", "video_base64"),
        (3, "wrong_type"),
        (["a.mp4", None], "wrong_type"),
        ([["0.jpg", 3]], "wrong_type"),
    ],
)
def test_a_video_that_is_refused(video, reason):
    assert refused(chat("<video>Who?", "I.", video=video))[0] == reason


def test_videos_under_two_names():
    reason, message = refused(chat("<video>Who?", "I.", video="a.mp4", videos=["b.mp4"]))
    assert reason == "several_video_keys" and '"video" and "videos"' in message


def test_a_document_beside_a_video():
    reason, message = refused({"text": "A film.", "video": "a.mp4"}, Document())
    assert reason == "images_unread" and '"video"' in message


# --- order and placeholders -----------------------------------------------------------------------------------------


def test_images_and_videos_are_in_the_order_of_their_placeholders():
    keys = {"images": ["1.png", "2.png"], "videos": ["a.mp4", "b.mp4"]}
    record = read(chat("<video>A<image>?", "I.", "<image>B<video>?", "You.", **keys))
    assert record.images == (A, "/data/1.png", "/data/2.png", B)
    check_turns(record)


@pytest.mark.parametrize(
    "item, words",
    [
        (chat("<video><video>Who?", "I.", video="a.mp4"), "0 <image> and 2 <video> for 0 images and 1 videos"),
        (chat("<image>Who?", "I.", video="a.mp4"), "1 <image> and 0 <video> for 0 images and 1 videos"),
        (
            chat("<image><video>Who?", "I.", images=["1.png", "2.png"], video="a.mp4"),
            "1 <image> and 1 <video> for 2 images and 1 videos",
        ),
        (chat("<video>Who?", "I.", image="1.png"), "0 <image> for 1 images"),
    ],
)
def test_a_contradiction_is_one_error_with_numbers(item, words):
    reason, message = refused(item)
    assert reason in ("video_count", "image_count") and words in message


def test_kinds_in_another_order():
    record = Record("r", (Turn("user", "<image><video>"), Turn("assistant", "I.")), (A, "1.png"), "o")
    with pytest.raises(RecordError, match="placeholder 0 of the user turns is <image> and its medium one of <video>"):
        check_turns(record)


def test_the_tag_is_text_where_there_is_no_video():
    record = read(chat("What does <video> do in HTML?", "It plays a film."))
    check_turns(record)
    assert record.images == () and "the record has no video" in record.notes[0]
    assert read(chat("<video>Who?", "In <video>.", video="a.mp4")).notes == ()


def test_parts_of_a_record_keep_their_videos():
    keys = {"images": ["1.png"], "videos": ["a.mp4", "b.mp4"]}
    record = read(chat("<video>A?", "I.", "<image>B<video>?", "You.", **keys))
    assert [part.images for part in answer_by_answer(record)] == [(A,), (A, "/data/1.png", B)]
    asked = dataclasses.replace(record, turns=record.turns[:-1])
    assert drop_last_question(asked).images == (A,)


def test_a_video_moves_with_shuffled_rounds():
    class Backwards:
        def shuffle(self, rounds):
            rounds.reverse()

    record = read(chat("<video>\nA?", "I.", "B?", "You.", video="a.mp4"))
    assert [turn.text for turn in shuffle_turns(record, Backwards()).turns] == ["<video>\nB?", "You.", "A?", "I."]


# --- formats --------------------------------------------------------------------------------------------------------


def messages(*parts, answer="I.", **keys):
    user = {"role": "user", "content": list(parts)}
    return {"messages": [user, {"role": "assistant", "content": answer}], **keys}


WHO = {"type": "text", "text": "Who?"}


@pytest.mark.parametrize(
    "part, expected",
    [
        ({"type": "video", "video": "a.mp4"}, A),
        ({"type": "video", "path": "a.mp4"}, A),
        ({"type": "video", "video": ["0.jpg", "1.jpg"], "fps": 2}, FRAMES),
        ({"type": "video", "video": ["0.jpg", "1.jpg"], "sample_fps": 1}, dataclasses.replace(FRAMES, fps=1.0)),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, A),
        ({"type": "video_url", "video_url": "a.mp4"}, A),
        ({"type": "video", "video": {"bytes": b"x", "path": None}}, Video(b"x")),
    ],
)
def test_a_video_in_a_part_of_a_message(part, expected):
    record = read(messages(part, WHO))
    assert record.images == (expected,) and record.turns[0].text == "<video>Who?" and record.notes == ()


def test_settings_in_a_part_are_told():
    record = read(messages({"type": "video", "video": "a.mp4", "fps": 1.0, "max_pixels": 50176}, WHO))
    assert record.notes == ('key "fps" of a video', 'key "max_pixels" of a video')


def test_parts_without_files_stand_for_those_of_the_keys():
    parts = [{"type": "image"}, {"type": "video"}, WHO, {"type": "video", "video": "b.mp4"}]
    record = read(messages({"type": "video", "video": "a.mp4"}, *parts[2:], images=[], videos=[]))
    assert record.images == (A, B)
    record = read(messages(*parts[:3], images=["1.png"], videos=["a.mp4"]))
    assert record.images == ("/data/1.png", A) and record.turns[0].text == "<image><video>Who?"


@pytest.mark.parametrize(
    "item, reason, words",
    [
        (messages({"type": "video_url"}, WHO), "wrong_type", "has none"),
        (messages({"type": "video", "video": 3}, WHO), "wrong_type", '"video" is a path'),
        (messages(WHO, answer=[{"type": "video", "video": "a.mp4"}]), "unsupported", "a video of the assistant"),
        (messages({"type": "audio"}, WHO), "unsupported", "cannot be trained on"),
    ],
)
def test_a_part_that_is_refused(item, reason, words):
    found, message = refused(item)
    assert found == reason and words in message


@pytest.mark.parametrize(
    "format, item",
    [
        (dataclasses.replace(SHAREGPT, videos="videos"), chat("<video>Who?", "I.", videos=["a.mp4"])),
        (Alpaca(videos="videos"), {"instruction": "<video>Who?", "output": "I.", "videos": ["a.mp4"]}),
        (dataclasses.replace(OPENAI, videos="v"), messages({"type": "text", "text": "<video>Who?"}, v=["a.mp4"])),
    ],
)
def test_videos_of_llama_factory(format, item):
    assert read(item, format).images == (A,)
    if "videos" in item:
        reason, message = refused(item, dataclasses.replace(format, videos=None))
        assert reason == "videos_unread" and "columns.videos names no key to read" in message


def test_a_column_of_dataset_info(tmp_path):
    rows = [{"conversations": conversation("<video><image>Who?", "I."), "v": [["0.jpg"]], "i": ["1.png"]}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "videos": "v", "images": "i"}
    entry = {"mine": {"file_name": "d.json", "formatting": "sharegpt", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    (record,) = load_source(f"{tmp_path}/dataset_info.json:mine")
    assert record.images == (Video((f"{tmp_path}/0.jpg",)), f"{tmp_path}/1.png")


def test_a_column_of_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "question": ["<video>Who?", "<video>Who?"],
        "answer": ["I.", "You."],
        "videos": [[["0.jpg", "1.jpg"]], [["1.jpg"]]],
        "fps": [4.0, 1.0],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "d.parquet")
    source = load_source(str(tmp_path / "d.parquet"))
    assert [record.images[0].fps for record in source] == [4.0, 1.0]
    assert source[0].images[0].source == (f"{tmp_path}/0.jpg", f"{tmp_path}/1.jpg") and source[0].notes == ()


def test_the_id_of_a_record_without_one_follows_from_its_videos():
    ids = {read(chat("<video>Who?", "I.", video=video)).id for video in ("a.mp4", "b.mp4", ["0.jpg"])}
    assert len(ids) == 3
    image = read(chat("<image>Who?", "I.", image="1.png")).id
    assert image == "content:7362b6b4aa22d0af"  # as before there were videos: the held-out set stays the same


# --- index, rows and layouts ----------------------------------------------------------------------------------------


def write_videos(folder, **more):
    (folder / "a.mp4").write_bytes(videos.video(10, 5))
    Image.fromarray(videos.frame(3)).save(folder / "1.png")
    records = [
        {"id": "0", "video": "a.mp4", **chat("<video>\nwhat is the circle", "red")},
        {"id": "1", "video": "a.mp4", "image": "1.png", **chat("<image> and <video>", "two dots")},
        {"id": "2", **chat("what is red", "a dot")},
        *more.values(),
    ]
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json"


def pipeline(path, tokenizer, layout, **changes):
    return build_pipeline(data_config(path, images=4, **changes), tokenizer, layout=layout, rows=2, seed=0)


def test_a_layout_takes_videos(tmp_path, tokenizer):
    made = pipeline(write_videos(tmp_path), tokenizer, VideoSlots(16, 4, GREY, "pad"), pack=False)
    batches = made.batches()
    found = {}
    for number in range(2):
        batch, records = made.look_up(number)
        for row, (record,) in enumerate(records):
            found[record["id"]] = batch, row, record
    batches.close()
    batch, row, record = found["1"]
    assert record["images"] == [f"{tmp_path}/1.png", f"{tmp_path}/a.mp4"]
    assert batch.image_index[row][batch.image_index[row] >= 0].tolist() == list(range(12))
    levels = [videos.number_of(pixels)[0] for pixels in batch.media.pixels[row, 1:3]]
    assert levels == [0, 9]  # the first and the last frame
    assert found["2"][0].image_index[found["2"][1]].max() == -1


def test_sizes_of_videos_in_the_index(tmp_path, tokenizer):
    samples = open_samples(data_config(write_videos(tmp_path)), tokenizer, VideoSlots(16, 4, GREY, "pad"))
    assert samples.inspect(1).sizes == (Size(48, 64), Size(48, 64, 10, 5))
    hashes = {samples.inspect(number).image_hashes[-1] for number in (0, 1)}
    assert len(hashes) == 1  # the same file


def test_a_layout_without_videos_refuses_each_record_by_name(tmp_path, tokenizer):
    layout = slots(16, 4)
    with pytest.raises(MediaError, match="does not take|do not take") as caught:
        layout.extent(Size(48, 64, 10, 5))
    assert caught.value.reason == "video_not_supported"
    path = write_videos(tmp_path)
    with pytest.raises(UserError, match=r"2 of 3 records break a rule \(2 video_not_supported\)") as caught:
        pipeline(path, tokenizer, layout)
    assert f"{path}[0]: it has a video" in str(caught.value) and "leave such records out" in str(caught.value)
    made = pipeline(path, tokenizer, layout, on_bad="skip")
    assert made.ledger(1).counts["rejected"] == {"video_not_supported": 2}


def test_a_broken_video_is_one_line_of_the_ledger(tmp_path, tokenizer):
    (tmp_path / "broken.mp4").write_bytes(videos.video()[:500])
    bad = {"id": "3", "video": "broken.mp4", **chat("<video>\nwhat", "a dot")}
    gone = {"id": "4", "video": "gone.mp4", **chat("<video>\nwhat", "a dot")}
    path = write_videos(tmp_path, bad=bad, gone=gone)
    layout = VideoSlots(16, 4, GREY, "pad")
    with pytest.raises(UserError, match=r"\(1 video_broken, 1 video_missing\)"):
        pipeline(path, tokenizer, layout)
    made = pipeline(path, tokenizer, layout, on_bad="skip")
    assert made.ledger(3).counts["rejected"] == {"video_broken": 1, "video_missing": 1}


def test_a_video_that_changes_after_the_index(tmp_path, tokenizer):
    path = write_videos(tmp_path)
    made = pipeline(path, tokenizer, VideoSlots(16, 4, GREY, "pad"), on_bad="skip", pack=False)
    (tmp_path / "a.mp4").write_bytes(b"no more")
    batches = made.batches()
    for _ in range(2):
        next(batches)
    batches.close()
    assert set(batches.broken.values()) == {"video_broken"} and len(batches.broken) == 2


def test_a_question_about_a_video_to_a_model_without(tmp_path, tokenizer):
    (tmp_path / "a.mp4").write_bytes(videos.video())
    record = Record("r", (Turn("user", "<video>\nWho?"),), (Video(str(tmp_path / "a.mp4")),), "question 1")
    renderer = Renderer(tokenizer, "vicuna_v1", image_token_id=image_token_id(tokenizer))
    with pytest.raises(UserError, match="question 1: it has a video"):
        build_prompts(renderer, [record], slots(16, 4), 64)
    (prompt,) = build_prompts(renderer, [record], VideoSlots(16, 4, GREY, "pad"), 256)
    assert prompt.media == MediaExtent(8, 2)


def test_prepared_videos_are_their_frames(tmp_path, tokenizer, inline):  # noqa: F811
    (tmp_path / "raw").mkdir()
    path, layout, out = write_videos(tmp_path / "raw"), VideoSlots(16, 4, GREY, "pad"), tmp_path / "out"
    prepare(load_mix(data_config(path)), {}, layout, out, jpeg=0, shard_records=2, skip=False)
    kept = load_source(str(out))[0].images[0]
    assert kept.is_list and read_size(kept) == Size(16, 16, 2, 1)
    rows = [pipeline(source, tokenizer, layout, pack=False).look_up(0)[0] for source in (path, out)]
    np.testing.assert_array_equal(rows[0].media.pixels, rows[1].media.pixels)
    np.testing.assert_array_equal(rows[0].tokens, rows[1].tokens)


def test_a_page_shows_the_frames_of_a_video(tmp_path, tokenizer):
    path, layout = write_videos(tmp_path), VideoSlots(16, 4, GREY, "pad")
    made = pipeline(path, tokenizer, layout)
    batch, records = made.look_up(0)
    assert sorted(tuple(record["features"]) for row in records for record in row) == [(), (4, 8), (8,)]
    counts = write_page(tmp_path / "page.html", page_rows(batch, records, layout), tokenizer, title="rows")
    page = (tmp_path / "page.html").read_text()
    assert counts and page.count("<figure") == 5 and "its record" not in page
    captions = re.findall(r"<figcaption.*?<br>(.*?)</figcaption>", page)
    assert sorted(captions) == [f"{tmp_path}/1.png"] + 4 * [f"{tmp_path}/a.mp4"]
