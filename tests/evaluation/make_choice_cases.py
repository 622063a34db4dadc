"""Writes tests/evaluation/data/choices_*.jsonl: made-up answers, and what the published scorers read and score.

Not run by the tests. Each scorer runs from its own files; of the two packages only the named functions are compiled, so
that their dependencies are not needed (but numpy, pandas, and scikit-learn for MME's script).

    pip download --no-deps lmms-eval==0.7.3 ms-vlmeval==0.0.20    and unpack both
    git clone https://github.com/haotian-liu/LLaVA https://github.com/MMMU-Benchmark/MMMU
    python tests/evaluation/make_choice_cases.py --lmms-eval DIR --vlmevalkit DIR --llava DIR --mmmu DIR --mme DIR

Where a scorer finds nothing, or draws an option at random, its key is left out.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import io
import json
import math
import os
import random
import re
import string
import subprocess
import sys
import tempfile
import typing
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

DATA = Path(__file__).with_name("data")
VERSIONS = {
    "lmms_eval": "lmms-eval 0.7.3",
    "vlmevalkit": "ms-vlmeval 0.0.20",
    "llava": "haotian-liu/LLaVA llava/eval/eval_pope.py 4241f08c, eval_science_qa.py",
    "mmmu": "MMMU-Benchmark/MMMU eval/eval_utils.py 44b45b50",
    "mme": "MME eval_tool/calculation.py",
}
OPTION_SETS = (
    ("cat", "dog", "a red bus", "none of them"),
    ("Yes", "No"),
    ("2", "12", "20"),
    ("The man is left of the dog.", "The dog is left of the man.", "They are equally far away.", "It is unclear.", "A"),
    ("rouge", "rot", "赤", "红色"),
)


def parted(text: str) -> tuple[str, ...]:
    """The parts of a text between bars."""
    return tuple(text.split("|"))


WORDS = parted(
    "A|B|C|D|E|F|a|b|(A)|(B)|(C).|A.|B.|C:|D)|A,|:B|**B**|[C]|The answer is|the answer is|answer is|"
    "The correct option is|I choose|Answer:|option|Z|because|DNA is|A cat|it is|not|or|and|I think|"
    "Cannot determine the answer|答案是|选|.|,|!|\n| |Option B|is correct|none|the dog|NASA|plan B|x"
)
PLAIN = parted(
    "A|b|B|C.|B. dog|b. dog|(B)|The answer is B.|The answer is B|The answer is B\n|E||"
    "The answer is A. The answer is B.|B.dog| B|B |A or B|Option B: dog|cat and dog|It is a cat."
)
YES_NO_WORDS = parted(
    "yes|Yes|YES|no|No|NO|not|Not|none|nothing|know|y|n|Y|N|yes,|no,|Yes.|No.|there is|a dog|.|,|!|-|1,000|"
    "yes-no|(no)|it's|I|eyes|\n| |The|answer|is|3.5|yes.|no."
)
OPEN_WORDS = parted(
    "the result is|so|thus|final answer|=|could be|is|therefore|1,234|3.14159|1.5e3|-2|0.5|.25|blue|"
    "Blue whale|x|x = 4|$5|10%|.|\n|. The|a|cm|because|answer|,"
)
POPE_FUNCTIONS = parted("process_results|aggregate_accuracy|aggregate_precision|aggregate_recall|aggregate_f1_score")
OPEN_TRUTHS = ("3.14", "1234", "blue", "x", ["0.5", "1/2"], "-2", "1500", "a", "4", "Blue Whale", "10%")
PERCEPTION = parted("existence|count|position|color|posters|celebrity|scene|landmark|artwork|OCR")
COGNITION = parted("commonsense_reasoning|numerical_calculation|text_translation|code_reasoning")


class DrawnError(Exception):
    """Raised where a scorer would draw at random."""


class NoRandom:
    """Stands in for the module `random`."""

    def choice(self, *_: Any) -> Any:
        """Raises instead of drawing."""
        raise DrawnError

    randint = choice

    def seed(self, _: Any) -> None:
        """Does nothing."""


def compiled(path: Path, names: str, known: dict[str, Any]) -> SimpleNamespace:
    """Only these functions, classes and constants of a file, with `known` as its imports."""
    tree = ast.parse(path.read_text())

    def is_wanted(node: ast.stmt) -> bool:
        targets = node.targets if isinstance(node, ast.Assign) else []
        own = [getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))]
        return any(name in names.split() for name in own)

    scope = dict(known)
    wanted = ast.Module([node for node in tree.body if is_wanted(node)], [])
    exec(compile(wanted, str(path), "exec"), scope)
    return SimpleNamespace(**scope)


def log() -> SimpleNamespace:
    """A logger that writes nothing."""
    return SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)


def load_scorers(a: argparse.Namespace) -> SimpleNamespace:
    """The functions of the published scorers."""
    tasks = Path(a.lmms_eval) / "lmms_eval/tasks"
    kit = Path(a.vlmevalkit) / "vlmeval"
    known = {"re": re, "np": np, "pd": pd, "random": NoRandom(), "rd": NoRandom(), "math": math, "string": string}
    known |= {"defaultdict": defaultdict, "eval_logger": log(), "logger": log(), "os": os}
    known |= {"cp": copy, "List": list, "Optional": typing.Optional}
    mcq = compiled(
        tasks / "_task_utils/mcq_extract.py",
        "_DEFAULT_CHOICES _ANSWER_PHRASES _FORMAT_PRIORITY extract_mcq_answer",
        known,
    )
    sys.modules["lmms_eval.tasks._task_utils.mcq_extract"] = mcq  # imported within a method
    punctuation = compiled(kit / "smp/misc.py", "process_punctuation", known)
    loaded = {"load": lambda data: data, "d2df": lambda numbers: numbers}
    match = compiled(kit / "utils/matching_util.py", "can_infer can_infer_option can_infer_text", known)
    return SimpleNamespace(
        science=compiled(tasks / "scienceqa/utils.py", "sqa_doc_to_target sqa_process_results", known),
        seed=compiled(tasks / "seedbench/utils.py", "seed_process_result seed_aggregation_result", known),
        pope=compiled(tasks / "pope/utils.py", " ".join(f"pope_{n}" for n in POPE_FUNCTIONS), known),
        mme=compiled(
            tasks / "mme/utils.py", "eval_type_dict parse_pred_ans mme_process_results mme_aggregate_results", known
        ),
        mmbench=compiled(tasks / "mmbench/mmbench_evals.py", "MMBench_Evaluator", known),
        mcq=mcq,
        glued=compiled(tasks / "_task_utils/mmmu_mcq_utils.py", "parse_mmmu_multi_choice_response", known),
        open=compiled(
            tasks / "mmmu/utils.py",
            "extract_numbers check_is_number normalize_str parse_open_response eval_open",
            known,
        ),
        mmmu=compiled(Path(a.mmmu) / "eval/eval_utils.py", "parse_multi_choice_response", known),
        match=match,
        circular=compiled(
            kit / "dataset/utils/multiple_choice.py",
            "build_choices prefetch_answer prefetch_circular_group",
            known | {"can_infer": match.can_infer},
        ),
        yes_no=compiled(
            kit / "dataset/utils/yorn.py",
            "MME_rating POPE_rating YOrN_Extraction",
            known | loaded | {"process_punctuation": punctuation.process_punctuation},
        ),
        eval_pope=compiled(Path(a.llava) / "llava/eval/eval_pope.py", "eval_pope", {"json": json}).eval_pope,
        science_script=Path(a.llava) / "llava/eval/eval_science_qa.py",
        mme_script=Path(a.mme) / "eval_tool/calculation.py",
    )


def phrase(draw: random.Random, words: tuple[str, ...], extra: tuple[str, ...] = ()) -> str:
    """Some words with spaces, or without one here and there."""
    chosen = [draw.choice(words + extra) for _ in range(draw.choice((1, 1, 2, 2, 3, 4, 6, 9)))]
    return "".join(word + draw.choice((" ", " ", " ", "")) for word in chosen).strip()


def letter_or_none(find: Any) -> str | None:
    """What a parser finds; None where it finds nothing or would draw."""
    try:
        found = find()
    except DrawnError:
        return None
    return found if found and found != "Z" else None


def by_truth(letters: str, is_right: Any) -> str | None:
    """The letter for which a scorer that knows only right and wrong says right."""
    return next((letter for letter in letters if is_right(letter)), None)


def choice_cases(s: SimpleNamespace, count: int) -> list[dict[str, Any]]:
    """Answers to choices, and the letter that each parser finds."""
    draw = random.Random(0)
    asked = [(choices, text) for choices in OPTION_SETS for text in PLAIN]
    while len(asked) < count:
        choices = draw.choice(OPTION_SETS)
        asked.append((choices, phrase(draw, WORDS, choices)))
    cases = [{"text": text, "choices": choices, **letters_of(s, choices, text)} for choices, text in asked]
    add_llava_science(s, cases)
    return cases


def letters_of(s: SimpleNamespace, choices: tuple[str, ...], text: str) -> dict[str, str | None]:
    """What each parser finds, but LLaVA's for ScienceQA."""
    options = dict(zip(string.ascii_uppercase, choices, strict=False))
    letters = "".join(options)
    evaluator = s.mmbench.MMBench_Evaluator()

    def science(letter: str) -> bool:
        doc = {"choices": choices, "answer": letters.index(letter)}
        return s.science.sqa_process_results(doc, [text])["exact_match"] == 1.0

    def seed(letter: str) -> bool:
        doc = {"answer": letter, "data_type": "image", "question_id": 0}
        return s.seed.seed_aggregation_result([s.seed.seed_process_result(doc, [text])["seed_all"]]) == 1

    def mmbench(letter: str) -> bool:
        row = {"index": 1, "prediction": text, **{c: options.get(c, math.nan) for c in "ABCD"}}
        return evaluator.eval_sub_data(pd.DataFrame([row]), {1: letter}, static_only=True) == 1

    mmmu, glued = s.mmmu.parse_multi_choice_response, s.glued.parse_mmmu_multi_choice_response
    return {
        "llava_seedbench": by_truth(letters, lambda letter: text == letter),
        "lmms_eval_scienceqa": by_truth(letters, science),
        "lmms_eval_seedbench": by_truth(letters, seed),
        "lmms_eval_mmbench": by_truth(letters[:4], mmbench),
        "vlmevalkit": letter_or_none(lambda: s.match.can_infer(text, dict(options))),
        "mmmu": letter_or_none(lambda: mmmu(text, list(letters), options)),
        "lmms_eval_mmmu": letter_or_none(lambda: glued(text, list(letters), options)),
    }


def add_llava_science(s: SimpleNamespace, cases: list[dict[str, Any]]) -> None:
    """What LLaVA's script for ScienceQA finds, which only runs as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        ids = [str(number) for number in range(len(cases))]
        problems = {id: {"choices": case["choices"], "answer": 0} for id, case in zip(ids, cases, strict=True)}
        (base / "problems.json").write_text(json.dumps(problems))
        (base / "pid_splits.json").write_text(json.dumps({"test": ids}))
        answers = [
            {"question_id": id, "text": case["text"], "prompt": "<image>"} for id, case in zip(ids, cases, strict=True)
        ]
        (base / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        command = [sys.executable, s.science_script, "--base-dir", base, "--result-file", base / "answers.jsonl"]
        command += ["--output-file", base / "a.json", "--output-result", base / "b.json"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        found = json.loads((base / "b.json").read_text())["results"]
    for id, case in zip(ids, cases, strict=True):
        case["llava_scienceqa"] = string.ascii_uppercase[found[id]] if found[id] >= 0 else None


def yes_no_cases(s: SimpleNamespace, count: int) -> list[dict[str, Any]]:
    """Answers to yes/no questions, and what each parser finds."""
    draw, cases = random.Random(1), []
    texts = [phrase(draw, YES_NO_WORDS) for _ in range(count)]
    llava = pope_script(s, texts, ["yes", "no"] * (count // 2))[0]
    script = compiled(s.mme_script, "calculate_metrics", {}).calculate_metrics()
    for text, of_llava in zip(texts, llava, strict=True):
        mme, official = s.mme.parse_pred_ans(text), script.parse_pred_ans(text.lower())
        word = s.yes_no.YOrN_Extraction(text).lower()
        cases.append(
            {
                "text": text,
                "llava_pope": of_llava,
                "lmms_eval_pope": next((truth for truth in ("yes", "no") if pope_right(s, truth, text)), None),
                "official_mme": None if official == "other" else official,
                "lmms_eval_mme": None if mme == "other" else mme,
                "vlmevalkit": None if word == "unknown" else word,
            }
        )
    return cases


def pope_right(s: SimpleNamespace, truth: str, text: str) -> bool:
    """Whether lmms-eval says right."""
    found = s.pope.pope_process_results({"answer": truth, "question_id": 0}, [text])
    return found["pope_accuracy"]["score"] == 1


def pope_script(s: SimpleNamespace, texts: list[str], labels: list[str]) -> tuple[list[str], dict[str, float]]:
    """What LLaVA's script for POPE reads, and the numbers that it prints."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()) as printed:
        file.write("".join(json.dumps({"label": label}) + "\n" for label in labels))
        file.flush()
        answers = [{"text": text} for text in texts]
        s.eval_pope(answers, file.name)
    lines = dict(line.split(": ") for line in printed.getvalue().splitlines() if ": " in line)
    keys = {"f1": "F1 score", "accuracy": "Accuracy", "precision": "Precision", "recall": "Recall"}
    numbers = {key: float(lines[name]) for key, name in (keys | {"yes_ratio": "Yes ratio"}).items()}
    return [answer["text"] for answer in answers], numbers


def open_cases(s: SimpleNamespace, count: int) -> list[dict[str, Any]]:
    """Open answers of MMMU, and whether they are right."""
    draw, cases = random.Random(2), []
    for _ in range(count):
        truth = draw.choice(OPEN_TRUTHS)
        near = (truth if isinstance(truth, str) else truth[0],) * 6
        text = phrase(draw, OPEN_WORDS, near)
        right = s.open.eval_open(truth, s.open.parse_open_response(text))
        choice = s.match.can_infer(text, {"A": str(truth), "B": "Other Answers"})
        cases.append({"text": text, "truth": truth, "right": bool(right), "vlmevalkit": choice == "A"})
    return cases


def pope_scores(s: SimpleNamespace, per_category: int) -> dict[str, Any]:
    """A set of answers to POPE with the numbers of each tool."""
    draw, rows = random.Random(3), []
    likely = ("Yes", "No", "yes", "no", "Yes, there is.", "No, there is not.", "maybe", "")
    for category in ("random", "popular", "adversarial"):
        rows += [[category, draw.choice(("yes", "no")), draw.choice(likely)] for _ in range(per_category)]
    llava = {}
    for category in ("random", "popular", "adversarial"):
        own = [row for row in rows if row[0] == category]
        llava[category] = pope_script(s, [text for _, _, text in own], [truth for _, truth, _ in own])[1]
    docs = [({"answer": truth, "question_id": 0}, [text]) for _, truth, text in rows]
    results = [s.pope.pope_process_results(*doc)["pope_accuracy"] for doc in docs]
    lmms = {
        "f1": s.pope.pope_aggregate_f1_score(results),
        "accuracy": s.pope.pope_aggregate_accuracy(results),
        "precision": s.pope.pope_aggregate_precision(results),
        "recall": s.pope.pope_aggregate_recall(results),
    }
    table = pd.DataFrame(rows, columns=["category", "answer", "text"])
    table["answer"] = table["answer"].str.capitalize()
    table["extracted"] = [s.yes_no.YOrN_Extraction(text) for text in table["text"]]
    table["score"] = table["answer"] == table["extracted"]
    rated = s.yes_no.POPE_rating(table)
    columns = ("Overall", "acc", "precision", "recall")
    kit = {row["split"]: {column: float(row[column]) for column in columns} for _, row in rated.iterrows()}
    kit = dict(sorted(kit.items()))  # its order is that of a set
    return {"kind": "pope", "rows": rows, "llava": llava, "lmms_eval": lmms, "vlmevalkit": kit}


def mme_scores(s: SimpleNamespace, images: int) -> dict[str, Any]:
    """A set of answers to MME with the points of each tool."""
    draw, rows = random.Random(4), []
    for task in PERCEPTION + COGNITION:
        for image in range(images):
            for truth in ("Yes", "No"):
                likely = (truth, truth, truth + ".", "No", "yes, it is", "unsure", "N", "Nothing")
                rows.append([task, f"{task}/{image}.jpg", truth, draw.choice(likely)])
    with tempfile.TemporaryDirectory() as folder:
        for task in PERCEPTION + COGNITION:
            lines = ["\t".join((image, "?", truth, text)) + "\n" for t, image, truth, text in rows if t == task]
            Path(folder, f"{task}.txt").write_text("".join(lines))
        command = [sys.executable, str(s.mme_script), "--results_dir", folder]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    official = {m[1]: float(m[2]) for m in re.finditer(r"^\t (\w+) +score: (\S+)$", printed, re.MULTILINE)}
    totals = [float(total) for total in re.findall(r"total score: (\S+)", printed)]
    found: dict[str, list[Any]] = defaultdict(list)
    for task, image, truth, text in rows:
        doc = {"answer": truth, "category": task, "question_id": image}
        for key, value in s.mme.mme_process_results(doc, [text]).items():
            found[key].append(value)
    lmms = [s.mme.mme_aggregate_results(found[f"mme_{kind}_score"]) for kind in ("perception", "cognition")]
    table = pd.DataFrame(rows, columns=["category", "image_path", "answer", "text"])
    table["score"] = [s.yes_no.YOrN_Extraction(t) == a for t, a in zip(table["text"], table["answer"], strict=True)]
    rated = s.yes_no.MME_rating(table)
    kit = [float(rated["perception"]), float(rated["reasoning"])]
    return {"kind": "mme", "rows": rows, "official": official, "totals": totals, "lmms_eval": lmms, "vlmevalkit": kit}


def mmbench_scores(s: SimpleNamespace, questions: int) -> dict[str, Any]:
    """Rotations of made-up questions with the circular accuracy of each tool."""
    draw, rows = random.Random(5), []
    for question in range(questions):
        texts = list(draw.choice((("cat", "dog", "bus", "tree"), ("red", "blue"), ("left", "right", "above"))))
        truth = draw.choice(texts)
        skilled = draw.random() < 0.6
        for rotation in range(len(texts)):
            right = "ABCD"[texts.index(truth)]
            likely = (right, f"{right}.", f"The answer is ({right}).", truth)
            text = draw.choice(likely) if skilled else draw.choice((*likely, "A", "B", "I see a plan"))
            row = {"index": question + rotation * 1_000_000, "question": f"Q{question}", "answer": right}
            row |= dict(zip("ABCD", texts, strict=False)) | {"category": draw.choice(("c1",)), "prediction": text}
            row |= {"l2-category": f"l{question % 3}"}
            rows.append(row)
            texts = texts[1:] + texts[:1]
    evaluator = s.mmbench.MMBench_Evaluator()
    with contextlib.redirect_stdout(io.StringIO()):
        table = [{"A": math.nan, "B": math.nan, "C": math.nan, "D": math.nan} | row for row in rows]
        whole, by_category, by_l2 = evaluator.eval_result(table, "static")
    frame = pd.DataFrame(table)
    frame["GT"], frame["group"] = frame["answer"], frame["index"] % 1_000_000
    hits = []
    for _, group in frame.groupby("group"):
        found = s.circular.prefetch_circular_group(group)
        hits.append(0 if found is None else found["hit"])
    return {
        "kind": "mmbench",
        "rows": rows,
        "lmms_eval": float(whole),
        "lmms_eval_l2": {key: float(value) for key, value in by_l2.items()},
        "lmms_eval_category": {key: float(value) for key, value in by_category.items()},
        "vlmevalkit": float(np.mean(hits)),
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes a file with the versions as its first line."""
    full = [{key: value for key, value in row.items() if value is not None} for row in ({"made_by": VERSIONS}, *rows)]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in full]
    (DATA / f"choices_{name}.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--lmms-eval", "--vlmevalkit", "--llava", "--mmmu", "--mme"):
        parser.add_argument(option, required=True, metavar="DIR")
    scorers = load_scorers(parser.parse_args())
    DATA.mkdir(exist_ok=True)
    write("letters", choice_cases(scorers, 400))
    write("yes_no", yes_no_cases(scorers, 300))
    write("open", open_cases(scorers, 250))
    write("scores", [pope_scores(scorers, 60), mme_scores(scorers, 3), mmbench_scores(scorers, 60)])


if __name__ == "__main__":
    main()
