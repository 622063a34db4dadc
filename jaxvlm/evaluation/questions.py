"""The questions of a data set."""

from __future__ import annotations

from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.text.turns import drop_leading_answer
from jaxvlm.errors import UserError, listed


def load_questions(
    spec: str, image_folder: str = "", limit: int = 0, *, allow_outside: bool = False
) -> tuple[list[Record], list[str]]:
    """Loads the questions of a data set.

    Args:
      spec: as `data.source` of a recipe.
      image_folder: as `data.image_folder`.
      limit: at most this many, the first ones; 0: all.
      allow_outside: as `data.allow_outside`.

    Returns:
      records that each end with the reference answer, and notes on what was left out.

    Raises:
      UserError: no such data, records that break a rule (ten at most are named), or no question.
    """
    source = load_source(spec, image_folder, allow_outside=allow_outside)
    questions: list[Record] = []
    problems, notes = [], []
    for index in range(len(source)):
        if limit and len(questions) >= limit:
            break
        try:
            record = source[index]
        except RecordError as error:
            problems.append(str(error))
            continue
        asked = drop_leading_answer(record)
        if asked is not record:
            notes.append(f"{record.origin}: the answer before the first question is left out")
        questions.extend(source.questions(asked))
    if problems:
        raise UserError(listed(problems))
    if not questions:
        raise UserError(f"{spec} holds no question: none of its {len(source)} records has an answer to compare with")
    return questions[:limit] if limit else questions, notes
