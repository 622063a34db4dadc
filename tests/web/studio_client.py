"""A studio of a temporary folder, asked without a network."""

from starlette.testclient import TestClient

from jaxvlm.web.server import build_app
from jaxvlm.web.studio import Studio

TOKEN = "t" * 43


class Client:
    """Asks a studio as its page does, with its token."""

    def __init__(self, studio):
        self.studio = studio
        headers = {"authorization": f"Bearer {TOKEN}", "x-jaxvlm": "1"}
        self._http = TestClient(build_app(studio), base_url="http://127.0.0.1", headers=headers)

    def reply(self, path, /, **parameters):
        return self._http.get(f"/api/{path}", params=parameters)

    def get(self, path, /, **parameters):
        reply = self.reply(path, **parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path, body, status=200):
        reply = self._http.post(f"/api/{path}", json=body)
        assert reply.status_code == status, reply.text
        return reply.json() if status == 200 else reply.json()["error"]

    def refused(self, path, /, **parameters):
        """Status and code of a refusal."""
        reply = self.reply(path, **parameters)
        return reply.status_code, reply.json()["error"]["code"]


def make_client(folder, **options):
    """The client of a studio whose root, recipes and data are in a folder."""
    for name in ("runs", "recipes", "data"):
        (folder / name).mkdir(exist_ok=True)
    studio = Studio(folder / "runs", folder / "recipes", (folder / "data",), token=TOKEN, **options)
    return Client(studio)
