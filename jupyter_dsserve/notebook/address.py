"""URLs and keys as people give them."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from jupyter_dsserve.protocol.errors import InvalidRequest

# URL and key that `%dsserve connect` named, in this kernel.
_connected = ("", "")


def set_connected(url: str, key: str) -> None:
    """What clients that are made without a URL ask from now on; an empty one is the kernel's own gateway."""
    global _connected
    _connected = (url, key) if url else ("", "")


def resolved(url: str, key: str, own: bool) -> tuple[str, str]:
    """URL and key as given, or else those that `%dsserve connect` named, unless it is to be the kernel's ``own``; an
    empty URL where there are none. A key that was given goes before the one that was named."""
    if url or own or not _connected[0]:
        return url, key
    return _connected[0], key or _connected[1]


def is_remote(url: str) -> bool:
    """Whether a proxy may stand in between: never on the way to this machine itself."""
    return bool(url) and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")


def checked_url(url: str) -> str:
    try:
        parsed, _ = urlsplit(url), httpx.URL(url)
        is_one = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except (httpx.InvalidURL, ValueError):
        is_one = False
    if not is_one:
        raise InvalidRequest(f"URL {url!r}: give one such as http://127.0.0.1:8899")
    return url.rstrip("/")


def checked_key(key: str) -> str:
    key = key.strip()  # a file's line break
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest("the key has characters that no key has: copy it again")
    return key
