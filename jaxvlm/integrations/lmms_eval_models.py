"""The model "jaxvlm" of lmms-eval: `python -m lmms_eval --model jaxvlm --model_args run=runs/mine --tasks ...`.

Two classes, since lmms-eval has two interfaces: chat messages, its default, and for `--force_simple` (which tasks of
likelihoods need) a text with images before it.

Source: lmms_eval/api/model.py, api/task.py and evaluator.py of lmms-eval 0.7.3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.integrations.questions import (
    Generation,
    Question,
    answer_all,
    image_file,
    open_engine,
    score_all,
    with_placeholders,
)
from jaxvlm.media import Medium

_MOST_ROUNDS = 100  # of a request; a task that never ends would otherwise keep the run for ever


class _Model(lmms):
    """What both interfaces share."""

    def __init__(
        self,
        run: str = "",
        pretrained: str = "",
        stage: str = "",
        step: int = 0,
        template: str = "",
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        """Opens the model, on all local devices.

        Args:
          run, stage, step: as those of `generate`.
          pretrained: a Hugging Face folder, a GGUF file or a name on the hub, in place of a run.
          template: of `pretrained`.
          seed: of tasks that sample.
          batch_size: questions answered at once.
          max_batch_size: unused; it limits "auto", which there is not.

        Raises:
          UserError: unknown arguments, or the model cannot be opened.
        """
        super().__init__()
        if unknown:
            known = "run, pretrained, stage, step, template, seed"
            raise UserError(f"--model_args has unknown names: {', '.join(unknown)}; known: {known}")
        if device is not None:
            raise UserError(f"--device {device}: all local devices are used; leave it out, and choose by JAX_PLATFORMS")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: jaxvlm needs a number, 1 or more")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("lmms-eval runs several processes; start one, which uses all local devices")
        self._batch_size, self._seed = int(batch_size), int(seed)
        self._engine = open_engine(run=str(run), source=str(pretrained), stage=stage, step=int(step), template=template)

    def _doc(self, doc_id: int, task: str, split: str) -> dict[str, Any]:
        return self.task_dict[task][split][doc_id]

    def _answer(self, requests: Sequence[Instance], questions: Sequence[Question]) -> list[str]:
        """Answers in the order of the requests; each is given to the cache when it is there."""
        answers = [""] * len(requests)
        for number, text in answer_all(self._engine, questions, self._batch_size):
            answers[number] = text
            request = requests[number]
            self.cache_hook.add_partial("generate_until", (request.args[0], _settings(request)), text)
        return answers

    def _generations(self, requests: Sequence[Instance]) -> list[Generation]:
        """The settings of each request; checked before the first is answered."""
        return [Generation.of(_settings(request), self._seed) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of the simple interface only."""
        raise UserError("lmms-eval scores likelihoods through its simple interface; pass --force_simple")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Of the chat interface only."""
        raise UserError("jaxvlm answers several rounds through lmms-eval's chat interface; leave --force_simple out")


class SimpleModel(_Model):
    """The simple interface: a text, and images that come before it unless it has `<image>` where each belongs."""

    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers requests with args (context, gen_kwargs, doc_to_visual, doc_id, task, split).

        Raises:
          UserError: settings that cannot be honoured, media that are no images, or as `Engine.answer`.
        """

        def build(request: Instance) -> Record:
            context, _, doc_to_visual, *place = request.args
            return self._record(context, doc_to_visual, place)

        generations = self._generations(requests)
        return self._answer(requests, list(map(Question, _later(build, requests), generations)))

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Scores requests with args (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split).

        Returns:
          pairs of the loss, in nats a token, and whether the continuation is the greedy answer. Not the log probability
          that lmms-eval's docstring names: its tasks take the choice with the smallest number, and all its own models
          return losses. The end token is not among the tokens.

        Raises:
          UserError: media that are no images, or as `Engine.loglikelihoods`.
        """

        def build(request: Instance) -> Record:
            if len(request.args) != 6:
                raise UserError("jaxvlm cannot score a text without a question (metric acc_mutual_info); leave it out")
            context, target, doc_to_visual, *place = request.args
            text = target(self._doc(*place)) if callable(target) else target
            return self._record(context, doc_to_visual, place, str(text).strip())

        found = score_all(self._engine, _later(build, requests), self._batch_size)
        # The evaluator makes a bare pair a text (`unwrap_generation_output`), on which its tasks then fail.
        return [GenerationResult((-one.logprob / one.tokens, one.is_greedy)) for one in found]

    def _record(
        self, context: str, doc_to_visual: Callable[[dict], Any], place: Sequence[Any], answer: str | None = None
    ) -> Record:
        origin = _origin(*place)
        images = tuple(_image(visual, origin) for visual in doc_to_visual(self._doc(*place)) or ())
        turns = [Turn("user", with_placeholders(context, len(images), origin))]
        if answer is not None:
            turns.append(Turn("assistant", answer))
        return Record(origin, tuple(turns), images, origin)


class ChatModel(_Model):
    """The chat interface: messages with images in their places."""

    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers requests with args (context, doc_to_messages, gen_kwargs, doc_id, task, split).

        Raises:
          UserError: settings that cannot be honoured, media that are no images, or as `Engine.answer`.
        """

        def build(request: Instance) -> Record:
            _, doc_to_messages, _, *place = request.args
            return _conversation(doc_to_messages(self._doc(*place)), _origin(*place))

        generations = self._generations(requests)
        return self._answer(requests, list(map(Question, _later(build, requests), generations)))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answers round after round, in each those requests that the task has another question for.

        Returns:
          the answers of each request.

        Raises:
          UserError: as `generate_until`; or a task has not ended after 100 rounds.
        """
        generations = self._generations(requests)
        answers: list[list[str]] = [[] for _ in requests]
        infos: list[Any] = [None] * len(requests)
        waiting = list(range(len(requests)))
        for round_number in range(_MOST_ROUNDS):
            asked: dict[int, Question] = {}
            for number in waiting:
                messages, infos[number] = self._messages(requests[number], round_number, answers[number], infos[number])
                if messages is not None:
                    record = _conversation(messages, _origin(*requests[number].args[3:]))
                    asked[number] = Question(lambda record=record: record, generations[number])  # type: ignore[misc]
            if not asked:
                return answers
            waiting = list(asked)
            for at, text in answer_all(self._engine, list(asked.values()), self._batch_size):
                answers[waiting[at]].append(text)
        raise UserError(
            f"{_origin(*requests[waiting[0]].args[3:])}: the task has not ended after {_MOST_ROUNDS} rounds"
        )

    def _messages(self, request: Instance, round_number: int, answers: list[str], info: Any) -> tuple[Any, Any]:
        """The messages of a round, None after the last; and what the task wants to be told in the next."""
        _, doc_to_messages, _, *place = request.args
        if not round_number:
            return doc_to_messages(self._doc(*place)), None
        found = doc_to_messages(
            self._doc(*place), round_idx=round_number, previous_output=list(answers), previous_round_info=info
        )
        if not isinstance(found, tuple) or len(found) != 4:  # a task of one round
            return None, None
        messages, is_over, _, info = found
        return (None if is_over else messages), info


def _settings(request: Instance) -> dict[str, Any]:
    """The gen_kwargs of a request of either interface."""
    return next(argument for argument in request.args[1:3] if isinstance(argument, dict))


def _origin(doc_id: Any, task: str, split: str) -> str:
    return f"{task}/{split}[{doc_id}]"


def _later(build: Callable[[Instance], Record], requests: Sequence[Instance]) -> list[Callable[[], Record]]:
    return [lambda request=request: build(request) for request in requests]  # type: ignore[misc]


def _image(visual: Any, origin: str) -> Medium:
    """An image of a request; raises `UserError` for a video or a sound."""
    if isinstance(visual, Image.Image):
        return image_file(visual)
    raise UserError(
        f"{origin} has a visual of type {type(visual).__name__}; jaxvlm takes images in lmms-eval, no others"
    )


def _conversation(messages: Any, origin: str) -> Record:
    """The record of chat messages, which end with a question."""
    turns, images = [], []
    for message in ChatMessages(messages=messages).messages:
        texts, found = [], []
        for part in message.content:
            if part.type == "text":
                texts.append(part.text)
                continue
            if part.type != "image":
                raise UserError(f"{origin} has a part of type {part.type}; jaxvlm takes texts and images in lmms-eval")
            found.append(part.url if isinstance(part.url, str) else _image(part.url, origin))
            texts.append(f"{IMAGE}\n")
        own = "".join(part.text for part in message.content if part.type == "text")
        # The text says where the images belong, or their parts do.
        text = with_placeholders(own, len(found), origin) if IMAGE in own else "".join(texts)
        turns.append(Turn(message.role, text))
        images += found
    if turns and turns[-1].role != "user":
        raise UserError(f"{origin}: its messages end with one of role {turns[-1].role}; jaxvlm answers questions only")
    return Record(origin, tuple(turns), tuple(images), origin)
