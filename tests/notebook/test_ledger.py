"""The ledger as a notebook sees it: other kernels by their notebooks, tables, and a picture."""

from __future__ import annotations

import psutil
from jupyter_client.blocking.client import BlockingKernelClient

from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.protocol.records import DeviceMemory, HeldMemory, OtherMemory, WaitingLoad
from tests.notebook.conftest import Kernel
from tests.support import JupyterServer, until

GIB = 2**30


def ledger() -> Ledger:
    held = HeldMemory("demo@v1", "demo@v1#0", 2 * GIB, GIB, GIB)
    other = OtherMemory("kernel of <train>.ipynb", 77, 11 * GIB)
    waiting = WaitingLoad("demo@v2", "demo@v2#0", "low", GIB, "waits for 1.0 GiB on cpu", 0.0)
    return Ledger([DeviceMemory("cpu", 4 * GIB, 2 * GIB, [held], 24 * GIB, [other])], [waiting])


def test_a_ledger_is_a_table_of_who_holds_what_and_what_waits() -> None:
    lines = str(ledger()).splitlines()
    assert lines[0] == "cpu: 2.0 GiB free of the 4.0 GiB that may be held, of 24.0 GiB in all"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["demo@v1#0", "kernel of <train>.ipynb"]
    assert lines[-1] == "demo@v2#0 (low) waits for 1.0 GiB on cpu"
    html = ledger()._repr_mimebundle_()["text/html"]
    assert "kernel of &lt;train&gt;.ipynb" in html
    assert "<train>" not in html


def test_its_picture_has_a_piece_for_each_holder() -> None:
    pieces = {bar.name: bar.x[0] for bar in ledger().figure().data}
    assert pieces == {"demo@v1#0": 2.0, "free": 2.0, "kernel of <train>.ipynb": 11.0}


async def test_a_kernel_that_holds_memory_is_named_by_its_notebook(server: JupyterServer) -> None:
    body = {"kernel": {"name": "python3"}, "name": "", "path": "work/train.ipynb", "type": "notebook"}
    headers = {"Authorization": f"token {server.token}"}
    async with server.caller() as caller:
        session = await caller.post(f"{server.url}/api/sessions", json=body, headers=headers)
        assert session.status_code == 201, session.text
        kernel = session.json()["kernel"]["id"]
        client = BlockingKernelClient(connection_file=str(server.home / f"runtime/kernel-{kernel}.json"))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive(f"held = b'\\1' * {psutil.virtual_memory().total // 200}", timeout=60)
        client.stop_channels()

        async def owners() -> list[str]:
            devices = (await caller.get("/api/ledger")).json()["devices"]
            return [other["owner"] for other in devices[0]["others"]]

        # However many larger processes there are.
        await until(owners, lambda names: "kernel of train.ipynb" in names, timeout_s=60)
        await caller.delete(f"{server.url}/api/sessions/{session.json()['id']}", headers=headers)


def test_the_ledger_is_shown_in_a_cell(kernel: Kernel) -> None:
    kernel.run("%dsserve load small --model toy:bytes=1000000 --priority low")
    table, picture = kernel.run("%dsserve ledger").shown
    assert "small@v1#0" in table["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in picture
    for name in ("small@v1", "small"):  # its only version
        assert "small@v1" in kernel.run(f"%dsserve scale {name} 2").shown[-1]["text/plain"]
    kernel.run("%dsserve autoscale small@v1 --min 0 --max 2 --idle 300")
    assert "scaled automatically" in kernel.run("%dsserve scale small@v1 1").errors
    kernel.run("%dsserve autoscale small@v1 --off")
    assert "leave max out" in kernel.run("%dsserve autoscale small@v1 --off --max 2").errors
    kernel.run("%dsserve unload small")
