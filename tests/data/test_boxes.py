"""Boxes in texts, found and rewritten from the coordinates of the data to those of the model."""

import pytest

from jaxvlm.data.records import Record, Turn
from jaxvlm.data.text.boxes import SPACES, boxes_of, find_boxes, is_outside, rewrite
from jaxvlm.media import Size

OLD = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
NEW = '[{"bbox_2d": [64, 96, 320, 240], "label": "cat 12"}, {"point_2d": [10.5, 20], "label": "dog"}]'


def record(*texts, images=1):
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return Record("1", turns, ("a.png",) * images, "test")


def test_both_forms_are_found():
    assert [box.numbers for box in find_boxes(OLD)] == [(100, 200, 300, 400)]
    assert [box.numbers for box in find_boxes(NEW)] == [(64, 96, 320, 240), (10.5, 20)]
    assert find_boxes("the box (1,2),(3,4) and [1, 2, 3, 4] are text") == []
    assert find_boxes('"bbox_2d": [1, 2, 3]') == []


def test_pixels_of_the_original_become_thousandths():
    answer = (
        rewrite(record("<image>\nwhere?", NEW), [Size(480, 640)], "pixels", lambda size: (1000, 1000)).turns[1].text
    )
    assert answer == NEW.replace("64, 96, 320, 240", "100, 200, 500, 500").replace("10.5, 20", "16, 42")


def test_thousandths_become_pixels_of_the_resized_image():
    found = rewrite(record("<image>\nwhere?", OLD), [Size(480, 640)], "thousandths", lambda size: (644, 476))
    assert found.turns[1].text == OLD.replace("(100,200),(300,400)", "(64,95),(193,190)")
    assert (
        rewrite(record("<image>\nhi", "hello"), [Size(9, 9)], "pixels", SPACES["thousandths"]).turns[1].text == "hello"
    )


def test_fractions():
    found = rewrite(
        record("where?", '{"bbox_2d": [0.25, 0.5, 1, 1.0]}'), [Size(5, 7)], "fractions", lambda size: (1000, 1000)
    )
    assert found.turns[1].text == '{"bbox_2d": [250, 500, 1000, 1000]}'


def test_a_box_is_on_the_image_before_it():
    made = record(f"<image> a <image> b {OLD}", OLD, f"{OLD} <image>", OLD, images=3)
    assert [(turn, image) for turn, image, _ in boxes_of(made)] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    sizes = [Size(100, 100), Size(200, 400), Size(50, 50)]
    texts = [turn.text for turn in rewrite(made, sizes, "thousandths", lambda size: (size.width, size.height)).turns]
    assert "(40,40),(120,80)" in texts[1] and "(5,10),(15,20)" in texts[3]


@pytest.mark.parametrize(("numbers", "outside"), [("1,2),(3,4", False), ("1,2),(3,1001", True), ("-1,2),(3,4", True)])
def test_a_box_outside_of_the_image(numbers, outside):
    (box,) = find_boxes(f"<|box_start|>({numbers})<|box_end|>")
    assert is_outside(box, (1000, 1000)) == outside
