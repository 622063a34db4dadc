"""Serves a model over HTTP as OpenAI's chat completions, to any client of these; with images or without.

Examples:
  python -m jaxvlm.serve --run runs/quickstart
  python -m jaxvlm.serve --from llava-hf/llava-1.5-7b-hf --slots 16
  python -m jaxvlm.serve --from llava-hf/llava-1.5-7b-hf --adapter ADAPTER_FOLDER --name mine
  python -m jaxvlm.serve --from SmolLM2.gguf --port 8001
  python -m jaxvlm.serve --run runs/mine --allow-media /data/images --allow-url images.example.org
  python -m jaxvlm.serve --run runs/mine --host 0.0.0.0 --api-key-file key.txt --allow-origin https://chat.example.org

The model is named as for `generate`. When it is compiled a line tells that it is ready; then, from another terminal:

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'

or with the package openai: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"). Paths: /v1/chat/completions,
/v1/models, /health (200 when ready), /metrics (for Prometheus), and /v1/chat/prompt, which takes the same body as the
first and returns what the model would get: each token, and each image after resizing and padding.
docs/serving.md has images, limits and security.

Only this machine can ask, unless --host names another address; that needs a key, from --api-key-file or the variable
JAXVLM_API_KEY. Ctrl-C or SIGTERM ends the server: answers in progress have --grace seconds to finish.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError, missing_extra
from jaxvlm.model_flags import add_model_flags, check_model_flags, open_flags, with_system

if TYPE_CHECKING:
    from jaxvlm.config import Config
    from jaxvlm.inference.engine import Engine
    from jaxvlm.serving.access import Access
    from jaxvlm.serving.media import MediaRules
    from jaxvlm.serving.protocol import Served
    from jaxvlm.serving.scheduler import Scheduler
    from jaxvlm.serving.server import Service

NAME = "jaxvlm"  # some clients change what they send by words in a model's name, such as "step" or "o1"


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command until a signal; returns what `--json` prints."""
    args = _parser().parse_args(argv)
    check_model_flags(args)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra("jaxvlm.serve", str(error.name), "serve") from error
    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm.inference.engine import Engine
    from jaxvlm.listening import bind
    from jaxvlm.processes import log
    from jaxvlm.serving.running import Server

    # Check the arguments and take the port before the weights are read, which takes a while.
    access, media = _access(args), _media(args)
    config, load = open_flags(args)
    listening = bind(args.host, args.port)
    engine = with_system(Engine.of(load()), args.system)
    del load  # what was read of the sources
    service = _service(args, config, engine, access, media)
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    began = time.perf_counter()
    log(f"compiling for {service.scheduler.limits.slots} slots of {service.served.tokens} tokens")

    def on_ready() -> None:
        log(f"ready after {time.perf_counter() - began:.1f} s: {service.served.name} at {url}")

    Server(service, listening, args.grace, on_ready).run()
    stats = service.scheduler.stats()
    return {"url": url, "answers": dict(stats.finished), "completion_tokens": stats.completion_tokens}


def _parser() -> Parser:
    parser = Parser("serve", __doc__)
    add_model_flags(parser)
    parser.add_argument("--name", default=NAME, metavar="NAME", help=f"name of the model for clients (default: {NAME})")
    group = parser.add_argument_group("address and access")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: %(default)s)"
    )
    group.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any)")
    group.add_argument("--api-key-file", metavar="FILE", help="file with the key that clients have to send")
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may ask, such as http://localhost:3000 ('*': all); may be repeated",
    )
    group.add_argument(
        "--grace", type=float, default=30.0, metavar="SECONDS", help="for answers in progress at the end (default: 30)"
    )
    group = parser.add_argument_group("images of requests (data: URLs are always read)")
    group.add_argument("--allow-media", type=Path, metavar="DIR", help="also read files in this folder")
    group.add_argument(
        "--allow-url",
        action="append",
        default=[],
        metavar="HOST",
        help="also fetch http and https URLs of exactly this host, or host:port; may be repeated",
    )
    group.add_argument("--max-images", type=int, default=8, metavar="N", help="images of a request (default: 8)")
    group.add_argument("--max-pixels", type=int, default=2**26, metavar="N", help="of an image (default: 67 million)")
    group.add_argument(
        "--max-body", type=int, default=2**26, metavar="N", help="bytes of a request, and of an image (default: 64 MiB)"
    )
    _add_limits(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sizes")
    group.add_argument("--slots", type=int, default=8, metavar="N", help="answers written at once (default: 8)")
    group.add_argument(
        "--tokens", type=int, metavar="N", help="of a prompt and its answer (default: those of the model's rows)"
    )
    group.add_argument("--queue", type=int, default=256, metavar="N", help="answers that may wait (default: 256)")
    group.add_argument(
        "--steps", type=int, default=4, metavar="N", help="tokens between two pieces of a stream (default: 4)"
    )
    group.add_argument(
        "--image-cache-bytes", type=int, default=2**29, metavar="N", help="features of images (default: 512 MiB)"
    )
    group.add_argument(
        "--prefix-cache-bytes", type=int, default=2**30, metavar="N", help="beginnings of prompts (default: 1 GiB)"
    )


def _access(args: argparse.Namespace) -> Access:
    """Who may ask."""
    from jaxvlm.serving.access import KEY_VARIABLE, Access, is_loopback, read_key

    key, loopback = read_key(args.api_key_file, os.environ), is_loopback(args.host)
    if key is None and not loopback:
        raise UserError(
            f"--host {args.host} lets other machines ask, and there is no key; give one with --api-key-file FILE or "
            f"the variable {KEY_VARIABLE}, or leave --host out"
        )
    return Access(key, loopback, frozenset(args.allow_origin))


def _media(args: argparse.Namespace) -> MediaRules:
    """Which images are read."""
    from jaxvlm.serving.fetch import check_host
    from jaxvlm.serving.media import MediaRules

    low = [name for name in ("max_images", "max_pixels", "max_body", "grace") if getattr(args, name) < 0]
    if low:
        raise UserError("; ".join(f"--{name.replace('_', '-')} is below 0" for name in low))
    if args.allow_media is not None and not args.allow_media.is_dir():
        raise UserError(f"--allow-media {args.allow_media} is no folder; name one that is here")
    try:
        hosts = frozenset(map(check_host, args.allow_url))
    except ValueError as error:
        raise UserError(f"--allow-url: {error}") from error
    return MediaRules(args.allow_media, hosts, args.max_body, args.max_pixels)


def _service(args: argparse.Namespace, config: Config, engine: Engine, access: Access, media: MediaRules) -> Service:
    from jaxvlm.serving.limits import Limits
    from jaxvlm.serving.scheduler import Scheduler
    from jaxvlm.serving.server import Rules, Service

    names = ("slots", "tokens", "queue", "steps", "image_cache_bytes", "prefix_cache_bytes", "max_images")
    scheduler = Scheduler(engine, Limits(**{name: getattr(args, name) for name in names}))
    limits = scheduler.limits
    rules = Rules(access, media, args.max_body, max_calls=limits.slots + limits.queue)

    return Service(scheduler, _served(args.name, config, engine, scheduler), rules)


def _served(name: str, config: Config, engine: Engine, scheduler: Scheduler) -> Served:
    """What clients are told of the model."""
    from jaxvlm.config_reading import to_dict
    from jaxvlm.data.text.templates import TEMPLATES
    from jaxvlm.inference.sampling import Sampling
    from jaxvlm.serving.protocol import Served

    template = TEMPLATES.get(engine.data.template)
    if template is not None and (template.captions or template.documents):
        raise UserError(
            f'the template "{engine.data.template}" writes no conversations, and a server answers these; serve a model '
            "with a chat template, or name one (with --from: --template vicuna_v1)"
        )
    sampling = Sampling(**to_dict(config.generation))
    return Served(
        name=name,
        created=int(time.time()),
        tokens=scheduler.limits.tokens,
        sampling=sampling,
        max_choices=scheduler.limits.slots,
        max_images=scheduler.limits.max_images,
        takes_images="vision" in config.model.parts,
        takes_system=template is None or template.takes_system,
    )


if __name__ == "__main__":
    sys.exit(run(main))
