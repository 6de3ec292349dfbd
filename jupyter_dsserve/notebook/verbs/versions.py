"""Verbs that load versions and end them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import Unpack

from jupyter_dsserve.notebook.address import is_remote
from jupyter_dsserve.notebook.options import LoadOptions, given, user_name
from jupyter_dsserve.notebook.saved import Job, Saved, Store
from jupyter_dsserve.notebook.verbs.looking import Looking
from jupyter_dsserve.notebook.verbs.talk import (
    DEPLOYMENT,
    DEPLOYMENTS,
    POLL_S,
    VERSION,
    OnProgress,
    Talk,
    path_of,
    read,
)
from jupyter_dsserve.notebook.views import Deployment, Version
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import GatewayAddress, Joining, VersionState
from jupyter_dsserve.protocol.spec import Strategy

_SETTLED = (VersionState.READY, VersionState.FAILED, VersionState.STOPPED)

_JOINING = TypeAdapter(Joining)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What we read of ``/api/status``."""

    id: str


_IDENTITY = TypeAdapter(_Identity)
_DELETED = TypeAdapter(list[Version] | Version)


class Versions(Looking):
    """What a deployment has loaded."""

    def load(
        self,
        name: str,
        model: object = "",
        version: str = "",
        *,
        tokenizer: object = None,
        wait: bool = True,
        on_progress: OnProgress | None = None,
        say: Callable[[str], object] = print,
        **options: Unpack[LoadOptions],
    ) -> Talk[Version]:
        """Load ``model`` as a version of the deployment ``name``, and wait until it is READY.

        ``model`` is a directory, a hub name or ``builtin:NAME``; without it a registered version is loaded again.
        Without ``version`` it is the one that has this model already, or else the next free of v1, v2, …; a version
        that is loaded just so is left alone. ``python="kernel"`` runs the worker under this kernel's interpreter. The
        other options are those of `LoadOptions`. ``on_progress`` is called with the `Version` while it
        loads. Raises `Unavailable` with the reason if it fails to load.

        ``model`` may also be a model of this kernel, with its ``tokenizer`` (`saved.Job` says which): it is saved in
        Jupyter's data directory (``on_progress`` is called with a `Saving` meanwhile, ``say`` with a line about it
        then), and that goes when no version is made of it any more.
        """
        saved = None
        if not isinstance(model, str | Path):
            saved = yield from self._saved(model, tokenizer, on_progress, say)
            model = saved.path
            options["task"] = options.get("task") or saved.task or None
        elif tokenizer is not None:
            raise InvalidRequest(f"tokenizer goes with a model of this kernel, not with {str(model)!r}: leave it out")
        chosen = given(options)
        model = _absolute(str(model))
        known = [] if model and version else (yield from self._versions_of(name))
        if model and not version:
            version = version_for(known, model)
            if not chosen and version in [v.version for v in known]:  # registered, with whatever options
                model = ""
        if model:
            body = {"created_by": user_name(), **chosen, "name": name, "version": version, "model": model}
            try:
                yield from self.send("POST", "/api/deployments", body)
            except DSServeError as fault:
                # Where no answer came whole, it may have been registered; what nobody names goes later.
                if saved and fault.status < 500 and not (yield from self._is_named(model)):
                    saved.discard()
                raise
        else:
            version = version or only_version(name, known)
            yield from self.send("POST", f"{path_of(name, version)}/load")
        if not wait:
            return (yield from self.version(name, version))
        return (yield from self._settled(name, version, on_progress))

    def scale(self, name: str, version: str, replicas: int) -> Talk[Version]:
        """Keep so many workers of a loaded version up, from 1 to 64. Does not wait: new ones load, and wait for memory
        if need be; those that are too many end what runs on them and go."""
        response = yield from self.send("POST", f"{path_of(name, version)}/scale", {"replicas": replicas})
        return read(VERSION, response, self.url)

    def autoscale(
        self,
        name: str,
        version: str,
        *,
        off: bool = False,
        min: int | None = None,
        max: int | None = None,
        target_in_flight: float | None = None,
        target_queue: float | None = None,
        idle_s: float | None = None,
        stable_s: float | None = None,
    ) -> Talk[Version]:
        """Have a version from ``min`` (1 unless told) to ``max`` workers by what is asked of it; ``off`` ends that.

        Each is to have at most ``target_in_flight`` requests on it, of which at most ``target_queue`` wait (0 does not
        count). With ``min`` 0 its workers end after ``idle_s`` seconds without a request, and the next one loads it
        again. It shrinks by one worker when ``stable_s`` seconds have needed less.
        """
        path = f"{path_of(name, version)}/autoscale"
        told = {"min": min, "max": max, "target_in_flight": target_in_flight, "target_queue": target_queue}
        told |= {"idle_s": idle_s, "stable_s": stable_s}
        body = {key: value for key, value in told.items() if value is not None}
        if off and body:
            raise InvalidRequest(f"off ends the autoscaling of {name}@{version}: leave {', '.join(body)} out")
        response = yield from (self.send("DELETE", path) if off else self.send("PUT", path, body))
        return read(VERSION, response, self.url)

    def unload(self, name: str, version: str = "", *, wait: bool = True) -> Talk[Deployment]:
        """Drain a version (or all of the deployment's) and end its workers; it stays registered."""
        versions = [version] if version else [v.version for v in (yield from self.deployment(name)).versions]
        for each in versions:
            yield from self.send("POST", f"{path_of(name, each)}/unload")
        while True:
            found = yield from self._look(DEPLOYMENT, path_of(name), start=True)
            busy = [v for v in found.versions if v.state is VersionState.DRAINING and version in ("", v.version)]
            if not wait or not busy:
                return found
            yield POLL_S

    def delete(self, name: str, version: str = "") -> Talk[None]:
        """Unload a version (or the whole deployment) and forget it, with the files of a model that was saved for it."""
        response = yield from self.send("DELETE", path_of(name, version) if version else path_of(name))
        told = read(_DELETED, response, self.url)
        deleted = told if isinstance(told, list) else [told]
        address = yield from self._address(start=True)
        if is_remote(address.url):
            return
        store = yield from self._store(address)
        # They stand there until their workers have ended; one of the name that was made since is another.
        found = yield from self._look(DEPLOYMENTS, "/api/deployments", start=True)
        gone = {(name, v.version, v.created_at) for v in deleted}
        there = [v for d in found for v in d.versions if (v.deployment, v.version, v.created_at) not in gone]
        left = [v.spec.model for v in there]
        store.forget([v.spec.model for v in deleted], left)
        store.sweep(left, time.time())

    def activate(
        self,
        name: str,
        version: str,
        *,
        strategy: Strategy = "beside",
        wait: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Talk[Deployment]:
        """Give a version all traffic, loading it first if need be; the others then drain and stop.

        Where memory does not hold both, ``strategy="recreate"`` ends the others first, and requests wait meanwhile.
        Raises `Unavailable` with the reason if it fails to load; the others then serve on.
        """
        yield from self.send("POST", f"{path_of(name)}/activate", {"version": version, "strategy": strategy})
        if wait:
            yield from self._settled(name, version, on_progress)
        while True:
            found = yield from self._look(DEPLOYMENT, path_of(name), start=True)
            if not wait or not found.activating:
                return found
            yield POLL_S

    def join(self, name: str, version: str) -> Talk[Joining]:
        """How a worker that you start, from another environment say, joins a version as one more replica:
        ``print(client.join("demo", "v1").command)``."""
        return read(_JOINING, (yield from self.send("POST", f"{path_of(name, version)}/join")), self.url)

    # ---- inside

    def _store(self, address: GatewayAddress) -> Talk[Store]:
        """The gateway's own, whichever key opens it."""
        known = not is_remote(address.url)
        return Store.of(address, (yield from self._look(_IDENTITY, "/api/status", start=True)).id if known else "")

    def _saved(
        self, model: object, tokenizer: object, on_progress: OnProgress | None, say: Callable[[str], object]
    ) -> Talk[Saved]:
        store = yield from self._store((yield from self._address(start=True)))
        job = Job(store.home, model, tokenizer)
        try:
            while not job.is_done:
                if on_progress:
                    on_progress(job.so_far)
                yield POLL_S
            place = job.result()
            say(str(place))
            found = yield from self._look(DEPLOYMENTS, "/api/deployments")
            store.sweep([str(place.path), *(v.spec.model for d in found for v in d.versions)], time.time())
        except BaseException:  # an interrupt too: nobody will load it
            job.cancel()
            raise
        return place

    def _is_named(self, model: str) -> Talk[bool]:
        """Whether a version may have ``model``."""
        try:
            found = yield from self._look(DEPLOYMENTS, "/api/deployments")
        except DSServeError:
            return True
        return any(v.spec.model == model for d in found for v in d.versions)

    def _versions_of(self, name: str) -> Talk[list[Version]]:
        """Empty for a deployment that does not exist yet."""
        found = yield from self._look(DEPLOYMENTS, "/api/deployments", start=True)
        return next((d.versions for d in found if d.name == name), [])

    def _settled(self, name: str, version: str, on_progress: OnProgress | None) -> Talk[Version]:
        while True:
            # A gateway that crashes meanwhile comes back and goes on with the load.
            now = yield from self._look(VERSION, path_of(name, version), start=True)
            if on_progress:
                on_progress(now)
            if now.state is VersionState.READY:
                return now
            if now.state in _SETTLED:
                raise Unavailable(f"{now.id} is {now.state.value}: {now.reason or 'it was unloaded meanwhile'}")
            yield POLL_S


def version_for(known: Sequence[Version], model: str) -> str:
    """The version that ``model`` is loaded as: the one that has it, or else the next free of v1, v2, …"""
    if same := [v.version for v in known if v.spec.model == model]:
        return same[-1]
    taken = [int(v.version[1:]) for v in known if re.fullmatch(r"v\d{1,6}", v.version)]
    return f"v{max(taken, default=0) + 1}"


def only_version(name: str, known: Sequence[Version]) -> str:
    """The one version of ``name``. Raises `InvalidRequest` if there are none or several."""
    if len(known) == 1:
        return known[0].version
    if not known:
        raise InvalidRequest(f"{name} is not registered yet: name the model to load, such as builtin:demo-v1")
    names = ", ".join(v.id for v in known)
    raise InvalidRequest(f"{name} has {len(known)} versions: name one of {names}, or a model")


def _absolute(model: str) -> str:
    """A directory or file by its whole path: the gateway has another working directory than the kernel."""
    try:
        path = Path(model).expanduser()
        is_path = model and (path.is_dir() or (path.suffix in (".pt2", ".onnx", ".gguf") and path.is_file()))
        return str(path.resolve()) if is_path else model
    except (OSError, RuntimeError):  # too long a name; no such user's home
        return model
