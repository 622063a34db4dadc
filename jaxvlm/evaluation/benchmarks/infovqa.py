"""InfographicVQA: questions on infographics, scored by ANLS as DocVQA.

Source: arXiv:2104.12756; lmms-eval 0.7.3, tasks/infovqa; VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py.
"""

from jaxvlm.evaluation.benchmarks.docvqa import DocVqa


class InfoVqa(DocVqa):
    """InfographicVQA in the dialects of DocVQA."""

    name = "infovqa"
    title = "InfographicVQA"
    about = "questions on infographics"
    files = """val   infographicsVQA_val_v1.0_withQT.json or infographicsVQA_val_v1.0.json, infographicsvqa_images/*;
      or InfographicVQA/validation-*.parquet of lmms-lab-encoder/DocVQA
test  infographicsVQA_test_v1.0.json, infographicsvqa_images/*; or InfographicVQA/test-*.parquet"""
    source = "https://www.docvqa.org/datasets/infographicvqa, or lmms-lab-encoder/DocVQA on Hugging Face"
    splits = {"val": 2_801, "test": 0}
    layouts = {
        "val": {
            "official": {"questions": ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json")},
            "parquet": {"rows": ("InfographicVQA/validation-*.parquet", "data/validation-*.parquet")},
        },
        "test": {
            "official": {"questions": "infographicsVQA_test_v1.0.json"},
            "parquet": {"rows": ("InfographicVQA/test-*.parquet", "data/test-*.parquet")},
        },
    }
    image_folders = ("infographicsvqa_images", "images", "")
    group_keys = {"answer type": "answer_type", "operation": "operation/reasoning"}
