"""Boxes in texts, found and rewritten from the coordinates of the data to those of the model."""

import dataclasses

import pytest

from jaxvlm.data.records import Record, Turn
from jaxvlm.data.text.boxes import boxes_of, count_boxes, find_boxes, is_outside, rewrite, shares
from jaxvlm.media import Size

OLD = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
NEW = '[{"bbox_2d": [64, 96, 320, 240], "label": "cat 12"}, {"point_2d": [10.5, 20], "label": "dog"}]'


class Layout:
    """What boxes need of a layout: the space of the model's coordinates, and the size of what it gets."""

    def __init__(self, space):
        self.space = space

    def box_space(self, size):
        return self.space(size)

    def resized(self, size):
        return 2 * size.width, size.height // 2


THOUSANDTHS = Layout(lambda size: (1000, 1000))


def record(*texts, images=1):
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return Record("1", turns, ("a.png",) * images, "test")


def test_both_forms_are_found():
    assert [box.numbers for box in find_boxes(OLD)] == [(100, 200, 300, 400)]
    assert [box.numbers for box in find_boxes(NEW)] == [(64, 96, 320, 240), (10.5, 20)]
    assert find_boxes("the box (1,2),(3,4) and [1, 2, 3, 4] are text") == []
    assert find_boxes('"bbox_2d": [1, 2, 3]') == []


def test_pixels_of_the_original_become_thousandths():
    made = record("<image>\nwhere?", NEW)
    answer = rewrite(made, [Size(480, 640)], "pixels", THOUSANDTHS).turns[1].text
    assert answer == NEW.replace("64, 96, 320, 240", "100, 200, 500, 500").replace("10.5, 20", "16, 42")


def test_thousandths_become_pixels_of_the_resized_image():
    made, layout = record("<image>\nwhere?", OLD), Layout(lambda size: (644, 476))
    found = rewrite(made, [Size(480, 640)], "thousandths", layout)
    assert found.turns[1].text == OLD.replace("(100,200),(300,400)", "(64,95),(193,190)")
    assert shares(found, [Size(480, 640)], layout) == [(0, [64 / 644, 95 / 476, 193 / 644, 190 / 476])]
    assert rewrite(record("hi", "hello", images=0), [], "pixels", layout).turns[1].text == "hello"


def test_pixels_of_the_resized_image_become_thousandths():
    made = record("<image>\nwhere?", '{"point_2d": [64, 30]}')
    assert rewrite(made, [Size(120, 64)], "resized", THOUSANDTHS).turns[1].text == '{"point_2d": [500, 500]}'


def test_fractions():
    found = rewrite(record("where?", '{"bbox_2d": [0.25, 0.5, 1, 1.0]}'), [Size(5, 7)], "fractions", THOUSANDTHS)
    assert found.turns[1].text == '{"bbox_2d": [250, 500, 1000, 1000]}'


def test_the_rejected_answer_of_a_pair_is_rewritten_too():
    made = dataclasses.replace(record("<image>\nwhere?", OLD), rejected=OLD)
    found = rewrite(made, [Size(100, 200)], "thousandths", Layout(lambda size: (size.width, size.height)))
    assert found.rejected == found.turns[1].text == OLD.replace("(100,200),(300,400)", "(20,20),(60,40)")


def test_a_box_is_on_the_image_before_it():
    made = record(f"<image> a <image> b {OLD}", OLD, f"{OLD} <image>", OLD, images=3)
    assert [(turn, image) for turn, image, _ in boxes_of(made)] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    sizes = [Size(100, 100), Size(200, 400), Size(50, 50)]
    layout = Layout(lambda size: (size.width, size.height))
    texts = [turn.text for turn in rewrite(made, sizes, "thousandths", layout).turns]
    assert "(40,40),(120,80)" in texts[1] and "(5,10),(15,20)" in texts[3]


@pytest.mark.parametrize(("numbers", "outside"), [("1,2),(3,4", False), ("1,2),(3,1001", True), ("-1,2),(3,4", True)])
def test_a_box_outside_of_the_image(numbers, outside):
    text = f"<|box_start|>({numbers})<|box_end|>"
    (box,) = find_boxes(text)
    assert is_outside(box, (1000, 1000)) == outside
    assert count_boxes(record("where?", text), [Size(9, 9)], "thousandths", THOUSANDTHS) == (1, int(outside))
