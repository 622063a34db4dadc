"""Records of the easy-VQA package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from jaxvlm.data.records import IMAGE, Record, Turn, part
from jaxvlm.errors import UserError, missing_extra

_KINDS = ("shape", "color", "yes/no")  # of easy-VQA's questions


class EasyVqa:
    """easy-VQA: 64x64 drawings, each with all its questions as one conversation. The questions are independent."""

    def __init__(self, spec: str):
        _, split, *chosen = spec.split(":")
        kinds = chosen[0].split("+") if chosen else list(_KINDS)
        unknown = [kind for kind in kinds if kind not in _KINDS]
        if split not in ("train", "test") or len(chosen) > 1 or unknown:
            raise UserError(
                f"data.source = {spec!r} is unknown; give easy_vqa:train or easy_vqa:test, and after it, if only some "
                f'questions are wanted, their kinds, such as ":{"+".join(_KINDS)}"'
            )
        try:
            import easy_vqa
        except ModuleNotFoundError as error:
            raise missing_extra(f"data.source = {spec!r}", "easy-vqa", "quickstart") from error
        self._spec, self._split = spec, split
        train = split == "train"
        self._paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
        self._rounds: dict[int, list[tuple[str, str]]] = {}
        asked = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
        for question, answer, image in zip(*asked, strict=True):
            if question_kind(question) in kinds:
                self._rounds.setdefault(image, []).append((question, answer))
        self._images = sorted(self._rounds)

    def __len__(self) -> int:
        return len(self._images)

    def origin(self, index: int) -> str:
        """The place of record `index`: "easy_vqa:train[12]"."""
        return f"{self._spec}[{index}]"

    def __getitem__(self, index: int) -> Record:
        image = self._images[index]
        turns = []
        for number, (question, answer) in enumerate(self._rounds[image]):
            turns.append(Turn("user", question if number else f"{IMAGE}\n{question}"))
            turns.append(Turn("assistant", answer))
        return Record(f"easy_vqa:{self._split}/{image}", tuple(turns), (self._paths[image],), self.origin(index))

    def fingerprint(self) -> str:
        """Hash of the questions, the answers and the image files."""
        digest = hashlib.blake2b(json.dumps([(image, self._rounds[image]) for image in self._images]).encode())
        for image in self._images:
            digest.update(Path(self._paths[image]).read_bytes())
        return digest.hexdigest()

    def questions(self, record: Record) -> list[Record]:
        """Each question alone with the image; its group is the kind of question."""
        questions = []
        for number in range(len(record.turns) // 2):
            user, answer = record.turns[2 * number : 2 * number + 2]
            text = user.text.removeprefix(f"{IMAGE}\n")
            turns = (Turn("user", f"{IMAGE}\n{text}"), answer)
            questions.append(part(record, turns, number, group=question_kind(text)))
        return questions


def question_kind(question: str) -> str:
    """The kind of an easy-VQA question: "yes/no" unless it asks what; then "color" if it names color, else "shape"."""
    if not question.startswith("what"):
        return "yes/no"
    return "color" if "color" in question else "shape"
