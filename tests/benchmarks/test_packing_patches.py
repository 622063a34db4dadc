"""The benchmark of rows with two budgets runs, and its goals hold for fewer samples."""

import pytest

from tests.benchmarks import packing_patches


@pytest.mark.nightly  # tests/data/test_packing.py has both budgets
def test_rows_of_photographs_and_of_a_mixture_are_full():
    lines = packing_patches.main(["--samples", "4000"])
    at = {(line["kind"], line["mix"], line["patches"]): line for line in lines}
    coco, mixture = at["qwen2_vl", "coco", 12288], at["qwen2_vl", "mixture", 12288]
    assert coco["filled"] >= 0.95 and coco["in_use"] >= 0.75
    assert mixture["filled"] >= 0.95 and mixture["in_use"] >= 0.90
    assert min(line["cost"] for line in lines) == 1.0
