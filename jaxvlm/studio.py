"""The studio: makes, starts, watches and compares runs in a browser, and lets one talk to their models.

Examples:
  python -m jaxvlm.studio
  python -m jaxvlm.studio --root runs --recipes recipes --data /data/images --language zh
  python -m jaxvlm.studio --port 7861 --read-only
  python -m jaxvlm.studio --host 0.0.0.0 --allow-host lab7.example.org:7860
  python -m jaxvlm.studio --prefix /studio --allow-host studio.example.org

It prints one address, which contains a token: whoever has it may start programs here. Only this machine can ask, unless
--host names another address; from another machine an ssh tunnel is better: ssh -L 7860:127.0.0.1:7860 HOST. The token
stays the same, in ROOT/.studio/token, so that pages stay logged in when the studio is started again.

What it does are commands and files that work without it: a run is a folder below --root, whoever started it. Runs
outlive the studio; Ctrl-C ends the studio alone. (A container ends everything with its first process: start the studio
as another one.) docs/studio.md has the pages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError, missing_extra

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_ANY = ("0.0.0.0", "::", "")


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command until a signal; returns what `--json` prints."""
    args = _parser().parse_args(argv)
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra("jaxvlm.studio", package, "studio")
    # Here, since they take a while, and --help needs none of them.
    from jaxvlm.listening import bind
    from jaxvlm.web.running import Server, owner_of, runs_that_go_on, take_root

    _check(args)
    listening = bind(args.host, args.port, owner_of=owner_of)
    args.root.mkdir(parents=True, exist_ok=True)
    lock = None if args.read_only else take_root(args.root)
    studio = _studio(args)
    address = _address(args, listening.getsockname()[1], studio)
    _announce(args, address)
    try:
        Server(studio, listening, lambda: webbrowser.open(address) if args.open else None).run()
    finally:
        if lock is not None:
            lock.release()
    going = runs_that_go_on(studio)
    print(f"the studio has ended; {_that_go_on(going)}", file=sys.stderr)
    return {"address": address.partition("#")[0], "runs": going}


def _parser() -> Parser:
    parser = Parser("studio", __doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default: runs)"
    )
    parser.add_argument(
        "--recipes", type=Path, default=Path("recipes"), metavar="DIR", help="folder of your recipes (default: recipes)"
    )
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="DIR", help="pages may look in here; may be repeated"
    )
    parser.add_argument("--language", choices=["en", "zh"], help="of the pages (default: each browser's own)")
    parser.add_argument("--read-only", action="store_true", help="start, stop and change nothing")
    parser.add_argument("--open", action="store_true", help="also open the address in a browser")
    group = parser.add_argument_group("address and access")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: %(default)s)"
    )
    group.add_argument("--port", type=int, default=7860, metavar="N", help="port (default: %(default)s; 0: any)")
    group.add_argument("--prefix", default="", metavar="/PATH", help="path below which a proxy shows the studio")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name, or name:port, under which browsers may ask, besides localhost; may be repeated",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """Checks the arguments.

    Raises:
      UserError: every mistake in them.
    """
    problems = [f"--data {path} is no folder; name one that is here" for path in args.data if not path.is_dir()]
    problems += [f"--{name} {path} is a file; name a folder" for name, path in _folders(args) if path.is_file()]
    if args.prefix and not re.fullmatch(r"(/[\w.~-]+)+", args.prefix):
        problems.append(f"--prefix {args.prefix} is no path such as /studio, without a slash at its end")
    hosts = [name for name in args.allow_host if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?", name)]
    problems += [f"--allow-host {name} is no name such as lab7.example.org or lab7.example.org:7860" for name in hosts]
    if args.host in _ANY and not args.allow_host:
        problems.append(
            f"--host {args.host} is every address of this machine; name those that browsers use with --allow-host"
        )
    if problems:
        raise UserError("; ".join(problems))


def _folders(args: argparse.Namespace) -> list[tuple[str, Path]]:
    return [("root", args.root), ("recipes", args.recipes)]


def _studio(args: argparse.Namespace) -> Studio:
    from jaxvlm.serving.access import is_loopback
    from jaxvlm.web.studio import Studio, read_token

    own = [] if is_loopback(args.host) or args.host in _ANY else [_in_address(args.host)]
    return Studio(
        root=args.root.resolve(),
        recipes=args.recipes.resolve(),
        data_roots=tuple(path.resolve() for path in args.data),
        prefix=args.prefix,
        token=read_token(args.root),
        read_only=args.read_only,
        allowed_hosts=tuple(name.lower() for name in [*own, *args.allow_host]),
        language=args.language,
    )


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _address(args: argparse.Namespace, port: int, studio: Studio) -> str:
    host = args.allow_host[0] if args.host in _ANY else _in_address(args.host)
    place = host if re.search(r":\d+$", host) and args.host in _ANY else f"{host}:{port}"
    return f"http://{place}{studio.prefix}/#token={studio.token}"


def _announce(args: argparse.Namespace, address: str) -> None:
    """Prints the address, alone on a line of standard output; and what to know about it."""
    from jaxvlm.serving.access import is_loopback

    if not is_loopback(args.host):
        port = args.port
        print(
            "warning: this is plain HTTP, and who reads along on the network has the token; better leave --host out "
            f"and use a tunnel: ssh -L {port}:127.0.0.1:{port} HOST",
            file=sys.stderr,
        )
    print(json.dumps({"address": address}) if args.json else f"studio: {address}", flush=True)


def _that_go_on(names: list[str]) -> str:
    return f"these runs go on: {', '.join(names)}" if names else "no run is in progress"


if __name__ == "__main__":
    sys.exit(run(main))
