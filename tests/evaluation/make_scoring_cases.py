"""Freezes what the published scorers give for made-up answers, for the tests of jaxvlm.evaluation.metrics.

The scorers are not installed where the tests run. In an environment of its own, with Java for captions' tokenizer:

    pip install --no-deps lmms-eval==0.7.3 ms-vlmeval==0.0.20 pycocoevalcap==1.2 anls==0.0.2
    pip install numpy pandas huggingface_hub
    python tests/evaluation/make_scoring_cases.py --vqa vqaEval.py

`vqaEval.py` is PythonEvaluationTools/vqaEvaluation/vqaEval.py of GT-Vision-Lab/VQA at a013f004. It is Python 2; its
`print` statements are converted here. Packages of lmms-eval and VLMEvalKit are entered without their `__init__`, which
import dozens of others.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import random
import re
import sys
import types
from pathlib import Path

DATA = Path(__file__).parent / "data"
WORDS = r"""
a an the none zero one two three ten yes no red blue dog cat's John's dont isn't isnt couldn'tve yall Im well-known
U.S. u.s.a. 3. 3.5 3,000 1,2/3 3,000-4 10% 50 $5.00 12:30 p.m. what?no red,blue stop! (left) [x] {y} a/b c\d e_f
@home #1 &amp; `q` "quoted" 'single' it's its somebody'd oclock naïve café ２３ ½ 日本 ß İ ... .. . , ; : ? ! - > < = +
"""
NUMBERS = """
0 0.0 1 10 10.5 -3 95 105 105.0001 1,000 1e3 5% 0.05 % nan inf Yes yes YES ４ 1_000 12. .5 +7 100 95.0 104.9%
"""
CAPTION_WORDS = """
a man woman two people dog cat train bus street table pizza on in with of and the is are riding standing sitting next
to near red white black-and-white man's dogs' isn't don't cannot it's they're t-shirt 3 10 1,000 5:30 p.m. No. Mr. St.
U.S. his/her "STOP" (left) grey colour teddy-bear 2nd 1950's 50% $5 & - -- wii's o'clock
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqa", required=True, help="vqaEval.py of GT-Vision-Lab/VQA")
    vqa = official_vqa(Path(parser.parse_args().vqa))
    lmms_vqa, lmms_text, lmms_ocr, lmms_metrics = lmms_eval()
    kit, kit_ocr = vlmevalkit()
    chance = random.Random(17)
    DATA.mkdir(exist_ok=True)
    write("vqa.jsonl", ["lmms-eval", "ms-vlmeval"], vqa_cases(chance, vqa, lmms_vqa, lmms_text, kit))
    write("anls.jsonl", ["lmms-eval", "ms-vlmeval", "anls"], anls_cases(chance, lmms_metrics, kit))
    write("relaxed.jsonl", ["ms-vlmeval"], relaxed_cases(chance, kit))
    write("exact.jsonl", ["lmms-eval", "ms-vlmeval"], exact_cases(chance, lmms_metrics, kit))
    write("ocrbench.jsonl", ["lmms-eval", "ms-vlmeval"], ocr_cases(chance, lmms_ocr, kit_ocr))
    write("captions.jsonl", ["pycocoevalcap"], caption_cases(chance))


def write(name: str, packages: list[str], rows: list[dict]) -> None:
    """The versions as the first line, then a row a line."""
    made_by = {package: importlib.metadata.version(package) for package in packages}
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in [{"made_by": made_by}, *rows]]
    (DATA / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def text(chance: random.Random, most: int = 5) -> str:
    """A few words, at times with other white space, capitals or marks at the end; or nothing."""
    chosen = [chance.choice(WORDS.split()) for _ in range(chance.randint(0, most))]
    made = chance.choice([" ", " ", " ", "  ", "\n", "\t", ""]).join(chosen)
    return chance.choice([made, made, made, made.upper(), made.capitalize(), f" {made} ", f"{made}.", f"{made},"])


# ---- what is installed


def load(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub(name: str, **content) -> types.ModuleType:
    """An empty module of this name with some content."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(content)
    return module


def enter(*packages: str) -> None:
    """Makes packages importable without their `__init__`."""
    root = Path(importlib.util.find_spec(packages[0]).submodule_search_locations[0])
    for package in packages:
        stub(package, __path__=[str(root.joinpath(*package.split(".")[1:]))])


def lmms_eval():
    enter("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils", "lmms_eval.api")
    enter_tasks = ["vqav2", "textvqa", "ocrbench"]
    root = Path(sys.modules["lmms_eval.tasks"].__path__[0])
    stub("loguru", logger=None)
    stub("sacrebleu")

    def unchanged(*args, **kwargs):
        return lambda function: function

    stub("lmms_eval.api.registry", register_aggregation=unchanged, register_metric=unchanged)
    tasks = [load(f"lmms_{task}", root / task / "utils.py") for task in enter_tasks]
    return *tasks, importlib.import_module("lmms_eval.api.metrics")


def vlmevalkit():
    enter("vlmeval", "vlmeval.dataset", "vlmeval.dataset.utils")
    root = Path(sys.modules["vlmeval"].__path__[0])
    stub("sty", fg=None)
    misc = load("vlmeval.smp", root / "smp" / "misc.py")
    misc.get_logger = lambda name: types.SimpleNamespace(info=lambda message: None)
    misc.load = misc.dump = misc.get_intermediate_file_path = None
    sys.modules["vlmeval.smp"] = misc
    return (importlib.import_module(f"vlmeval.dataset.utils.{name}") for name in ("vqa_eval", "ocrbench"))


def official_vqa(path: Path):
    """The class VQAEval."""
    code = re.sub(r"^(\s*)print (\".*\")$", r"\1print(\2)", path.read_text(), flags=re.MULTILINE)
    module = types.ModuleType("vqaEval")
    exec(compile(code, str(path), "exec"), module.__dict__)
    return module.VQAEval


# ---- cases


def vqa_cases(chance, vqa, lmms_vqa, lmms_text, kit) -> list[dict]:
    """Normalised texts and scores; some of the ten truths are like the answer."""
    rows = []
    for number in range(260):
        answer = text(chance)
        near = [answer, answer.lower(), f"the {answer}", answer.replace("'", ""), text(chance, most=2)]
        share = chance.choice([0.1, 0.3, 0.8])
        truths = [chance.choice(near) if chance.random() < share else text(chance, most=2) for _ in range(10)]
        if number % 8 == 0:
            truths = [chance.choice(near)] * 10
        rows.append({"answer": answer, "truths": truths} | vqa_scores(answer, truths, vqa, lmms_vqa, lmms_text, kit))
    return rows


def vqa_scores(answer, truths, vqa, lmms_vqa, lmms_text, kit) -> dict:
    def dicts():
        return [{"answer": t, "answer_confidence": "yes", "answer_id": i + 1} for i, t in enumerate(truths)]

    question = types.SimpleNamespace(
        qa={1: {"answers": dicts(), "question_type": "", "answer_type": ""}}, getQuesIds=lambda: [1]
    )
    given = types.SimpleNamespace(qa={1: {"answer": answer}})
    judge = vqa(question, given, n=12)
    judge.updateProgress = lambda progress: None
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
    lmms = lmms_vqa.vqav2_process_results({"answers": dicts(), "question_id": 1}, [answer])
    evalai = lmms_text.textvqa_process_results({"answers": list(truths), "question_id": 1}, [answer])
    line = kit.process_line({"answer": repr(truths), "prediction": answer})
    return {
        "official": judge.accuracy["overall"] / 100,
        "lmms_vqav2": [lmms["submission"]["answer"], lmms["exact_match"]],
        "evalai": [evalai["submission"]["answer"], evalai["exact_match"]],
        "vlmevalkit": [line["pred"], sum(line["match"]) / len(line["match"])],
    }


def anls_cases(chance, lmms_metrics, kit) -> list[dict]:
    from anls import anls_score

    rows = []
    for _ in range(200):
        truths = [text(chance, most=4) for _ in range(chance.randint(1, 3))]
        answer = chance.choice([text(chance, most=4), typo(chance, truths[0]), typo(chance, typo(chance, truths[0]))])
        line = kit.process_line({"answer": repr(truths), "prediction": answer}, method="anls")
        rows.append(
            {
                "answer": answer,
                "truths": truths,
                "official": anls_score(answer, truths),
                "lmms_eval": lmms_metrics.anls(truths, [answer])["anls"],
                "vlmevalkit": float(kit.hit_calculate([line], "DocVQA")[0]),
            }
        )
    return rows


def typo(chance, given: str) -> str:
    """A text with up to half of its characters changed, and other spaces."""
    letters = [chance.choice("abc ") if chance.random() < 0.3 else letter for letter in given]
    return "".join(letters).replace(" ", chance.choice([" ", "  "]))


def relaxed_cases(chance, kit) -> list[dict]:
    """lmms-eval has the same function but for str() round the answer and no strip()."""
    rows = []
    for _ in range(220):
        target, answer = (chance.choice([*NUMBERS.split(), " 10 ", "10\n", "5 %", "YES ", ""]) for _ in range(2))
        if chance.random() < 0.4:
            value = chance.uniform(-200, 200)
            target, answer = f"{value:.2f}", f"{value * chance.choice([0.94, 0.951, 1, 1.049, 1.06]):.3f}"
        line = kit.process_line({"answer": target, "prediction": answer}, method="relaxed_accuracy")
        rows.append(
            {
                "answer": answer,
                "truth": target,
                "plain": kit.relaxed_correctness(target, answer),
                "vlmevalkit": bool(line["match"][0]),
            }
        )
    return rows


def exact_cases(chance, lmms_metrics, kit) -> list[dict]:
    rows = []
    for _ in range(120):
        truth = text(chance, most=3)
        answer = chance.choice([text(chance, most=3), truth.upper(), f"{truth}.", truth.replace("'", "").lower()])
        if answer != answer.rstrip("\0") or not truth.strip():
            continue
        options = {"predictions": [answer], "references": [truth], "ignore_case": True, "ignore_punctuation": True}
        line = kit.process_line({"answer": repr([truth]), "prediction": answer}, method="accuracy")
        lmms = lmms_metrics.exact_match_hf_evaluate(**options)["exact_match"]
        rows.append({"answer": answer, "truth": truth, "lmms_eval": float(lmms), "vlmevalkit": line["match"][0]})
    return rows


def ocr_cases(chance, lmms_ocr, kit_ocr) -> list[dict]:
    import pandas

    kinds = [("IIIT5K", "Regular Text Recognition"), ("ESTVQA", "Scene Text-centric VQA")]
    kinds += [("HME100k", "Handwritten Mathematical Expression Recognition")]
    rows, table, saved = [], [], []
    kit_ocr.load = lambda file: pandas.DataFrame(table)
    kit_ocr.dump = lambda content, file: saved.append(content)
    kit_ocr.get_intermediate_file_path = lambda *names: ""
    kit_ocr.tqdm = lambda numbers: numbers
    for _ in range(120):
        dataset, kind = chance.choice(kinds)
        truths = [text(chance, most=2) or "x" for _ in range(chance.randint(1, 2))]
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in truths[0])
        answer = chance.choice(
            [text(chance), f"it is {truths[-1]}", truths[0].upper(), truths[0].replace(" ", ""), wide]
        )
        doc = {"answer": truths, "dataset": dataset, "question_type": kind}
        lmms = lmms_ocr.ocrbench_process_results(doc, [answer])["ocrbench_accuracy"]["score"]
        table[:] = [{"prediction": answer, "answer": repr(truths), "category": kind}]
        kit_ocr.OCRBench_eval("")
        row = {"answer": answer, "truths": truths, "dataset": dataset, "kind": kind}
        rows.append(row | {"lmms_eval": lmms, "vlmevalkit": saved[-1]["Final Score"]})
    return rows


def caption_cases(chance) -> list[dict]:
    """Captions with their tokens, and in the last row the scores of all of them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def caption() -> str:
        words = [chance.choice(CAPTION_WORDS.split()) for _ in range(chance.randint(1, 12))]
        return " ".join(words).capitalize() + chance.choice(["", ".", " .", "!", "?", ", too.", "...", ' "'])

    references = [[caption() for _ in range(chance.randint(1, 5))] for _ in range(60)]
    captions = [" ".join(chance.choice(given).split()[: chance.randint(2, 12)]) for given in references]
    every = {n: [{"caption": c}] for n, c in enumerate([c for given in references for c in given] + captions)}
    tokens = [one[0] for one in PTBTokenizer().tokenize(every).values()]
    whole = iter(tokens)
    truths = {n: [next(whole) for _ in given] for n, given in enumerate(references)}
    answers = {n: [tokens] for n, tokens in enumerate(whole)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(truths, answers)
        cider, ciders = Cider().compute_score(truths, answers)
        rouge, _ = Rouge().compute_score(truths, answers)
    rows = [
        {
            "caption": c,
            "references": r,
            "tokens": answers[n][0],
            "reference_tokens": truths[n],
            "cider": float(ciders[n]),
        }
        for n, (c, r) in enumerate(zip(captions, references, strict=True))
    ]
    return [*rows, {"BLEU": [float(b) for b in bleu], "CIDEr": float(cider), "ROUGE_L": float(rouge)}]


if __name__ == "__main__":
    main()
