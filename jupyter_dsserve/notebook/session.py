"""What the magics and panels of one kernel share: the client they ask, and the feed they listen to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jupyter_dsserve.notebook.address import set_connected
from jupyter_dsserve.notebook.client import AsyncClient, Client
from jupyter_dsserve.notebook.feed import Feed
from jupyter_dsserve.notebook.views import Models, Status
from jupyter_dsserve.protocol.errors import Forbidden

# The event stream says something every 15 s.
_SILENT_S = 30.0
# A panel's callbacks run in the kernel's main thread: a gateway that hangs must not hold it for long. A gateway that
# is only starting answers sooner.
_CALLBACK_S = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """One gateway, from this kernel. ``quick`` gives up after seconds, for panels; ``make_client`` is for threads with
    an event loop of their own."""

    client: Client
    quick: Client
    feed: Feed
    make_client: Callable[[], AsyncClient]


_session: Session | None = None


def connect(url: str = "", key: str = "") -> Status | Models:
    """Talk to the gateway at ``url`` from now on, as a ``Client()`` does that is made from now on; without one, to the
    one of the kernel's own Jupyter server. Says what is there, or with a key that only asks models which ones.

    Raises what `Client.status` raises, and then everything stays as it was.
    """
    global _session
    new = _opened(url, key)
    try:
        found = _looked(new.client)
    except BaseException:
        new.client.close()
        new.quick.close()
        raise
    _session = new
    set_connected(url, key)
    return found


def _looked(client: Client) -> Status | Models:
    try:
        return client.status()
    except Forbidden:  # an app's key, or a colleague's
        return client.models()


def session() -> Session:
    """The kernel's session: with its own Jupyter server, until `connect` names another gateway."""
    global _session
    _session = _session or _opened("", "")
    return _session


def client() -> Client:
    return session().client


def versions_of(name: str) -> list[str]:
    """The versions that a deployment has. Raises `NotFound` for none of this name."""
    return [each.version for each in client().deployment(name).versions]


def _opened(url: str, key: str) -> Session:
    # Panels of a session stay with its gateway, whichever is named later.
    own = not url
    quick = Client(url, key, own=own, timeout_s=_CALLBACK_S)
    feed = Feed(lambda: AsyncClient(url, key, own=own, timeout_s=_SILENT_S))
    return Session(Client(url, key, own=own), quick, feed, lambda: AsyncClient(url, key, own=own))
