"""URLs and keys as people give them."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from jupyter_dsserve.protocol.errors import InvalidRequest


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
