"""A kernel finds the Jupyter server that started it, or the user's gateway, or says what to do. It never guesses."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from jupyter_dsserve.data_dir import DataDir
from jupyter_dsserve.notebook.find import JupyterServer, find
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.records import GatewayAddress

INFO: dict[str, Any] = {
    "base_url": "/",
    "hostname": "localhost",
    "port": 8888,
    "secure": False,
    "sock": "",
    "token": "t0",
    "url": "http://localhost:8888/",
}


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    (tmp_path / "runtime").mkdir()
    return tmp_path / "runtime"


def lay(runtime: Path, pid: int, **changes: object) -> None:
    (runtime / f"jpserver-{pid}.json").write_text(json.dumps(INFO | changes))


def test_the_server_whose_pid_is_the_kernels_parent_among_several(runtime: Path, data_dir: Path) -> None:
    lay(runtime, 41, port=1)
    lay(runtime, 42, port=2, base_url="/user/a%40b/")
    lay(runtime, 421, port=3)
    assert find({"JPY_PARENT_PID": "42"}, runtime, data_dir) == JupyterServer("http://127.0.0.1:2/user/a%40b", "t0")


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"hostname": "0.0.0.0"}, "http://127.0.0.1:8888"),
        ({"hostname": ""}, "http://127.0.0.1:8888"),
        ({"hostname": "::1"}, "http://[::1]:8888"),
        ({"hostname": "10.1.2.3", "secure": True}, "https://10.1.2.3:8888"),
    ],
)
def test_its_address_is_one_that_this_machine_reaches(
    runtime: Path, data_dir: Path, changes: dict[str, object], url: str
) -> None:
    lay(runtime, 42, **changes)
    assert find({"JPY_PARENT_PID": "42"}, runtime, data_dir) == JupyterServer(url, "t0")


def test_of_a_kernel_that_a_kernel_started_it_is_the_first_ones_server(runtime: Path, data_dir: Path) -> None:
    lay(runtime, 42)
    started = {"PATH": os.environ["PATH"], "JPY_PARENT_PID": "42"}
    # Until it has said something, a look at its environment may come before its memory is laid out, and find none.
    with subprocess.Popen(["sh", "-c", "echo; read _"], env=started, stdin=PIPE, stdout=PIPE) as kernel:
        try:
            assert kernel.stdout
            assert kernel.stdout.readline()
            asked = {"JPY_PARENT_PID": str(kernel.pid)}
            assert find(asked, runtime, data_dir) == JupyterServer("http://127.0.0.1:8888", "t0")
        finally:
            kernel.kill()


def test_under_jupyterhub_it_is_the_one_the_hub_names(runtime: Path, data_dir: Path) -> None:
    lay(runtime, 42)
    hub = {
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:9/user/ann/",
        "JUPYTERHUB_API_TOKEN": "h",
        "JPY_PARENT_PID": "42",
    }
    assert find(hub, runtime, data_dir) == JupyterServer("http://127.0.0.1:9/user/ann", "h")


def test_a_hub_that_names_no_host_means_this_machine(runtime: Path, data_dir: Path) -> None:
    hub = {"JUPYTERHUB_SERVICE_URL": "http://:8888/user/ann/", "JUPYTERHUB_API_TOKEN": "h"}
    assert find(hub, runtime, data_dir) == JupyterServer("http://127.0.0.1:8888/user/ann", "h")


def test_a_record_that_is_half_written_is_nobodys(runtime: Path, data_dir: Path) -> None:
    (runtime / "jpserver-42.json").write_text('{"port":')
    with pytest.raises(NotFound, match="connect URL"):
        find({"JPY_PARENT_PID": "42"}, runtime, data_dir)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token": "", "password": True}, "a password alone"),
        ({"token": "", "password": False}, "asks nobody"),
        ({"sock": "/tmp/s.sock"}, "/tmp/s.sock"),
    ],
)
def test_a_server_that_a_kernel_cannot_ask_is_refused_with_the_remedy(
    runtime: Path, data_dir: Path, changes: dict[str, object], said: str
) -> None:
    lay(runtime, 42, **changes)
    with pytest.raises(NotFound, match=said) as refusal:
        find({"JPY_PARENT_PID": "42"}, runtime, data_dir)
    assert "%dsserve connect URL" in refusal.value.message


@pytest.mark.parametrize("env", [{}, {"JPY_PARENT_PID": "7"}])
def test_outside_of_a_server_it_is_the_gateway_on_the_users_data_directory(
    runtime: Path, data_dir: Path, env: dict[str, str]
) -> None:
    lay(runtime, 42)
    held = DataDir(data_dir)
    key = held.admin_key()
    held.announce("http://127.0.0.1:8899")
    assert find(env, runtime, data_dir) == GatewayAddress("http://127.0.0.1:8899", key)
    held.release()


def test_a_server_that_merely_runs_here_is_named_and_not_taken(runtime: Path, data_dir: Path) -> None:
    lay(runtime, 42)
    with pytest.raises(NotFound, match=r"http://localhost:8888/.*connect URL") as refusal:
        find({}, runtime, data_dir)
    assert "t0" not in refusal.value.message


def test_the_token_is_not_shown(runtime: Path) -> None:
    assert "t0" not in repr(JupyterServer("http://x", "t0"))
