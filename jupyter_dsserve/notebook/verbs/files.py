"""Verbs of the deployments file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from jupyter_dsserve.manifest import Manifest, to_yaml
from jupyter_dsserve.notebook.verbs.talk import POLL_S, Talk, Talking, read
from jupyter_dsserve.notebook.views import Applied
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import ApplyState

_APPLIED = TypeAdapter(Applied)


class Files(Talking):
    """All of the fleet, as a file."""

    def apply(
        self,
        file: str | Path,
        *,
        dry_run: bool = False,
        prune: bool = False,
        wait: bool = True,
        on_progress: Callable[[Applied], object] | None = None,
    ) -> Talk[Applied]:
        """Make the fleet what a deployments file says: load, route, then unload. With ``dry_run`` only the plan.

        ``prune`` deletes what the file does not name. ``on_progress`` is called with the plan first. Raises
        `InvalidRequest` with the line of what is wrong, `Conflict` where it would change a version, and `Unavailable`
        with the reason if a change fails; those before it stay.
        """
        manifest = Manifest.read(file)
        body = {"deployments": manifest.deployments, "dry_run": dry_run, "prune": prune}
        try:
            response = yield from self.send("POST", "/api/apply", body)
        except DSServeError as fault:
            raise manifest.placed(fault) from None
        found = read(_APPLIED, response, self.url)
        while True:
            if on_progress:
                on_progress(found)
            if found.state is ApplyState.FAILED:
                raise Unavailable(f"not applied as a whole: {found.reason}")
            if not wait or found.state is not ApplyState.APPLYING:
                return found
            yield POLL_S
            found = yield from self._look(_APPLIED, "/api/apply", start=True)

    def export(self, file: str | Path = "") -> Talk[str]:
        """The deployments file of what is registered, loaded and routed now; written to ``file`` if one is named."""
        response = yield from self.send("GET", "/api/export")
        text = to_yaml(response.json()["deployments"])
        if file:
            try:
                Path(file).expanduser().write_text(text)
            except OSError as fault:
                raise InvalidRequest(f"{file} cannot be written ({fault.strerror}): give another path") from None
        return text
