"""What the studio's server knows: folders, rules, and the parts that work on them."""

from __future__ import annotations

import dataclasses
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvlm.errors import UserError
from jaxvlm.web.tasks import Tasks

if TYPE_CHECKING:
    from jaxvlm.web.queue import Queue

_TOKEN_BYTES = 32


@dataclasses.dataclass
class Studio:
    """The studio of a root.

    Attributes:
      root: the folder of the runs.
      recipes: the folder of the user's recipes.
      data_roots: folders that pages may look into.
      prefix: of all paths, such as "/studio"; "".
      token: lets its owner in.
      read_only: whether nothing can be started, stopped or changed.
      allowed_hosts: names of this server, besides those of the loopback; with a port or without.
      language: "en" or "zh" of pages; None: each browser's own.
      tasks: commands besides the runs.
      queue: runs that wait for devices.
      closing: set when the server ends; streams then end too.
    """

    root: Path
    recipes: Path
    data_roots: tuple[Path, ...] = ()
    prefix: str = ""
    token: str = dataclasses.field(default="", repr=False)
    read_only: bool = False
    allowed_hosts: tuple[str, ...] = ()
    language: str | None = None
    tasks: Tasks = dataclasses.field(init=False)
    queue: Queue = dataclasses.field(init=False)
    closing: bool = False

    def __post_init__(self) -> None:
        from jaxvlm.web.queue import Queue  # it takes a studio

        self.tasks, self.queue = Tasks(self.root), Queue(self)


def read_token(root: Path) -> str:
    """The token of ROOT/.studio/token, which is made if it is missing; so pages stay logged in after a restart.

    Raises:
      UserError: others may read the file, or it holds no token.
    """
    path = root / ".studio" / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
        except OSError as error:  # an empty file would keep the next start from making one
            path.unlink()
            error.filename = str(path)
            raise
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others; run `chmod 600 {path}`, or remove the file for a new token")
    token = path.read_text().strip()
    if len(token) < _TOKEN_BYTES:
        raise UserError(f"{path} holds no token; remove the file, and a new one is made")
    return token
