"""A check's thread: what it tells the gateway, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jupyter_dsserve.notebook.checker import _Sample, _scored, start_checking
from jupyter_dsserve.protocol.records import GatewayAddress

SAMPLES = [_Sample(1, "v1", "how much?", "the secret answer")]


def test_what_a_check_raises_stays_in_the_kernel_but_for_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert _scored(lambda _prompt, answer: float(answer), SAMPLES) == {"scores": [], "failure": "ValueError"}
    assert "the secret answer" in capsys.readouterr().err
    assert _scored(lambda _prompt, _answer: 42.5, SAMPLES) == {"scores": [], "failure": "ScoreOutOfRange"}
    assert "it gave 42.5" in capsys.readouterr().err


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def url(asked: list[str], request: pytest.FixtureRequest) -> Iterator[str]:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(request.param)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("url", [401, 403, 404, 409], indirect=True)
def test_the_thread_ends_when_it_is_sent_away(url: str, asked: list[str]) -> None:
    thread = start_checking(GatewayAddress(url, "k"), "demo", 12.5, lambda *_: 1.0, trust_env=False)
    thread.join(30)
    assert not thread.is_alive(), "it asks again and again"
    assert asked == ["/api/deployments/demo/rollout/samples?wait_s=20.0&started_at=12.5"]
