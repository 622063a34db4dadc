"""The studio as a process of its own."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]


class Process:
    """`python -m jaxvlm.studio` on a free port; `ask` sends it requests with its token."""

    def __init__(self, folder, *arguments):
        command = [
            sys.executable,
            "-m",
            "jaxvlm.studio",
            "--json",
            "--root",
            str(folder / "root"),
            *map(str, arguments),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        self.address = json.loads(line)["address"] if line else ""
        self.place, _, self.token = self.address.removeprefix("http://").partition("/#token=")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ask(self, path, body=None):
        """The reply's JSON."""
        connection = http.client.HTTPConnection(self.place, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "X-Jaxvlm": "1"}
        method = "GET" if body is None else "POST"
        connection.request(method, f"/api/{path}", None if body is None else json.dumps(body), headers)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def end(self, number=signal.SIGINT):
        """Sends a signal; returns the exit code, standard output and standard error."""
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, out, errors
