"""Invented files of the free-answer benchmarks, in the layouts that are in circulation."""

import functools
import io
import json

import numpy as np
from PIL import Image

SHORT = "Answer the question using a single word or phrase."


@functools.cache
def jpeg(number):
    """The bytes of a small image, another one for each number."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 40 * number + 10, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def put_images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))


def put_json(path, content, *, mark=False):
    """A JSON file, with `mark` as Windows programs write it: BOM and CRLF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() if mark else text.encode())


def put_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in rows))


def put_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def cell(number):
    """An image as Hugging Face stores it."""
    return {"bytes": jpeg(number), "path": f"{number}.jpg"}


def ten(*texts):
    """Ten answers as VQA has them; the last text fills up."""
    filled = [*texts, *[texts[-1]] * (10 - len(texts))]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(filled, 1)]


# ---- VQAv2

VQAV2 = [
    {"image_id": 42, "question_id": 420, "question": "What color is the dog?"},
    {"image_id": 42, "question_id": 421, "question": "Is it well-lit?"},
    {"image_id": 73, "question_id": 730, "question": "How many?"},
]
VQAV2_ANSWERS = [
    {"question_type": "what color is the", "answer_type": "other", "answers": ten("tan", "brown", "Brown.", "brown")},
    {"question_type": "is it", "answer_type": "yes/no", "answers": ten("yes")},
    {"question_type": "how many", "answer_type": "number", "answers": ten("2", "two", "2", "two", "2")},
]
for _question, _answer in zip(VQAV2, VQAV2_ANSWERS, strict=True):
    _answer |= {"question_id": _question["question_id"], "image_id": _question["image_id"]}


def vqav2_official(folder):
    put_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": VQAV2}, mark=True)
    put_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": VQAV2_ANSWERS[::-1]})
    put_images(folder, *(f"val2014/COCO_val2014_0000000000{n}.jpg" for n in (42, 73)))


def vqav2_parquet(folder):
    images = {42: cell(0), 73: cell(1)}
    rows = [q | a | {"image": images[q["image_id"]]} for q, a in zip(VQAV2, VQAV2_ANSWERS, strict=True)]
    put_parquet(folder / "data" / "validation-00000-of-00002.parquet", rows[:2])
    put_parquet(folder / "data" / "validation-00001-of-00002.parquet", rows[2:])


def vqav2_test(folder):
    rows = [
        {
            "question_id": q["question_id"],
            "image": f"COCO_test2015_{q['image_id']:012d}.jpg",
            "text": f"{q['question']}\n{SHORT}",
            "category": "default",
        }
        for q in VQAV2
    ]
    put_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows[:2])
    put_lines(folder / "llava_vqav2_mscoco_test2015.jsonl", rows)
    put_images(folder, *(f"test2015/COCO_test2015_0000000000{n}.jpg" for n in (42, 73)))


# ---- GQA

GQA = {
    "201": {"imageId": "n1", "question": "Who is wearing a hat?", "answer": "man"},
    "202": {"imageId": "n1", "question": "Is the sky blue?", "answer": "yes"},
    "203": {"imageId": "n2", "question": "Is the cat left of the dog?", "answer": "no"},
}
for _row, _kinds in zip(GQA.values(), [("query", "rel"), ("verify", "attr"), ("verify", "rel")], strict=True):
    _row |= {"fullAnswer": "", "isBalanced": True, "types": dict(zip(["structural", "semantic"], _kinds, strict=True))}
    _row |= {"groups": {"global": "person" if _kinds[0] == "query" else None, "local": "1"}}


def gqa_official(folder):
    put_json(folder / "testdev_balanced_questions.json", GQA, mark=True)
    put_images(folder, "images/n1.jpg", "images/n2.jpg")


def gqa_parquet(folder):
    rows = [{"id": name} | row for name, row in GQA.items()]
    put_parquet(folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    images = [{"id": f"n{n + 1}", "image": cell(n)} for n in range(2)]
    put_parquet(folder / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images)


# ---- TextVQA

TEXTVQA = [
    {"question_id": 34602, "image_id": "003a8ae2", "question": "what is the brand of this camera?"},
    {"question_id": 34603, "image_id": "003a8ae2", "question": "What does it say, at the top?"},
    {"question_id": 34604, "image_id": "0054c91b", "question": "what number is on the jersey"},
]
TEXTVQA_ANSWERS = [["nous les gosses", "dakota"] + ["dakota"] * 8, ["clos culombu"] * 10, ["22"] * 9 + ["unanswerable"]]
TEXTVQA_TOKENS = [["DAKOTA", "DIGITAL"], [], ["22", "a,b"]]


def textvqa_llava(folder):
    textvqa_official(folder)
    rows = [
        {
            "question_id": row["image_id"],
            "image": f"{row['image_id']}.jpg",
            "text": f"{row['question']}\nReference OCR token: {', '.join(tokens)}\n{SHORT}",
            "category": "default",
        }
        for row, tokens in zip(TEXTVQA, TEXTVQA_TOKENS, strict=True)
    ]
    put_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)


def textvqa_official(folder):
    rows = [row | {"answers": answers} for row, answers in zip(TEXTVQA, TEXTVQA_ANSWERS, strict=True)]
    put_json(folder / "TextVQA_0.5.1_val.json", {"data": rows, "dataset_type": "val"}, mark=True)
    put_images(folder, "train_images/003a8ae2.jpg", "train_images/0054c91b.jpg")


def textvqa_parquet(folder):
    rows = [
        row | {"answers": answers, "ocr_tokens": tokens, "image": cell(int(row["question_id"] == 34604))}
        for row, answers, tokens in zip(TEXTVQA, TEXTVQA_ANSWERS, TEXTVQA_TOKENS, strict=True)
    ]
    put_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)


# ---- VizWiz

VIZWIZ = [
    {"image": f"VizWiz_val_0000000{n}.jpg", "question": question, "answer_type": kind, "answerable": int(n < 2)}
    for n, (question, kind) in enumerate(
        [("What is this? please", "other"), ("is it red", "yes/no"), ("Hello?", "unanswerable")]
    )
]
VIZWIZ_ANSWERS = [["soda can", "coke"] + ["coke"] * 8, ["Yes"] * 10, ["unanswerable"] * 10]


def vizwiz_official(folder):
    answers = [[{"answer": text, "answer_confidence": "maybe"} for text in texts] for texts in VIZWIZ_ANSWERS]
    rows = [row | {"answers": given} for row, given in zip(VIZWIZ, answers, strict=True)]
    put_json(folder / "Annotations" / "val.json", rows, mark=True)
    put_images(folder, *(f"val/{row['image']}" for row in VIZWIZ))


def vizwiz_parquet(folder):
    rows = [
        {
            "question_id": row["image"].removesuffix(".jpg"),
            "question": row["question"],
            "category": row["answer_type"],
            "answers": answers,
            "image": cell(n),
        }
        for n, (row, answers) in enumerate(zip(VIZWIZ, VIZWIZ_ANSWERS, strict=True))
    ]
    put_parquet(folder / "data" / "val-00000-of-00001.parquet", rows)


def vizwiz_test(folder):
    sentences = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    rows = [
        {"question_id": f"VizWiz_test_{n}", "image": f"VizWiz_test_{n}.jpg", "text": f"What?\n{sentences}"}
        for n in range(2)
    ]
    put_lines(folder / "llava_test.jsonl", rows)
    put_images(folder, *(f"test/{row['image']}" for row in rows))


# ---- ChartQA

CHARTQA = [
    ("human_test", {"imgname": "1.png", "query": "How many bars?", "label": "3"}),
    ("human_test", {"imgname": "2.png", "query": "Is it up?", "label": "Yes"}),
    ("augmented_test", {"imgname": "1.png", "query": "What share in 2010?", "label": "14.5%"}),
]


def chartqa_official(folder):
    for half in ("human", "augmented"):
        rows = [row for kind, row in CHARTQA if kind == f"{half}_test"]
        put_json(folder / "test" / f"test_{half}.json", rows, mark=True)
    put_images(folder, "test/png/1.png", "test/png/2.png")


def chartqa_parquet(folder):
    rows = [
        {"type": kind, "question": row["query"], "answer": row["label"], "image": cell(int(row["imgname"] == "2.png"))}
        for kind, row in CHARTQA
    ]
    put_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


# ---- DocVQA and InfographicVQA

DOCVQA = [
    {
        "questionId": 337,
        "question": "What is the date?",
        "question_types": ["layout", "form"],
        "answers": ["1/8/93", "93"],
    },
    {"questionId": 338, "question": "Who signed?", "question_types": ["handwritten"], "answers": ["P. Carter"]},
    {"questionId": 339, "question": "What is the total?", "question_types": ["table/list"], "answers": ["$ 5"]},
]


def docvqa_official(folder):
    names = ["documents/a_1.png", "documents/a_1.png", "documents/b_2.png"]
    rows = [row | {"image": name, "docId": 7} for row, name in zip(DOCVQA, names, strict=True)]
    put_json(folder / "val_v1.0_withQT.json", {"dataset_name": "x", "data": rows}, mark=True)
    put_json(folder / "test_v1.0.json", {"data": [{k: v for k, v in row.items() if k != "answers"} for row in rows]})
    put_images(folder, *dict.fromkeys(names))


def docvqa_parquet(folder):
    rows = [row | {"questionId": str(row["questionId"]), "image": cell(int(n == 2))} for n, row in enumerate(DOCVQA)]
    put_parquet(folder / "DocVQA" / "validation-00000-of-00001.parquet", rows)


def infovqa_official(folder):
    names = ["1.jpeg", "1.jpeg", "2.jpeg"]
    rows = [
        {
            "questionId": row["questionId"],
            "question": row["question"],
            "answers": row["answers"],
            "image_local_name": name,
        }
        | {"answer_type": ["single span"], "operation/reasoning": ["counting"] if name == "2.jpeg" else ["none"]}
        for row, name in zip(DOCVQA, names, strict=True)
    ]
    put_json(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": rows}, mark=True)
    put_images(folder, "infographicsvqa_images/1.jpeg", "infographicsvqa_images/2.jpeg")


def infovqa_parquet(folder):
    rows = [row | {"questionId": str(row["questionId"]), "image": cell(int(n == 2))} for n, row in enumerate(DOCVQA)]
    put_parquet(folder / "InfographicVQA" / "validation-00000-of-00001.parquet", rows)


# ---- OCRBench

OCRBENCH = [
    ("IIIT5K", "Regular Text Recognition", "what is written in the image?", ["CENTRE"]),
    ("ESTVQA", "Scene Text-centric VQA", "What is the number? ", ["12", "twelve"]),
    ("HME100k", "Handwritten Mathematical Expression Recognition", "Write it in LaTeX.", ["x ^ { 2 }"]),
]


def ocrbench_official(folder):
    rows = [
        {"dataset_name": dataset, "type": kind, "question": question, "answers": answers[0] if n == 0 else answers}
        | {"image_path": f"{dataset}/{n}.jpg", "id": n}
        for n, (dataset, kind, question, answers) in enumerate(OCRBENCH)
    ]
    put_json(folder / "OCRBench.json", rows, mark=True)
    put_images(folder, *(f"OCRBench_Images/{row['image_path']}" for row in rows))


def ocrbench_parquet(folder):
    rows = [
        {"dataset": dataset, "question_type": kind, "question": question, "answer": answers, "image": cell(n)}
        for n, (dataset, kind, question, answers) in enumerate(OCRBENCH)
    ]
    put_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


# ---- COCO captions

CAPTIONS = {
    139: ["A man's dog sits on the red couch.", "Dog on a couch"],
    285: ["A bear in the grass.", "A big brown bear stands in tall grass"],
    632: ["A small bedroom with a bed and books.", "There is a bed, a desk and a window."],
}


def captions_official(folder):
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in CAPTIONS]
    pairs = [(number, text) for number, texts in CAPTIONS.items() for text in texts]
    annotations = [{"image_id": number, "id": n, "caption": text} for n, (number, text) in enumerate(pairs)]
    content = {"images": images, "annotations": annotations}
    put_json(folder / "annotations" / "captions_val2017.json", content, mark=True)
    put_images(folder, *(f"val2017/{image['file_name']}" for image in images))


def captions_parquet(folder):
    rows = [
        {"question_id": f"{number:012d}.jpg", "answer": texts, "id": n, "image": cell(n)}
        for n, (number, texts) in enumerate(CAPTIONS.items())
    ]
    put_parquet(folder / "data" / "val-00000-of-00001.parquet", rows)


def captions_karpathy(folder):
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012d}.jpg",
            "cocoid": number,
            "imgid": n,
            "split": "test" if number != 632 else "train",
            "sentences": [{"raw": text, "tokens": []} for text in texts],
        }
        for n, (number, texts) in enumerate(CAPTIONS.items())
    ]
    put_json(folder / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    put_images(folder, *(f"{row['filepath']}/{row['filename']}" for row in rows))
