"""What a client can ask for: each verb once, as a conversation without I/O.

A conversation (`Talk`) yields what it wants sent, or the seconds it wants to pass, and is given the responses. The two
clients only drive it, one blocking and one awaiting (as httpx does with its authentication flows).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import httpx
import numpy as np
from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter
from typing_extensions import Unpack

from jupyter_dsserve.manifest import Manifest, to_yaml
from jupyter_dsserve.notebook.address import checked_key, checked_url, is_remote
from jupyter_dsserve.notebook.answers import (
    Prompt,
    Texts,
    answer_of,
    asked,
    classes_of,
    outputs_of,
    tensor_asked,
    vectors_of,
)
from jupyter_dsserve.notebook.checker import Check, start_checking
from jupyter_dsserve.notebook.find import JupyterServer, find
from jupyter_dsserve.notebook.keys import KeyList, NewKey
from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.notebook.options import LoadOptions, PolicyOptions, given, user_name
from jupyter_dsserve.notebook.saved import Job, Saved, Store
from jupyter_dsserve.notebook.stats import StatsTable, moment
from jupyter_dsserve.notebook.traces import Trace, TraceList
from jupyter_dsserve.notebook.views import (
    Answer,
    Applied,
    Classified,
    Deployment,
    History,
    Policy,
    Rollout,
    Status,
    Version,
)
from jupyter_dsserve.protocol.errors import (
    DSServeError,
    InvalidRequest,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_named,
    error_with,
)
from jupyter_dsserve.protocol.policy import Rule
from jupyter_dsserve.protocol.records import (
    ApiKey,
    ApplyState,
    Event,
    GatewayAddress,
    GatewayState,
    GatewayStatus,
    Joining,
    VersionState,
)
from jupyter_dsserve.protocol.spec import Strategy
from jupyter_dsserve.protocol.traces import TraceSummary

POLL_S = 0.2
_SETTLED = (VersionState.READY, VersionState.FAILED, VersionState.STOPPED)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send. ``stream``: hand over the response as soon as its headers are there."""

    request: httpx.Request
    stream: bool = False


# httpx's errors are thrown into it. The response to seconds is None.
Talk = Generator[Send | float, Any, T]
OnProgress = Callable[[Any], object]  # a `Version`; a `Saving` while a model of this kernel is saved


@dataclass(frozen=True, slots=True)
class _Served:
    """What we read of ``/api/status``."""

    deployments: list[Deployment]
    grpc: str = ""


_DEPLOYMENT = TypeAdapter(Deployment)
_VERSION = TypeAdapter(Version)
_JOINING = TypeAdapter(Joining)
_POLICY = TypeAdapter(Policy)
_ROLLOUT = TypeAdapter(Rollout)
_DELETED = TypeAdapter(list[Version] | Version)
_DEPLOYMENTS = TypeAdapter(list[Deployment])
_EVENTS = TypeAdapter(list[Event])
_STATUS = TypeAdapter(_Served)
_APPLIED = TypeAdapter(Applied)
_LOGS = TypeAdapter(dict[str, list[str]])
_LEDGER = TypeAdapter(Ledger)
_STATS = TypeAdapter(StatsTable)
_TRACE = TypeAdapter(Trace)
_TRACES = TypeAdapter(list[TraceSummary])
_KEYS = TypeAdapter(list[ApiKey])
_NEW_KEY = TypeAdapter(NewKey)
_GATEWAY = TypeAdapter(GatewayStatus)
_ADDRESS = TypeAdapter(GatewayAddress)


class Verbs:
    """``url`` and ``key`` name a gateway; without them it is the one of this kernel's Jupyter server (see `find`)."""

    def __init__(self, url: str = "", key: str = "") -> None:
        """Raises `InvalidRequest` for what can be no URL or no key."""
        self._given = GatewayAddress(checked_url(url), checked_key(key)) if url else None
        self._found: GatewayAddress | None = None

    @property
    def url(self) -> str:
        """Where the gateway answered last; empty before the first time."""
        return self._found.url if self._found else ""

    # ---- looking: starts nothing

    def gateway(self) -> Talk[GatewayStatus]:
        """How the gateway is."""
        source = self._source()
        if isinstance(source, GatewayAddress):
            return GatewayStatus(GatewayState.RUNNING, source.url)
        return _read(_GATEWAY, (yield from _ask_jupyter(source, "GET")), source.url)

    def status(self) -> Talk[Status]:
        """The gateway and everything on it."""
        gateway = yield from self.gateway()
        if gateway.state is not GatewayState.RUNNING:
            return Status(gateway)
        found = yield from self._look(_STATUS, "/api/status")
        return Status(replace(gateway, grpc=found.grpc), found.deployments)

    def deployment(self, name: str) -> Talk[Deployment]:
        """Raises `NotFound`."""
        return (yield from self._look(_DEPLOYMENT, _path(name)))

    def version(self, name: str, version: str) -> Talk[Version]:
        """Raises `NotFound`."""
        return (yield from self._look(_VERSION, _path(name, version)))

    def logs(self, name: str, version: str, num_lines: int = 200) -> Talk[dict[str, list[str]]]:
        """The last lines that each of the version's workers wrote."""
        return (yield from self._look(_LOGS, f"{_path(name, version)}/logs?lines={num_lines}"))

    def history(self, deployment: str = "", *, since: int | None = None, limit: int = 1000) -> Talk[History]:
        """What happened, oldest first, to one deployment or to all: the last ``limit`` events, or with ``since`` the
        first ones after the event with that id. It goes as far back as the gateway keeps it (90 days unless told)."""
        asked_for = {"deployment": deployment, "since": "" if since is None else since, "limit": limit}
        return History((yield from self._look(_EVENTS, f"/api/history?{urlencode(asked_for)}")))

    def stats(
        self, deployment: str = "", version: str = "", *, since: str | float = "24h", step_s: int | None = None
    ) -> Talk[StatsTable]:
        """What versions did, in steps of ``step_s`` seconds (whole minutes): ``client.stats("demo", since="7d")``.

        ``since`` is an age (``30m``, ``24h``, ``7d``), or seconds since the epoch. It goes as far back as the gateway
        keeps it (14 days unless told).
        """
        asked_for = {"deployment": deployment, "version": version, "from": moment(since, time.time())}
        step = {} if step_s is None else {"step": step_s}
        return (yield from self._look(_STATS, f"/api/stats?{urlencode(asked_for | step)}"))

    def ledger(self) -> Talk[Ledger]:
        """Who holds the memory of every device, and who waits for it."""
        return (yield from self._look(_LEDGER, "/api/ledger"))

    def trace(self, id: str = "", *, deployment: str = "", limit: int = 20) -> Talk[TraceList | Trace]:
        """Where the time of a call went: ``id`` is the answer's ``request_id`` (or ``X-Request-Id``, or the id of a
        trace that the caller began). Without it the last calls, of one deployment or of all, the newest first.

        The gateway keeps the last 200 calls unless told; raises `NotFound` for one that it does not have.
        """
        if id:
            return (yield from self._look(_TRACE, f"/api/traces/{quote(id, safe='')}"))
        query = urlencode({"deployment": deployment, "limit": limit})
        return TraceList((yield from self._look(_TRACES, f"/api/traces?{query}")))

    # ---- versions

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
            yield from self.send("POST", f"{_path(name, version)}/load")
        if not wait:
            return (yield from self.version(name, version))
        return (yield from self._settled(name, version, on_progress))

    def scale(self, name: str, version: str, replicas: int) -> Talk[Version]:
        """Keep so many workers of a loaded version up, from 1 to 64. Does not wait: new ones load, and wait for memory
        if need be; those that are too many end what runs on them and go."""
        response = yield from self.send("POST", f"{_path(name, version)}/scale", {"replicas": replicas})
        return _read(_VERSION, response, self.url)

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
        path = f"{_path(name, version)}/autoscale"
        told = {"min": min, "max": max, "target_in_flight": target_in_flight, "target_queue": target_queue}
        told |= {"idle_s": idle_s, "stable_s": stable_s}
        body = {key: value for key, value in told.items() if value is not None}
        if off and body:
            raise InvalidRequest(f"off ends the autoscaling of {name}@{version}: leave {', '.join(body)} out")
        response = yield from (self.send("DELETE", path) if off else self.send("PUT", path, body))
        return _read(_VERSION, response, self.url)

    def unload(self, name: str, version: str = "", *, wait: bool = True) -> Talk[Deployment]:
        """Drain a version (or all of the deployment's) and end its workers; it stays registered."""
        versions = [version] if version else [v.version for v in (yield from self.deployment(name)).versions]
        for each in versions:
            yield from self.send("POST", f"{_path(name, each)}/unload")
        while True:
            found = yield from self._look(_DEPLOYMENT, _path(name), start=True)
            busy = [v for v in found.versions if v.state is VersionState.DRAINING and version in ("", v.version)]
            if not wait or not busy:
                return found
            yield POLL_S

    def delete(self, name: str, version: str = "") -> Talk[None]:
        """Unload a version (or the whole deployment) and forget it, with the files of a model that was saved for it."""
        response = yield from self.send("DELETE", _path(name, version) if version else _path(name))
        told = _read(_DELETED, response, self.url)
        deleted = told if isinstance(told, list) else [told]
        address = yield from self._address(start=True)
        if is_remote(address.url):
            return
        # They stand there until their workers have ended; one of the name that was made since is another.
        found = yield from self._look(_DEPLOYMENTS, "/api/deployments", start=True)
        gone = {(name, v.version, v.created_at) for v in deleted}
        there = [v for d in found for v in d.versions if (v.deployment, v.version, v.created_at) not in gone]
        left = [v.spec.model for v in there]
        store = Store.of(address)
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
        yield from self.send("POST", f"{_path(name)}/activate", {"version": version, "strategy": strategy})
        if wait:
            yield from self._settled(name, version, on_progress)
        while True:
            found = yield from self._look(_DEPLOYMENT, _path(name), start=True)
            if not wait or not found.activating:
                return found
            yield POLL_S

    def route(
        self, name: str, weights: Mapping[str, float] | None = None, *, revision: int | None = None
    ) -> Talk[Deployment]:
        """Set the weights, in percent, that sum to 100; without them, only look.

        With ``revision`` (of the `Deployment` that was looked at) a change that somebody made since is not
        overwritten: it raises `Conflict`.
        """
        if weights is not None:
            body: dict[str, Any] = {"weights": dict(weights)}
            if revision is not None:
                body["revision"] = revision
            yield from self.send("PUT", f"{_path(name)}/route", body)
        return (yield from self.deployment(name))

    def policy(self, name: str, **options: Unpack[PolicyOptions]) -> Talk[Policy]:
        """What the deployment does when things are busy or break: sets what is given, and keeps the rest; with nothing
        given, only looks.

        The options are the fields of `jupyter_dsserve.protocol.policy.Policy`; 0 switches a limit off. ``rules`` are
        such as ``{"header": "X-User-Group", "value": "beta", "version": "v2"}``.
        """
        path, chosen = f"{_path(name)}/policy", {key: value for key, value in options.items() if value is not None}
        if rules := options.get("rules"):
            chosen["rules"] = [asdict(rule) if isinstance(rule, Rule) else dict(rule) for rule in rules]
        if chosen:
            yield from self.send("PUT", path, chosen)
        return (yield from self._look(_POLICY, path))

    def join(self, name: str, version: str) -> Talk[Joining]:
        """How a worker that you start, from another environment say, joins a version as one more replica:
        ``print(client.join("demo", "v1").command)``."""
        return _read(_JOINING, (yield from self.send("POST", f"{_path(name, version)}/join")), self.url)

    # ---- a gray release

    def rollout(
        self,
        name: str,
        candidate: str = "",
        *,
        steps: Sequence[float] | None = None,
        interval_s: float | None = None,
        min_requests: int | None = None,
        max_error_rate: float | None = None,
        max_latency_ratio: float | None = None,
        mirror: float | None = None,
        block_s: float | None = None,
        check: Check | None = None,
    ) -> Talk[Rollout]:
        """Give ``candidate`` more and more traffic, as long as it does as well as the version it is to replace.

        Returns at once; without a ``candidate``, only looks at the rollout that runs, or ran last. The options are
        those of ``POST /api/deployments/{name}/rollout``; docs/gray-release.md says how it decides.
        ``check(prompt, answer)`` gives an answer's score, 0 to 1: it is called in a thread of this kernel with answers
        of both versions, and the candidate is rolled back if its scores are worse. While it is silent nothing goes on.
        """
        if candidate:
            given: dict[str, Any] = {
                "steps": None if steps is None else [float(step) for step in steps],
                "interval_s": interval_s,
                "min_requests": min_requests,
                "max_error_rate": max_error_rate,
                "max_latency_ratio": max_latency_ratio,
                "mirror": mirror,
                "block_s": block_s,
            }
            body = {key: value for key, value in given.items() if value is not None}
            path = f"{_path(name)}/rollout"
            asked = {"candidate": candidate, "check": check is not None, **body}
            begun = _read(_ROLLOUT, (yield from self.send("POST", path, asked)), self.url)
            if check:
                address = yield from self._address(start=True)
                start_checking(address, name, begun.started_at, check, trust_env=is_remote(address.url))
        return (yield from self._look(_ROLLOUT, f"{_path(name)}/rollout"))

    def pause(self, name: str) -> Talk[Rollout]:
        """Leave the weights as they are until `resume`."""
        return (yield from self._by_hand(name, "pause"))

    def resume(self, name: str) -> Talk[Rollout]:
        """Go on with a paused rollout."""
        return (yield from self._by_hand(name, "resume"))

    def promote(self, name: str) -> Talk[Rollout]:
        """Give the candidate all traffic now; the old version drains and stops, and stays registered."""
        return (yield from self._by_hand(name, "promote"))

    def rollback(self, name: str, *, wait: bool = True) -> Talk[Deployment]:
        """Take the candidate of the rollout that runs back. Without a rollout: back to the weights before the last
        change of the route, loading what must be loaded."""
        yield from self.send("POST", f"{_path(name)}/rollback")
        while True:
            found = yield from self._look(_DEPLOYMENT, _path(name), start=True)
            if not wait or not found.activating:
                return found
            yield POLL_S

    def _by_hand(self, name: str, verb: str) -> Talk[Rollout]:
        response = yield from self.send("POST", f"{_path(name)}/rollout/{verb}")
        return _read(_ROLLOUT, response, self.url)

    # ---- all of it

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
        found = _read(_APPLIED, response, self.url)
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
                raise InvalidRequest(f"{file} cannot be written ({fault.strerror})") from None
        return text

    # ---- keys

    def key(
        self,
        name: str,
        *,
        scope: str = "infer",
        deployments: Sequence[str] | None = None,
        rate: float | None = None,
        burst: int | None = None,
        tokens_per_min: int | None = None,
        concurrency: int | None = None,
        priority: int | None = None,
        label: str | None = None,
        ttl_s: float | None = None,
        expires_at: float | None = None,
    ) -> Talk[NewKey]:
        """Make an API key for an app or a colleague; its ``key`` is told this once, and never shown by itself.

        A key of the scope ``infer`` asks models and does nothing else, ``admin`` does everything. ``deployments`` are
        those it may ask, all unless told. ``rate`` calls a second, ``burst`` of them at once, ``tokens_per_min`` of
        prompts and answers, and ``concurrency`` calls that run are its limits; 0 is none. Its requests never go before
        ``priority`` (0 to 100, lower goes first). A policy's rule for the header ``X-DSServe-Key-Label`` sends what
        comes with a key of that ``label`` to a version. It ends after ``ttl_s`` seconds, or at ``expires_at`` (seconds
        since the epoch).
        """
        given: dict[str, Any] = {
            "deployments": None if deployments is None else list(deployments),
            "rate": rate,
            "burst": burst,
            "tokens_per_min": tokens_per_min,
            "concurrency": concurrency,
            "priority": priority,
            "label": label,
            "ttl_s": ttl_s,
            "expires_at": expires_at,
        }
        body = {key: value for key, value in given.items() if value is not None}
        response = yield from self.send("POST", "/api/keys", {"name": name, "scope": scope, **body})
        return _read(_NEW_KEY, response, self.url)

    def keys(self) -> Talk[KeyList]:
        """The keys there are, without the keys themselves; the admin key is none of them."""
        return KeyList((yield from self._look(_KEYS, "/api/keys")))

    def revoke(self, id: str) -> Talk[KeyList]:
        """Refuse a key from now on; what it is being answered already goes on. Returns those that are left."""
        yield from self.send("DELETE", f"/api/keys/{quote(id, safe='')}")
        return (yield from self.keys())

    # ---- asking

    def address(self) -> Talk[GatewayAddress]:
        """Where the gateway answers, and its key: for ``OpenAI(base_url=f"{url}/v1", api_key=key)``."""
        return (yield from self._address(start=True))

    def generate(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        user: str | None = None,
        **fields: Any,
    ) -> Talk[Answer]:
        """The whole answer of ``model``: a deployment (``demo``) or one version of it (``demo@v2``).

        ``prompt`` is a text, token ids, or a chat (``[{"role": "user", "content": "…"}]``). ``user`` keeps their
        version while the weights stand. ``fields`` are whatever else the route takes, such as
        ``structured_outputs={"regex": "[0-9]+"}``, ``min_p``, ``priority`` or ``timeout_s``. For several choices or
        logprobs use ``OpenAI(base_url=f"{client.url}/v1", …)``: an `Answer` holds one text.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        path, body = asked(model, prompt, options | {"seed": seed, "stop": stop, "user": user} | fields)
        response = yield from self.send("POST", path, body)
        return answer_of(response, model)

    def embed(
        self, model: str, texts: Texts, *, dimensions: int | None = None, user: str | None = None
    ) -> Talk[NDArray[np.float32]]:
        """The vector of a text, ``[size]``, or of each of several texts, ``[texts, size]``; token ids stand for a text
        too, as a list each.

        ``dimensions`` keeps the first numbers of each vector and scales it to length 1.
        """
        body: dict[str, Any] = {"model": model, "input": _texts(texts), "encoding_format": "base64"}
        given = {"dimensions": dimensions, "user": user}
        body |= {key: value for key, value in given.items() if value is not None}
        return vectors_of((yield from self.send("POST", "/v1/embeddings", body)), isinstance(texts, str))

    def classify(self, model: str, texts: Texts, *, user: str | None = None) -> Talk[list[Classified]]:
        """The class of each text, with the score of every label."""
        body = {"model": model, "input": _texts(texts)} | ({} if user is None else {"user": user})
        return classes_of((yield from self.send("POST", "/v1/classify", body)))

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Talk[dict[str, NDArray[Any]]]:
        """The outputs of an exported program, by name. Inputs that are no arrays yet are taken as the numbers that the
        program says it wants."""
        path = f"/v2/models/{quote(model, safe='@')}"
        wanted = {} if all(isinstance(v, np.ndarray) for v in inputs.values()) else (yield from self._datatypes(path))
        body = {"inputs": [tensor_asked(name, value, wanted.get(name)) for name, value in inputs.items()]}
        return outputs_of((yield from self.send("POST", f"{path}/infer", body)))

    # ---- inside

    def _saved(
        self, model: object, tokenizer: object, on_progress: OnProgress | None, say: Callable[[str], object]
    ) -> Talk[Saved]:
        store = Store.of((yield from self._address(start=True)))
        job = Job(store.home, model, tokenizer)
        try:
            while not job.is_done:
                if on_progress:
                    on_progress(job.so_far)
                yield POLL_S
            place = job.result()
            say(str(place))
            found = yield from self._look(_DEPLOYMENTS, "/api/deployments")
            store.sweep([str(place.path), *(v.spec.model for d in found for v in d.versions)], time.time())
        except BaseException:  # an interrupt too: nobody will load it
            job.cancel()
            raise
        return place

    def _is_named(self, model: str) -> Talk[bool]:
        """Whether a version may have ``model``."""
        try:
            found = yield from self._look(_DEPLOYMENTS, "/api/deployments")
        except DSServeError:
            return True
        return any(v.spec.model == model for d in found for v in d.versions)

    def _datatypes(self, path: str) -> Talk[dict[str, str]]:
        response = yield from self.send("GET", path)
        return {each["name"]: each["datatype"] for each in response.json()["inputs"]}

    def _source(self) -> JupyterServer | GatewayAddress:
        return self._given or find(os.environ, Path(jupyter_runtime_dir()), Path(jupyter_data_dir()) / "dsserve")

    def _address(self, start: bool) -> Talk[GatewayAddress]:
        if self._found:
            return self._found
        source = self._source()
        if isinstance(source, JupyterServer):
            gateway = yield from self.gateway()
            if not start and gateway.state in (GatewayState.OFF, GatewayState.FAILED):
                why = f": {gateway.reason}" if gateway.reason else "; it starts when a model is loaded or asked"
                raise Unavailable(f"the gateway is {gateway.state.value}{why}")
            source = _read(_ADDRESS, (yield from _ask_jupyter(source, "POST")), source.url)
        self._found = source
        return source

    def _look(self, adapter: TypeAdapter[T], path: str, *, start: bool = False) -> Talk[T]:
        """What stands at ``path``. Raises `Unavailable` if no gateway runs, unless ``start``: then it is started."""
        response = yield from self.send("GET", path, start=start)
        return _read(adapter, response, self.url)

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        start: bool = True,
    ) -> Talk[httpx.Response]:
        """The answer, unless it is an error: then it is raised. ``start``: a gateway that does not run is started."""
        was_known = self._found is not None
        address = yield from self._address(start)
        sent = {"Authorization": f"Bearer {address.key}"}
        try:
            request = httpx.Request(method, address.url + path, headers=sent, json=body)
        except ValueError as fault:  # JSON has no NaN
            raise InvalidRequest(f"it cannot be sent ({fault}): give finite numbers") from None
        try:
            response: httpx.Response = yield Send(request, stream)
        except httpx.HTTPError as fault:
            self._found = None
            is_gone = isinstance(fault, httpx.ConnectError)
            may_repeat = is_gone or (method == "GET" and not isinstance(fault, httpx.TimeoutException))
            if may_repeat and was_known and not self._given:
                # It has just ended, and may come back elsewhere: what was not taken, or only looks, is asked again.
                return (yield from self.send(method, path, body, stream=stream, start=start))
            if is_gone:
                raise Unavailable(f"no gateway answers at {address.url} ({fault}): is it running?") from None
            raise Unavailable(f"the gateway at {address.url} did not answer ({_words(fault)}): ask again") from None
        if not response.is_success:
            error = error_in(response.status_code, response.content)
            if isinstance(error, TooManyRequests | Unavailable):
                error.retry_after_s = int(response.headers.get("Retry-After", error.retry_after_s))
            raise error
        return response

    def _versions_of(self, name: str) -> Talk[list[Version]]:
        """Empty for a deployment that does not exist yet."""
        found = yield from self._look(_DEPLOYMENTS, "/api/deployments", start=True)
        return next((d.versions for d in found if d.name == name), [])

    def _settled(self, name: str, version: str, on_progress: OnProgress | None) -> Talk[Version]:
        while True:
            # A gateway that crashes meanwhile comes back and goes on with the load.
            now = yield from self._look(_VERSION, _path(name, version), start=True)
            if on_progress:
                on_progress(now)
            if now.state is VersionState.READY:
                return now
            if now.state in _SETTLED:
                raise Unavailable(f"{now.id} is {now.state.value}: {now.reason or 'it was unloaded meanwhile'}")
            yield POLL_S


def _texts(texts: Texts) -> str | list[Any]:
    return texts if isinstance(texts, str) else [t if isinstance(t, str) else list(t) for t in texts]


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


def error_in(status: int, content: bytes) -> DSServeError:
    """The error that an answer carries, in the gateway's shape, OpenAI's or Jupyter's."""
    try:
        raw = TypeAdapter(dict[str, Any]).validate_json(content)
    except ValueError:
        return error_with(status, f"HTTP {status}: {content[:200].decode(errors='replace')}")
    found = raw.get("error", raw)
    found = found if isinstance(found, dict) else {"message": found}
    message, param = str(found.get("message", "")) or f"HTTP {status}", found.get("param")
    ours = error_named(str(found.get("type", "")), message, param)
    return ours if type(ours) is not DSServeError else error_with(status, message, param)


def _ask_jupyter(server: JupyterServer, method: str) -> Talk[httpx.Response]:
    request = httpx.Request(method, f"{server.url}/dsserve/gateway", headers={"Authorization": f"token {server.token}"})
    try:
        response: httpx.Response = yield Send(request)
    except httpx.HTTPError as fault:
        raise Unavailable(f"the Jupyter server at {server.url} does not answer ({_words(fault)})") from None
    if response.status_code == 404:
        raise NotFound(
            f"the Jupyter server at {server.url} does not have jupyter_dsserve: install it in that server's "
            "environment and start the server again"
        )
    if response.status_code == 403:
        raise Unauthorized(f"the Jupyter server at {server.url} does not let this kernel use dsserve")
    if not response.is_success:
        raise error_in(response.status_code, response.content)
    return response


def _read(adapter: TypeAdapter[T], response: httpx.Response, url: str) -> T:
    try:
        return adapter.validate_json(response.content)
    except ValueError:
        raise Unavailable(
            f"what answers at {url} is not a dsserve gateway (a Jupyter server has its own at URL/dsserve)"
        ) from None


def _words(fault: httpx.HTTPError) -> str:
    # A LocalProtocolError quotes the header that is wrong, and a key may stand in it.
    return "" if isinstance(fault, httpx.LocalProtocolError) else str(fault) or type(fault).__name__


def _path(name: str, version: str = "") -> str:
    path = f"/api/deployments/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _absolute(model: str) -> str:
    """A directory or file by its whole path: the gateway has another working directory than the kernel."""
    try:
        path = Path(model).expanduser()
        is_path = model and (path.is_dir() or (path.suffix in (".pt2", ".onnx", ".gguf") and path.is_file()))
        return str(path.resolve()) if is_path else model
    except (OSError, RuntimeError):  # too long a name; no such user's home
        return model
