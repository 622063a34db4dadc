"""Paths of evaluations: results, answers with pixels, flipped questions, benchmarks, and the start of another one."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxvlm.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from jaxvlm.evaluation.task import DEFAULT_FOLDER
from jaxvlm.web.evaluation_files import Answer, Evaluation, choose, confusion, find_results, flips, read_result
from jaxvlm.web.messages import Reply, body_of, field, get, post, query, query_number
from jaxvlm.web.paths import data_path, run_folder
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_PIXELS = 512  # longest side of a picture in the gallery
_LARGEST = 2**26  # pixels of a picture that is opened
_PAGE, _MOST = 24, 200  # answers of a page
_VERDICTS = ("", "right", "wrong", "unscored")
_SORTS = ("", "longest", "shortest", "worst")
_FLIPPED = 200  # questions of each kind that are sent


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def evaluations(request: Request) -> Reply:
        run = run_folder(studio, query(request, "run"))
        return Reply([_summary_of(name, path) for name, path in find_results(run).items()])

    def evaluation(request: Request) -> Reply:
        found = _result(studio, query(request, "run"), query(request, "name"))
        verdict, sort = query(request, "verdict", ""), query(request, "sort", "")
        if verdict not in _VERDICTS or sort not in _SORTS:
            raise Problem(422, "bad_field", f"verdict is one of {_VERDICTS}, sort one of {_SORTS}")
        chosen = choose(
            found.answers,
            group=query(request, "group", ""),
            verdict=verdict,
            text=query(request, "text", ""),
            sort=sort,
        )
        offset = query_number(request, "offset", 0, 0, 10**9)
        limit = query_number(request, "limit", _PAGE, 1, _MOST)
        return Reply(_page_of(found, chosen, offset, limit))

    def image(request: Request) -> Response:
        found = _result(studio, query(request, "run"), query(request, "name"))
        index = query_number(request, "index", 0, 0, 10**9)
        number = query_number(request, "image", 0, 0, 1000)
        return _picture(_image_path(found, index, number))

    def flipped(request: Request) -> Reply:
        name = query(request, "name")
        ours, theirs = (_result(studio, query(request, key), name) for key in ("run", "other"))
        better, worse = flips(ours.answers, theirs.answers)
        return Reply(
            {
                "better": [_flip(*pair) for pair in better[:_FLIPPED]],
                "worse": [_flip(*pair) for pair in worse[:_FLIPPED]],
                "counts": {"better": len(better), "worse": len(worse)},
            }
        )

    def suites(request: Request) -> Reply:
        return Reply(list_suites(_suites_folder(studio, query(request, "folder", ""))))

    def evaluate(request: Request) -> Reply:
        body = body_of(request)
        return Reply({"task": studio.tasks.start("evaluate", *evaluate_command(studio, body))})

    return [
        get("/api/evaluations", evaluations),
        get("/api/evaluation", evaluation),
        get("/api/evaluation/image", image),
        get("/api/evaluation/flips", flipped),
        get("/api/suites", suites),
        post("/api/evaluate", evaluate),
    ]


def _summary_of(name: str, path: Path) -> dict[str, Any]:
    try:
        return read_result(name, path).summary()
    except (OSError, ValueError) as error:
        return {"name": name, "title": name, "problem": str(error)}


def _result(studio: Studio, run: str, name: str) -> Evaluation:
    found = find_results(run_folder(studio, run))
    if name not in found:
        raise Problem(404, "no_evaluation", f"the run {run} has no result {name!r}", run=run, name=name)
    try:
        return read_result(name, found[name])
    except (OSError, ValueError) as error:
        raise Problem(409, "evaluation_broken", str(error), run=run, name=name) from error


def _page_of(found: Evaluation, chosen: Sequence[Answer], offset: int, limit: int) -> dict[str, Any]:
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for answer in found.answers:
        for axis, value in answer.groups.items():
            entry = groups.setdefault(axis, {}).setdefault(
                str(value), {"count": 0, "right": 0, "score": found.groups.get(axis, {}).get(value)}
            )
            entry["count"] += 1
            entry["right"] += bool(answer.is_correct)
    return {
        **found.summary(),
        "total": len(chosen),
        "groups": groups,
        "answers": [_answer_json(answer) for answer in chosen[offset : offset + limit]],
        "confusion": confusion(chosen),
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "index": answer.index,
        "id": answer.id,
        "origin": answer.origin,
        "question": answer.question,
        "answer": answer.answer,
        "truth": answer.truth_text,
        "correct": answer.is_correct,
        "credit": answer.credit,
        "groups": dict(answer.groups),
        # Numbers of those that there is a file of; "missing" are within the data's own files.
        "images": [number for number, path in enumerate(answer.images) if path],
        "missing": sum(path is None for path in answer.images),
    }


def _flip(ours: Answer, other: Answer) -> dict[str, Any]:
    return _answer_json(ours) | {"other": {"index": other.index, "answer": other.answer, "correct": other.is_correct}}


def _image_path(found: Evaluation, index: int, number: int) -> Path:
    missing = Problem(404, "no_image", f"there is no file of image {number} of answer {index}", index=index)
    if index >= len(found.answers) or number >= len(found.answers[index].images):
        raise missing
    path = found.answers[index].images[number]
    if path is None:
        raise missing
    return Path(path)


def _picture(path: Path) -> Response:
    """A picture's file, decoded, made smaller and encoded again: nothing but pixels leaves the machine."""
    try:
        status = path.stat()
        content = _thumbnail(path, status.st_mtime_ns)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Problem(404, "no_image", f"{path} cannot be shown: {error}", path=str(path)) from error
    return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


@functools.lru_cache(256)
def _thumbnail(path: Path, mtime_ns: int) -> bytes:
    with Image.open(path, formats=("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")) as opened:
        if opened.width * opened.height > _LARGEST:
            raise ValueError(f"it has {opened.width} x {opened.height} pixels, more than {_LARGEST:,}")
        opened.draft("RGB", (_PIXELS, _PIXELS))  # of a JPEG, which is decoded smaller
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((_PIXELS, _PIXELS))
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=3)
    return written.getvalue()


def _suites_folder(studio: Studio, text: str) -> Path:
    """The folder of benchmarks: one of the data, or the one that `evaluate` looks in."""
    return data_path(studio, text) if text else Path(DEFAULT_FOLDER).absolute()


def list_suites(folder: Path) -> list[dict[str, Any]]:
    """Every benchmark, and whether a folder of its name is there; what its files have to be is `needs`."""
    found = []
    for name in BENCHMARKS:
        benchmark = find_benchmark(name)
        where = folder / name
        found.append(
            {
                "name": name,
                "title": benchmark.title,
                "about": benchmark.about,
                "metric": benchmark.metric,
                "splits": dict(benchmark.splits),
                "dialects": list(benchmark.dialects),
                "needs": benchmark.files.strip("\n"),
                "source": benchmark.source,
                "found": where.is_dir(),
                "where": str(where),
            }
        )
    return found


def evaluate_command(studio: Studio, body: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The command of an evaluation, and what a page shows of it.

    Raises:
      Problem: 404: no such run, data or benchmark; 422: both a suite and a source.
    """
    name = field(body, "run", str)
    stage, step, limit = field(body, "stage", str, ""), field(body, "step", int, 0), field(body, "limit", int, 0)
    suite, source = field(body, "suite", str, ""), field(body, "source", str, "")
    if suite and source:
        raise Problem(422, "bad_field", "name a suite or a source, not both", field="source")
    command = [sys.executable, "-m", "jaxvlm.evaluate", "--run", str(run_folder(studio, name)), "--json"]
    command += [f"--stage={stage}"] if stage else []
    command += [f"--step={step}"] if step else []
    command += [f"--limit={limit}"] if limit else []
    if suite:
        benchmark, _, split = suite.partition(":")
        if benchmark not in BENCHMARKS or (split and split not in find_benchmark(benchmark).splits):
            raise Problem(404, "no_suite", f"there is no benchmark {suite!r}; api/suites lists them", suite=suite)
        folder = _suites_folder(studio, field(body, "folder", str, ""))
        command += [f"--suite={suite}", f"--data={folder}"]
    elif source:
        is_spec = source.startswith("easy_vqa:")
        command += [f"--data={source if is_spec else data_path(studio, source)}"]
    about = {"run": name, "stage": stage, "step": step, "suite": suite, "source": source, "limit": limit}
    return command, about
