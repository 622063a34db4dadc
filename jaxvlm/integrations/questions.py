"""What the harnesses share: opening a model, their images, texts and settings in our words, answers in batches."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps

from jaxvlm.data.records import IMAGE, Record
from jaxvlm.errors import UserError
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.likelihood import LogLikelihood
from jaxvlm.inference.sampling import GREEDY, Sampling
from jaxvlm.progress import progress_bar
from jaxvlm.restore import open_run
from jaxvlm.source_model import open_model, read_sources

Result = TypeVar("Result")

# Records whose images are in memory at once. Fixed, since samples depend on it.
_RECORDS_AT_ONCE = 256
DEFAULT_MAX_NEW_TOKENS = 128  # LLaVA's own of short answers

_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


def open_engine(*, run: str = "", source: str = "", stage: str = "", step: int = 0, template: str = "") -> Engine:
    """The engine of a run, or of a source as `generate --from` takes it.

    Args:
      run: folder of a run.
      source: a Hugging Face folder, a GGUF file or a name on the hub.
      stage, step: which of the run's weights; "" and 0: the newest.
      template: of the source's conversations; "": its own.

    Raises:
      UserError: not one of run and source is given, settings of the other one are, or it cannot be opened.
    """
    if bool(run) == bool(source):
        given = "both were given" if run else "neither was given"
        raise UserError(f"one model is needed, a run or published weights, and {given}; pass one of the two")
    if source and (stage or step):
        raise UserError("stage and step choose among a run's checkpoints; leave them out with published weights")
    if run and template:
        raise UserError("a run keeps the template of its training; leave template out")
    if run:
        return Engine.of(open_run(Path(run), stage=stage, step=step))
    return Engine.of(open_model(read_sources([source], template or None)))


def image_file(image: Image.Image) -> bytes:
    """An image as a PNG of the same pixels, upright; modes that PNG lacks, such as CMYK, become RGB."""
    upright = ImageOps.exif_transpose(image)
    assert upright is not None  # only with in_place
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=1)
    return file.getvalue()


def with_placeholders(text: str, images: int, origin: str) -> str:
    """A user text with a placeholder for each image: where it has them already, or all before it.

    Raises:
      UserError: it has another number of them; `origin` is its place.
    """
    found = text.count(IMAGE)
    if found and found != images:
        raise UserError(f"{origin}: its text has {found} {IMAGE} for {images} images; it needs one for each, or none")
    return text if found else f"{IMAGE}\n" * images + text


@dataclasses.dataclass(frozen=True)
class Generation:
    """How an answer is generated.

    Attributes:
      stop_texts: the answer ends before the first of them.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: Sampling = GREEDY
    stop_texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any], seed: int = 0) -> Generation:
        """From settings in the words of transformers' `generate`; None is as good as absent.

        `do_sample` false is greedy whatever the temperature, and so is temperature 0. `image_aspect_ratio` is what a
        model that does not define its own would use; ours do. `until` is a text or a list.

        Raises:
          UserError: settings that cannot be honoured, all of them.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        problems = [
            f"{name} = {given.pop(name)!r}, only {only} is supported"
            for name, only in (("num_beams", 1), ("repetition_penalty", 1.0))
            if given.get(name, only) != only
        ]
        do_sample = bool(given.get("do_sample", given.get("temperature", 0) > 0))
        temperature = float(given.get("temperature", 1.0)) if do_sample else 0.0
        until = given.get("until", ())
        stops = (until,) if isinstance(until, str) else tuple(until)
        if not all(isinstance(text, str) and text for text in stops):
            problems.append(f"until = {until!r}, expected texts that are not empty")
        if int(given.get("max_new_tokens", 1)) < 1:
            problems.append(f"max_new_tokens = {given['max_new_tokens']}, expected 1 or more")
        if unknown := given.keys() - _SETTINGS:
            problems.append(f"unknown: {', '.join(sorted(unknown))}")
        if problems:
            raise UserError(f"generation settings that jaxvlm cannot honour: {'; '.join(problems)} (known: {_KNOWN})")
        sampling = Sampling(seed=int(given.get("seed", seed)))
        if temperature:
            top_p, top_k = float(given.get("top_p", 1.0)), int(given.get("top_k", 0))
            sampling = Sampling(temperature, top_p, top_k, sampling.seed)
        return cls(int(given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)), sampling, stops)

    def cut(self, text: str) -> str:
        """The text before the first of the stop texts, without white space at its end."""
        ends = [at for stop in self.stop_texts if (at := text.find(stop)) >= 0]
        return text[: min(ends)].rstrip() if ends else text


_SETTINGS = {"max_new_tokens", "until", "do_sample", "temperature", "top_p", "top_k", "seed"}
_SETTINGS |= {"num_beams", "repetition_penalty", "image_aspect_ratio"}
_KNOWN = ", ".join(sorted(_SETTINGS))


@dataclasses.dataclass(frozen=True)
class Question:
    """A record that is built when its turn comes, since its images may be large; and how it is answered."""

    build: Callable[[], Record]
    generation: Generation = Generation()


def answer_all(engine: Engine, questions: Sequence[Question], batch_size: int) -> Iterator[tuple[int, str]]:
    """Answers questions, those with equal settings together; shows a bar on standard error.

    Yields:
      the number of a question and its answer.

    Raises:
      UserError: as `Engine.answer`.
    """
    groups: dict[Generation, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.generation, []).append(number)
    with progress_bar("answers", len(questions), "question") as bar:
        for generation, numbers in groups.items():
            for part, some in enumerate(_parts(numbers, batch_size)):
                # Another seed, or the records of each part would draw the same numbers.
                seed = (generation.sampling.seed + part) % 2**32
                texts = engine.answer(
                    [questions[number].build() for number in some],
                    max_new_tokens=generation.max_new_tokens,
                    batch_size=batch_size,
                    sampling=dataclasses.replace(generation.sampling, seed=seed),
                )
                yield from ((number, generation.cut(text)) for number, text in zip(some, texts, strict=True))
                bar.update(len(some))


def score_all(engine: Engine, builds: Sequence[Callable[[], Record]], batch_size: int) -> list[LogLikelihood]:
    """Scores the final answers of records; shows a bar on standard error.

    Raises:
      UserError: as `Engine.loglikelihoods`.
    """
    found: list[LogLikelihood] = []
    with progress_bar("likelihoods", len(builds), "answer") as bar:
        for some in _parts(builds, batch_size):
            found += engine.loglikelihoods([build() for build in some], batch_size=batch_size)
            bar.update(len(some))
    return found


def _parts(items: Sequence[Result], batch_size: int) -> Iterator[Sequence[Result]]:
    size = max(batch_size, _RECORDS_AT_ONCE)
    return (items[at : at + size] for at in range(0, len(items), size))
