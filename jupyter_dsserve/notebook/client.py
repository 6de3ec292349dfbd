"""`Client` and `AsyncClient`: two drivers of the conversations in `verbs`."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
from pydantic import TypeAdapter

from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.run import Bench, Progress, run_blocking
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.bench.trial import Prompts, trial_of
from jupyter_dsserve.bench.validate import validate
from jupyter_dsserve.bench.verdict import Verdict
from jupyter_dsserve.notebook.address import is_remote, resolved
from jupyter_dsserve.notebook.answers import Pieces, Prompt, asked
from jupyter_dsserve.notebook.onnx import onnx_of
from jupyter_dsserve.notebook.options import shown
from jupyter_dsserve.notebook.pool import Pool
from jupyter_dsserve.notebook.verbs import Verbs
from jupyter_dsserve.notebook.verbs.talk import Send, Talk
from jupyter_dsserve.notebook.views import Answer
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.export import Exported
from jupyter_dsserve.protocol.records import Event, VersionStats

_EVENT = TypeAdapter(Event)
_STATS = TypeAdapter(VersionStats)

# A Jupyter server on this machine may have made its own certificate; nothing leaves the machine on the way to it.
_LOOPBACK = "https://127.0.0.1"

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")
Record = Event | VersionStats


def _blocking(talk: Callable[Concatenate[Any, P], Talk[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(talk)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(talk(self._verbs, *args, **kwargs))

    return _with_result(method, talk)


def _awaiting(talk: Callable[Concatenate[Any, P], Talk[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @wraps(talk)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(talk(self._verbs, *args, **kwargs))

    return _with_result(method, talk)


def _with_result(method: M, talk: Callable[..., Any]) -> M:
    """For help and completion: the signature says what comes back, not how it is talked over."""
    signature = shown(inspect.signature(talk))
    result = str(signature.return_annotation).removeprefix("Talk[").removesuffix("]")
    method.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return method


class Client:
    """A gateway, from Python. Without ``url`` it is the one that `%dsserve connect` named before; where none was, or
    with ``own``, the one of this kernel's Jupyter server, started at first use.

    ``timeout_s``: how long an answer may be silent. ``max_connections``, ``idle_s`` and ``acquire_timeout_s`` are those
    of its `Pool`; `Unavailable` names it when no connection came free in time. Raises the errors of
    `jupyter_dsserve.protocol.errors`. May be used from several threads. ``with Client(…) as client`` closes it.
    """

    def __init__(
        self,
        url: str = "",
        key: str = "",
        *,
        own: bool = False,
        timeout_s: float = 600.0,
        max_connections: int | None = None,
        idle_s: float = 5.0,
        acquire_timeout_s: float | None = None,
    ) -> None:
        url, key = resolved(url, key, own)
        self._verbs = Verbs(url, key)
        self._pool = Pool(max_connections, idle_s, acquire_timeout_s)
        self._http = httpx.Client(
            timeout=self._pool.timeout(timeout_s),
            limits=self._pool.limits,
            trust_env=is_remote(url),
            mounts={_LOOPBACK: httpx.HTTPTransport(verify=False, limits=self._pool.limits)},
        )

    @property
    def url(self) -> str:
        """Where the gateway answered last; empty before the first time."""
        return self._verbs.url

    gateway = _blocking(Verbs.gateway)
    address = _blocking(Verbs.address)
    status = _blocking(Verbs.status)
    deployment = _blocking(Verbs.deployment)
    version = _blocking(Verbs.version)
    logs = _blocking(Verbs.logs)
    history = _blocking(Verbs.history)
    stats = _blocking(Verbs.stats)
    ledger = _blocking(Verbs.ledger)
    trace = _blocking(Verbs.trace)
    load = _blocking(Verbs.load)
    scale = _blocking(Verbs.scale)
    autoscale = _blocking(Verbs.autoscale)
    unload = _blocking(Verbs.unload)
    delete = _blocking(Verbs.delete)
    activate = _blocking(Verbs.activate)
    route = _blocking(Verbs.route)
    policy = _blocking(Verbs.policy)
    join = _blocking(Verbs.join)
    rollout = _blocking(Verbs.rollout)
    pause = _blocking(Verbs.pause)
    resume = _blocking(Verbs.resume)
    promote = _blocking(Verbs.promote)
    rollback = _blocking(Verbs.rollback)
    apply = _blocking(Verbs.apply)
    export = _blocking(Verbs.export)
    key = _blocking(Verbs.key)
    keys = _blocking(Verbs.keys)
    revoke = _blocking(Verbs.revoke)
    models = _blocking(Verbs.models)
    generate = _blocking(Verbs.generate)
    embed = _blocking(Verbs.embed)
    classify = _blocking(Verbs.classify)
    infer = _blocking(Verbs.infer)

    def stream(self, model: str, prompt: Prompt, **options: Any) -> AnswerStream:
        """The answer in pieces: ``for piece in client.stream("demo", "def f"): print(piece, end="")``.

        Takes what `generate` takes. To leave the loop early cancels the request on the gateway.
        """
        return AnswerStream(self, model, prompt, options)

    def bench(
        self, model: str, *, on_progress: Callable[[Progress], object] = lambda _: None, **options: Any
    ) -> Report:
        """Press ``model`` and measure what it gives: ``client.bench("demo", concurrency=[1, 4, 16], seconds=5)``.

        ``options`` are the fields of `jupyter_dsserve.bench.plan.Plan`, as values or as they are written on the command
        line. An interrupt ends it, and what was measured by then is returned. ``Client(URL, key=KEY)`` of any server
        that speaks OpenAI's API can be measured so.
        """
        plan, address = Plan.read(**options), self.address()
        return run_blocking(Target.at(address.url, address.key, model), plan, on_progress)

    def validate(
        self,
        candidate: str,
        baseline: str = "",
        prompts: Prompts = (),
        *,
        rounds: int = 5,
        on_progress: Callable[[Progress], object] = lambda _: None,
        **options: Any,
    ) -> Verdict:
        """Whether ``candidate`` may be released: ``client.validate("demo@v2", "demo@v1", "prompts.jsonl")``.

        ``prompts`` are a file or a list of ``{"prompt": …, "expect": {"contains": …}}``, as docs/delivery.md says. Each
        of ``rounds`` presses both versions, in turns. ``options`` are ``min_pass``, ``max_latency_ratio``,
        ``max_first_token_ratio``, ``min_throughput_ratio`` and ``max_error_rate``, and of a round ``seconds``,
        ``concurrency``, ``prompt_tokens`` and ``output_tokens``.
        """
        address = self.address()
        target = Target.at(address.url, address.key, candidate)
        return validate(trial_of(target, baseline, prompts, rounds=rounds, **options), on_progress)

    def export_onnx(
        self, name: str, version: str, out: str | Path, *, tolerance: float = 1e-4, allow_code: bool = False
    ) -> Exported:
        """Write what ``version`` serves (an encoder, or a ``*.pt2``) as ONNX into the new directory ``out``.

        See `jupyter_dsserve.notebook.onnx.export_onnx`, which takes a model that nobody serves. If the gateway is
        this kernel's own, the worker's interpreter does it, and else this one. A directory or file must lie here.
        """
        found, address, is_own = self.version(name, version), self.address(), not self._verbs.is_given
        return onnx_of(found, out, gateway=address.url, is_own=is_own, tolerance=tolerance, allow_code=allow_code)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, talk: Talk[T]) -> T:
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._do(step)
                except httpx.PoolTimeout:
                    raise self._pool.exhausted() from None
                except httpx.HTTPError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            talk.close()  # an interrupt's traceback holds it, and what it has begun would go on

    def _do(self, step: Send | float) -> httpx.Response | None:
        if isinstance(step, float):
            time.sleep(step)
            return None
        response = self._http.send(step.request, stream=step.stream)
        if not response.is_success:  # it is raised, with what it says
            response.read()
        return response


class AsyncClient:
    """`Client`, awaiting. Belongs to the event loop that uses it first."""

    def __init__(
        self,
        url: str = "",
        key: str = "",
        *,
        own: bool = False,
        timeout_s: float = 600.0,
        max_connections: int | None = None,
        idle_s: float = 5.0,
        acquire_timeout_s: float | None = None,
    ) -> None:
        url, key = resolved(url, key, own)
        self._verbs = Verbs(url, key)
        self._pool = Pool(max_connections, idle_s, acquire_timeout_s)
        self._http = httpx.AsyncClient(
            timeout=self._pool.timeout(timeout_s),
            limits=self._pool.limits,
            trust_env=is_remote(url),
            mounts={_LOOPBACK: httpx.AsyncHTTPTransport(verify=False, limits=self._pool.limits)},
        )

    @property
    def url(self) -> str:
        """Where the gateway answered last; empty before the first time."""
        return self._verbs.url

    gateway = _awaiting(Verbs.gateway)
    address = _awaiting(Verbs.address)
    status = _awaiting(Verbs.status)
    deployment = _awaiting(Verbs.deployment)
    version = _awaiting(Verbs.version)
    logs = _awaiting(Verbs.logs)
    history = _awaiting(Verbs.history)
    stats = _awaiting(Verbs.stats)
    ledger = _awaiting(Verbs.ledger)
    trace = _awaiting(Verbs.trace)
    load = _awaiting(Verbs.load)
    scale = _awaiting(Verbs.scale)
    autoscale = _awaiting(Verbs.autoscale)
    unload = _awaiting(Verbs.unload)
    delete = _awaiting(Verbs.delete)
    activate = _awaiting(Verbs.activate)
    route = _awaiting(Verbs.route)
    policy = _awaiting(Verbs.policy)
    join = _awaiting(Verbs.join)
    rollout = _awaiting(Verbs.rollout)
    pause = _awaiting(Verbs.pause)
    resume = _awaiting(Verbs.resume)
    promote = _awaiting(Verbs.promote)
    rollback = _awaiting(Verbs.rollback)
    apply = _awaiting(Verbs.apply)
    export = _awaiting(Verbs.export)
    key = _awaiting(Verbs.key)
    keys = _awaiting(Verbs.keys)
    revoke = _awaiting(Verbs.revoke)
    models = _awaiting(Verbs.models)
    generate = _awaiting(Verbs.generate)
    embed = _awaiting(Verbs.embed)
    classify = _awaiting(Verbs.classify)
    infer = _awaiting(Verbs.infer)

    def stream(self, model: str, prompt: Prompt, **options: Any) -> AsyncAnswerStream:
        """As `Client.stream`, for ``async for``."""
        return AsyncAnswerStream(self, model, prompt, options)

    async def events(
        self, *, start: bool = True, on_open: Callable[[], object] = lambda: None
    ) -> AsyncGenerator[Record, None]:
        """What happens from now on, and each version's numbers every second, until the gateway ends.

        ``start`` False: a gateway that does not run is not started. ``on_open`` is called once it listens. Raises
        `Unavailable` when the gateway is gone, or silent for ``timeout_s`` (it says something every 15 s).
        """
        response = await self._run(self._verbs.send("GET", "/api/events", stream=True, start=start))
        on_open()
        adapter: TypeAdapter[Any] = _STATS
        try:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    adapter = _EVENT if line == "event: event" else _STATS
                elif line.startswith("data: "):
                    yield adapter.validate_json(line.removeprefix("data: "))
        except httpx.HTTPError:
            pass
        finally:
            await response.aclose()
        raise Unavailable("the gateway ended, or fell silent: listen again")

    async def bench(self, model: str, **options: Any) -> Report:
        """As `Client.bench`; in this loop, so that what else runs in it slows the asking."""
        plan, address = Plan.read(**options), await self.address()
        return await Bench(Target.at(address.url, address.key, model), plan).run()

    async def validate(
        self, candidate: str, baseline: str = "", prompts: Prompts = (), *, rounds: int = 5, **options: Any
    ) -> Verdict:
        """As `Client.validate`, in a thread; to cancel it ends a round, and prompts after the one that is asked."""
        address = await self.address()
        target = Target.at(address.url, address.key, candidate)
        trial, is_over = trial_of(target, baseline, prompts, rounds=rounds, **options), threading.Event()

        def end_if_over(_: Progress) -> None:
            if is_over.is_set():
                raise asyncio.CancelledError

        try:
            return await asyncio.to_thread(validate, trial, end_if_over)
        finally:
            is_over.set()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, talk: Talk[T]) -> T:
        try:
            step = next(talk)
            while True:
                try:
                    answer = await self._do(step)
                except httpx.PoolTimeout:
                    raise self._pool.exhausted() from None
                except httpx.HTTPError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            talk.close()  # an interrupt's traceback holds it, and what it has begun would go on

    async def _do(self, step: Send | float) -> httpx.Response | None:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        response = await self._http.send(step.request, stream=step.stream)
        if not response.is_success:  # it is raised, with what it says
            await response.aread()
        return response


class AnswerStream:
    """Pieces of text as they come; ``answer`` is the whole once it has ended."""

    def __init__(self, client: Client, model: str, prompt: Prompt, options: dict[str, Any]) -> None:
        self._client = client
        self._model, self._prompt, self._options = model, prompt, options
        self.answer: Answer | None = None

    def __iter__(self) -> Generator[str, None, None]:
        started = time.monotonic()
        response = self._client._run(_opened(self._client._verbs, self._model, self._prompt, self._options))
        pieces = Pieces(self._model, response.headers, started)
        try:
            for line in response.iter_lines():
                if text := pieces.feed(line, time.monotonic()):
                    yield text
        except httpx.HTTPError as fault:
            raise pieces.broken_off(fault) from None
        finally:
            response.close()
        self.answer = pieces.answer()


class AsyncAnswerStream:
    """As `AnswerStream`, for ``async for``."""

    def __init__(self, client: AsyncClient, model: str, prompt: Prompt, options: dict[str, Any]) -> None:
        self._client = client
        self._model, self._prompt, self._options = model, prompt, options
        self.answer: Answer | None = None

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        started = time.monotonic()
        response = await self._client._run(_opened(self._client._verbs, self._model, self._prompt, self._options))
        pieces = Pieces(self._model, response.headers, started)
        try:
            async for line in response.aiter_lines():
                if text := pieces.feed(line, time.monotonic()):
                    yield text
        except httpx.HTTPError as fault:
            raise pieces.broken_off(fault) from None
        finally:
            await response.aclose()
        self.answer = pieces.answer()


def _opened(verbs: Verbs, model: str, prompt: Prompt, options: dict[str, Any]) -> Talk[httpx.Response]:
    given = {"max_tokens": 128, **options, "stream": True, "stream_options": {"include_usage": True}}
    path, body = asked(model, prompt, given)
    return (yield from verbs.send("POST", path, body, stream=True))
