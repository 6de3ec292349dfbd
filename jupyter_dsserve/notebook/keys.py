"""API keys as a notebook shows them: one that was just made, once; those there are, never."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from jupyter_dsserve.bench.table import frame, html_table, text_table
from jupyter_dsserve.protocol.records import ApiKey

_COLUMNS = ("id", "name", "scope", "deployments", "limits", "expires")
_SNIPPET = """\
import os
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key=os.environ["DSSERVE_KEY"])"""


@dataclass(frozen=True, slots=True)
class NewKey:
    """``key`` opens the gateway, and is in no repr: a notebook keeps what it shows."""

    id: str
    key: str = field(repr=False)
    record: ApiKey


class ShownKey:
    """A key on the screen, for once: with how to use it, and how to have it forgotten."""

    def __init__(self, made: NewKey, url: str) -> None:
        self._made, self._url = made, url

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        made = self._made
        warning = (
            "It is shown this once, and this notebook keeps it with the output: copy it, then clear the output of this "
            f"cell before you save or share the notebook. If it got out: %dsserve key revoke {made.id}"
        )
        title = f"key {made.record.name} (id {made.id}, {limits_of(made.record)}):"
        usage = "Put it into an environment variable, where no notebook and no repository has it:"
        snippet = _SNIPPET.format(url=self._url)
        plain = f"{title}\n\n    {made.key}\n\n{warning}\n\n{usage}\n\n{snippet}"
        html = (
            f"<b>{escape(title)}</b><pre>{escape(made.key)}</pre><p>{escape(warning)}</p>"
            f"<p>{escape(usage)}</p><pre>{escape(snippet)}</pre>"
        )
        return {"text/plain": plain, "text/html": html}


class KeyList(list[ApiKey]):
    """The keys there are; shown as a table."""

    def __repr__(self) -> str:
        return text_table(_COLUMNS, self._rows()) if self else "There are no keys but the admin key."

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows()) if self else repr(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each key. Raises ImportError without pandas."""
        return frame([asdict(key) for key in self])

    def _rows(self) -> list[list[str]]:
        return [row_of(key, time.time()) for key in self]


def row_of(key: ApiKey, at: float) -> list[str]:
    """``at`` is seconds since the epoch."""
    deployments = "all" if key.deployments is None else ", ".join(key.deployments)
    end = "never"
    if key.expires_at is not None:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.expires_at))
        end = end if key.expires_at > at else f"expired {end}"
    return [key.id, key.name, key.scope, deployments, limits_of(key), end]


def limits_of(key: ApiKey) -> str:
    said = [
        f"{key.rate:g} calls/s" if key.rate else "",
        f"{key.burst} at once" if key.burst else "",
        f"{key.tokens_per_min} tokens/min" if key.tokens_per_min else "",
        f"{key.concurrency} running" if key.concurrency else "",
        f"priority {key.priority}" if key.priority else "",
        f"label {key.label}" if key.label else "",
    ]
    return ", ".join(filter(None, said)) or "no limits"
