"""MME: two yes/no questions about each image, in ten sub-tasks of perception and four of cognition.

A sub-task scores the share of right answers plus the share of images with both right, each times 100.

Axis letters:
  R draws   N items   P images

Source: arXiv:2306.13394; MME's eval_tool/calculation.py; LLaVA's convert_answer_to_mme.py; lmms-eval 0.7.3 tasks/mme;
ms-vlmeval 0.0.20 dataset/utils/yorn.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.benchmarks.benchmark import (
    LLAVA,
    LMMS_EVAL,
    OFFICIAL,
    VLMEVALKIT,
    Benchmark,
    Item,
    Published,
    Scores,
)
from jaxvlm.evaluation.benchmarks.choice_prompts import images_first
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    json_line_rows,
    make_items,
    parquet_rows,
    tsv_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT
from jaxvlm.evaluation.benchmarks.tsv_images import TsvImages
from jaxvlm.evaluation.metrics.yes_no import (
    NO,
    YES,
    leading_yes_no,
    leading_yes_no_or_initial,
    word_yes_no,
)
from jaxvlm.media import Medium

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PARSERS = {
    LLAVA: leading_yes_no,
    OFFICIAL: leading_yes_no,
    LMMS_EVAL: leading_yes_no_or_initial,
    VLMEVALKIT: word_yes_no,
}
_YES_OR_NO = " Please answer yes or no."
_FOLDERS = ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark", ".")
_IMAGE_ENDS = (".jpg", ".png", ".jpeg")
_LAYOUTS: Layouts = {
    "LLaVA": {"questions": "llava_mme.jsonl", "truths": tuple(f"{folder}/*/**/*.txt" for folder in _FOLDERS[:3])},
    "MME": {"truths": tuple(f"{folder}/{sub}/**/*.txt" for folder in _FOLDERS for sub in (PERCEPTION + COGNITION))},
    "Parquet": {"rows": ("data/test-*.parquet", "*.parquet")},
    "VLMEvalKit": {"rows": "MME.tsv"},
}


class Mme(Benchmark):
    """See the top of this file."""

    name = "mme"
    title = "MME"
    about = "perception and cognition: two yes/no questions about each of 1,187 images, mostly with opposite answers"
    files = (
        "llava_mme.jsonl                       LLaVA's questions; without it those of the next files are asked\n"
        "MME_Benchmark_release_version/SUBTASK/*.txt and images, or in the folders questions_answers_YN and images\n"
        "or data/test-*.parquet, or MME.tsv"
    )
    source = (
        "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (Evaluation), eval.zip of LLaVA's "
        "docs/Evaluation.md; or the data set lmms-lab/MME"
    )
    metric = "perception, points of 2,000"
    splits = {"test": 2374}
    dialects = (LLAVA, OFFICIAL, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, LMMS_EVAL: 16, VLMEVALKIT: 2048}
    published = (
        Published("LLaVA-1.5 7B", 1510.7, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 1531.3, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 1476.9, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 1541.7, LLAVA, MODEL_ZOO),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; each image has exactly two questions, else all that have not are named."""
        layout, files = find_layout(folder, _LAYOUTS, self.title, self.source)
        if layout == "LLaVA":
            items = _of_llava(json_line_rows(files["questions"][0]), folder)
        elif layout == "MME":
            items = _of_folders(folder)
        elif layout == "Parquet":
            images = Images(folder)
            items = make_items(
                _numbered(parquet_rows(files["rows"]), "question_id"), lambda row: _of_parquet(row, images), images
            )
        else:
            items = _of_tsv(tsv_rows(files["rows"][0]))
        _check_pairs(items)
        return items

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`: LLaVA and lmms-eval write their own request for " Please answer yes or no."."""
        if dialect == LLAVA:
            text = item.extra.get("asked") or f"{item.question.replace(_YES_OR_NO, '').rstrip()}\n{SHORT}"
        elif dialect == LMMS_EVAL:
            text = f"{item.question.strip().replace(_YES_OR_NO, '')}\n{SHORT}"
        else:
            text = item.question
        return images_first(item, text, dialect)

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """ "yes", "no", or None."""
        return _PARSERS[dialect](text)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Points: perception, cognition, and each sub-task.

        An image of which only one question is there, as `--limit` may leave it, counts for the share of right answers
        and not for the share of images.
        """
        points = {key: float(value_R[0]) for key, value_R in _points(items, values, np.ones((1, len(items)))).items()}
        numbers = {"perception": 0.0, "cognition": 0.0}
        for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
            numbers[name] = sum(points.get(task, 0.0) for task in tasks)
        credits = np.array([float(value == item.truth) for item, value in zip(items, values, strict=True)])
        counts = dict(Counter(item.groups["subtask"] for item in items))
        return Scores(numbers, credits, {"subtask": points}, {"subtask": counts})

    def resample(
        self, items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray
    ) -> np.ndarray | None:
        """As `Benchmark.resample`; a draw has both questions of an image equally often, since they are one cluster."""
        points = _points(items, values, np.asarray(draws_RN, np.float64))
        zero_R = np.zeros(len(draws_RN))
        return sum((points[task] for task in PERCEPTION if task in points), zero_R)

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """Yes and No."""
        return ("Yes", "No")

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The files of MME's calculation.py: image, question, truth and answer in a line, two lines for each image."""
        lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for item, text in zip(items, texts, strict=True):
            cells = (PurePosixPath(item.cluster).name, item.question, item.truth.capitalize(), text)
            line = "\t".join(" ".join(cell.split()) for cell in cells)
            lines[item.groups["subtask"]][item.cluster].append(line + "\n")
        return {
            f"{task}.txt": "".join(line for pair in images.values() for line in pair) for task, images in lines.items()
        }


def _points(items: Sequence[Item], values: Sequence[Any], weights_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Sub-task -> float64[R], its points."""
    right_N = np.array([value == item.truth for item, value in zip(items, values, strict=True)], np.float64)
    places: dict[str, list[int]] = defaultdict(list)
    pairs: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, item in enumerate(items):
        places[item.groups["subtask"]].append(place)
        pairs[item.groups["subtask"]][item.cluster].append(place)
    points = {}
    for task in places:
        weights_Rn = weights_RN[:, places[task]]
        both = np.array([pair for pair in pairs[task].values() if len(pair) == 2], int).reshape(-1, 2)
        weights_RP, right_P = weights_RN[:, both[:, 0]], right_N[both].prod(1)
        points[task] = 100 * (_mean(weights_Rn, right_N[places[task]]) + _mean(weights_RP, right_P))
    return points


def _mean(weights_Rn: np.ndarray, values_n: np.ndarray) -> np.ndarray:
    total_R = weights_Rn.sum(1)
    return np.divide(weights_Rn @ values_n, total_R, out=np.zeros(len(total_R)), where=total_R > 0)


def _check_pairs(items: Sequence[Item]) -> None:
    counts = Counter(item.cluster for item in items)
    odd = [f"{image} has {count}" for image, count in counts.items() if count != 2]
    if odd:
        raise UserError(f"MME has exactly two questions for each image, but {listed(odd)}; get the files again")


class _TextFile(NamedTuple):
    path: Path
    task: str
    images: str  # the folder of its images, relative to the benchmark's


def _text_files(folder: Path) -> list[_TextFile]:
    """The text files of the sub-tasks; some of these have folders of their own for questions and images."""
    for root in _FOLDERS:
        found = []
        for task in PERCEPTION + COGNITION:
            split = Path(folder, root, task, "questions_answers_YN").is_dir()
            texts = Path(folder, root, task, "questions_answers_YN" if split else "")
            images = f"{root}/{task}/images" if split else f"{root}/{task}"
            found += [_TextFile(path, task, images) for path in sorted(texts.glob("*.txt"))]
        if found:
            return found
    return []


def _text_rows(files: Sequence[_TextFile]) -> list[Row]:
    """A row for each line "question TAB answer".

    Raises:
      UserError: lines of another form.
    """
    rows, problems = [], []
    for file in files:
        lines = [line for line in file.path.read_text("utf-8-sig").splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            question, tab, truth = line.strip().partition("\t")
            if not tab:
                problems.append(f"{file.path}:{number}")
            values = {"file": file, "number": number, "question": question, "answer": truth}
            rows.append(Row(values, f"{file.path}:{number}"))
    if problems:
        raise UserError(f"a line is a question, a TAB and Yes or No, unlike {listed(problems)}; get the files again")
    return rows


def _item(row: Row, image: Medium, cluster: str, question: str, truth: str, asked: str = "") -> Item:
    task = cluster.split("/")[0]
    if task not in PERCEPTION + COGNITION:
        raise RowError(f"{task!r} is no sub-task; they are {', '.join(PERCEPTION + COGNITION)}")
    if truth.strip().lower() not in (YES, NO):
        raise RowError(f"the answer is Yes or No, found {truth!r}")
    return Item(
        id=f"{cluster}#{row.values['number']}",
        images=(image,),
        question=question,
        truth=truth.strip().lower(),
        groups={"subtask": task},
        cluster=cluster,
        origin=row.origin,
        extra={"asked": asked} if asked else {},
    )


def _numbered(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Rows with the number of the question among those of its image, from 1; `keys` name the image."""
    seen: Counter[tuple[str, ...]] = Counter()
    numbered = []
    for row in rows:
        image = tuple(str(row.get(key, "")) for key in keys)
        seen[image] += 1
        numbered.append(Row({**row.values, "number": seen[image]}, row.origin))
    return numbered


def _of_folders(folder: Path) -> list[Item]:
    images = Images(folder)

    def make(row: Row) -> Item:
        file = row.values["file"]
        image = images.find(*(f"{file.images}/{file.path.stem}{end}" for end in _IMAGE_ENDS))
        return _item(row, image, f"{file.task}/{Path(image).name}", row.text("question"), row.text("answer"))

    return make_items(_text_rows(_text_files(folder)), make, images)


def _of_llava(rows: Sequence[Row], folder: Path) -> list[Item]:
    """LLaVA's questions with the answers of MME's text files, paired by image and question."""
    truths = {}
    for truth in _text_rows(_text_files(folder)):
        file = truth.values["file"]
        truths[file.task, file.path.stem, _bare(truth.text("question"))] = truth
    images = Images(*(folder / root for root in _FOLDERS), folder / "images")

    def make(row: Row) -> Item:
        image, asked = row.id("question_id"), row.text("text")
        truth = truths.get((image.split("/")[0], Path(image).stem, _bare(asked)))
        if truth is None:
            raise RowError(f"no text file of MME has this question about {image}: {_bare(asked)!r}")
        path = images.find(row.text("image"), image)
        return _item(row, path, image, truth.text("question"), truth.text("answer"), asked)

    return make_items(_numbered(rows, "question_id"), make, images)


def _bare(question: str) -> str:
    """A question without requests for a form of the answer and with single spaces."""
    return " ".join(question.replace(SHORT, "").replace(_YES_OR_NO.strip(), "").split())


def _of_parquet(row: Row, images: Images) -> Item:
    image = f"{row.text('category')}/{Path(row.id('question_id')).name}"
    return _item(row, images.of(row.any("image")), image, row.text("question"), row.text("answer"))


def _of_tsv(rows: Sequence[Row]) -> list[Item]:
    pictures = TsvImages(rows)

    def make(row: Row) -> Item:
        image = f"{row.text('category')}/{Path(row.text('image_path')).name}"
        return _item(row, pictures.one(row), image, row.text("question"), row.text("answer"))

    return make_items(_numbered(rows, "category", "image_path"), make)
