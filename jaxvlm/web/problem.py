"""The studio's errors, as its pages receive them."""

from __future__ import annotations

from typing import Any


class Problem(Exception):  # noqa: N818 - it is a refusal with a status, not a fault of the server
    """A request that is refused; the reply is {"error": {"code", "message", "facts"}}.

    Attributes:
      status: of HTTP.
      code: a fixed word that a page translates, such as "run_exists".
      message: one sentence in English: the rule, the value, the remedy.
      facts: values for the translation, ready for JSON.
    """

    def __init__(self, status: int, code: str, message: str, **facts: Any):
        super().__init__(message)
        self.status, self.code, self.message, self.facts = status, code, message, facts

    def to_dict(self) -> dict[str, Any]:
        """The body of the reply."""
        return {"error": {"code": self.code, "message": self.message, "facts": self.facts}}
