"""Stands in for `python -m jaxvlm.serve`: the same log lines, key and paths, without a model.

A body with "wait" streams one piece, and the next only after the file `go` is there; `left` is written when the client
leaves before.
"""

import http.server
import json
import sys
import time
from pathlib import Path


def piece_of(body):
    """The answer: a word, or, as a page asks, a piece of OpenAI's with the number of pictures, and the usage."""
    if "stream_options" not in body:
        return b"data: one\n\n"
    pictures = sum(part["type"] == "image_url" for part in body["messages"][-1]["content"])
    delta = {"choices": [{"delta": {"content": f"{pictures} pictures"}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    return f"data: {json.dumps(delta)}\n\ndata: {json.dumps(usage)}\n\n".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {KEY}":
            self.reply(401, {"error": {"message": "the API key is missing or wrong"}})
        elif self.path == "/v1/chat/prompt":
            self.reply(200, {"tokens": [{"id": 1, "text": "a", "control": False}], "pixels": [], "body": body})
        elif not body.get("messages"):
            self.reply(400, {"error": {"message": "messages: expected a list", "param": "messages"}})
        else:
            self.stream(body)

    def reply(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, body):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(piece_of(body))
        try:
            while body.get("wait") and not (FOLDER / "go").exists():
                time.sleep(0.01)
                self.wfile.write(b": still here\n\n")
        except OSError:
            (FOLDER / "left").touch()
            return
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


FOLDER, KEY = Path(sys.argv[1]), Path(sys.argv[1], "key").read_text().strip()
print("compiling for 2 slots of 336 tokens", file=sys.stderr, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
while not (FOLDER / "compiled").exists():
    time.sleep(0.01)
print(f"ready after 0.1 s: jaxvlm at http://127.0.0.1:{server.server_port}/v1", file=sys.stderr, flush=True)
server.serve_forever()
