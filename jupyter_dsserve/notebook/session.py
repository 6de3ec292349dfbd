"""What the magics and panels of one kernel share: the client they ask, and the feed they listen to."""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_dsserve.notebook.client import AsyncClient, Client
from jupyter_dsserve.notebook.feed import Feed


@dataclass(frozen=True, slots=True)
class Session:
    """One gateway, from this kernel."""

    client: Client
    feed: Feed


_session: Session | None = None


def connect(url: str = "", key: str = "") -> Session:
    """Talk to the gateway at ``url`` from now on; without one, to the one of the kernel's own Jupyter server."""
    global _session
    _session = Session(Client(url, key), Feed(lambda: AsyncClient(url, key)))
    return _session


def session() -> Session:
    """The kernel's session: with its own Jupyter server, until `connect` names another gateway."""
    return _session or connect()


def client() -> Client:
    return session().client
