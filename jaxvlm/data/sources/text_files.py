"""Items of text files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvlm.data.records import RecordError
from jaxvlm.data.sources.items import hash_files
from jaxvlm.errors import UserError


class TextFiles:
    """Items: each text file is a document, and its path the id."""

    def __init__(self, spec: str):
        """Finds the files of "corpus.txt" or "corpus/*.txt".

        Raises:
          UserError: there are none.
        """
        path = Path(spec)
        self._files: Sequence[Path] = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        self._files = [file for file in self._files if file.is_file()]
        if not self._files:
            raise UserError(f"data.source = {spec!r}: there is no such file")

    def __len__(self) -> int:
        return len(self._files)

    def origin(self, index: int) -> str:
        """The path of a file."""
        return str(self._files[index])

    def fingerprint(self) -> str:
        """Hash of the files' bytes."""
        return hash_files(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The text of a file.

        Raises:
          RecordError: it is not UTF-8.
          UserError: it can no longer be read.
        """
        origin = self.origin(index)
        try:
            text = self._files[index].read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8"
            raise RecordError(f"{origin} {problem}", origin, "invalid_utf8") from error
        except OSError as error:
            raise UserError(f"{origin} cannot be read ({error}); is it gone?") from error
        return {"id": origin, "text": text}
