"""The worker's asyncio half: the stream to the gateway, and its threads (tokenizing, grammars, the engine)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import grpc.aio

from jupyter_dsserve import __version__
from jupyter_dsserve.content import check_content, content_at
from jupyter_dsserve.engine.batcher import Batcher, BatchRunner
from jupyter_dsserve.engine.group import RankGroup
from jupyter_dsserve.engine.hub import snapshot_at
from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.runner import KVRoom, Runner
from jupyter_dsserve.engine.step_times import measured_steps
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, DSServeError, EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION, WorkerLaunch
from jupyter_dsserve.protocol.tensors import ModelInfo
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub
from jupyter_dsserve.worker.dial import Dial
from jupyter_dsserve.worker.join import Joiner, MayNotJoin
from jupyter_dsserve.worker.loading import load_batch_runner, load_runner
from jupyter_dsserve.worker.outbox import Outbox
from jupyter_dsserve.worker.prompts import num_chars_of, sequence_of, structure_of
from jupyter_dsserve.worker.turns import Turns

log = logging.getLogger(__name__)

_UNLIMITED_MESSAGES: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
AnyRunner = Runner | BatchRunner
T = TypeVar("T")
HEARTBEAT_S = 1.0
_FAREWELL_S = 30.0  # for the gateway to read what was sent; it ends us sooner if it wants to
_LONG_CHARS = 1 << 18  # of a request; the gateway cuts lists to no more, but for one long text


class WorkerApp:
    """Dials the gateway, loads, says ready, serves, drains. `run` gives the exit code.

    With a ``joiner`` it outlives its stream: it keeps the model, and joins anew.
    """

    def __init__(self, launch: WorkerLaunch, dial: Dial, joiner: Joiner | None = None) -> None:
        self._launch = launch
        self._dial = dial
        self._joiner = joiner
        self._is_connected = self._is_refused = False
        self._is_leaving = False  # it was told to end by its own machine
        self._ready: pb.FromWorker | None = None  # once it is, for each gateway to hear
        self._outbox = Outbox(is_far=bool(dial.certificate))
        self._engine: Engine | Batcher | None = None
        self._group: RankGroup | None = None
        self._step_times: tuple[tuple[int, float], ...] = ()
        self._open: set[str] = set()  # requests that have not had their last chunk
        self._accepting: dict[str, asyncio.Task[None]] = {}  # requests that are being tokenized
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        # One thread with a tokenizer of its own: the engine's thread uses another object.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._turns = Turns()
        # A text of megabytes takes it seconds at one go, in which others have their turns.
        self._tokenizing_long = ThreadPoolExecutor(1, "tokenizing-long")
        self._compiling = ThreadPoolExecutor(1, "compiling")  # of grammars: a large one must not hold up the others

    async def run(self) -> int:
        """Serve until drained or cut off. 0: drained; 1: the load failed, Hello was refused or the gateway is gone."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTERM, self._leave)
        loading = asyncio.create_task(self._load_and_serve())
        drained = asyncio.create_task(self._wait_drained())
        while await self._stay(loading, drained):
            if not await self._join_again(loading, drained):
                break
        if loading.done() and (fault := loading.exception()):
            log.error("the worker failed", exc_info=fault)
        code = 0 if self._draining.is_set() and not loading.done() else 1
        if self._engine:
            self._engine.stop()
        for task in (loading, drained):
            task.cancel()
        return code

    def _leave(self) -> None:
        """To be told that nothing is submitted any more, or at once where nobody can say so."""
        self._is_leaving = True
        if self._is_connected:
            self._outbox.put(pb.FromWorker(draining=pb.Draining()))
        else:
            self._draining.set()

    # ---- the stream

    async def _stay(self, loading: asyncio.Task[None], drained: asyncio.Task[None]) -> bool:
        """One stream, until it ends or we do; whether the worker goes on without it."""
        self._outbox.begin([self._hello(), self._ready] if self._ready else [self._hello()])
        self._is_connected = True
        async with self._dial.aio_channel(_UNLIMITED_MESSAGES) as channel:
            stream = LinkStub(channel).Connect(metadata=self._dial.metadata(self._launch.token))
            sending = asyncio.create_task(self._outbox.send_to(stream))
            reading = asyncio.create_task(self._read(stream))
            await asyncio.wait({reading, loading, drained}, return_when=asyncio.FIRST_COMPLETED)
            is_ending = self._is_leaving or self._is_refused or self._draining.is_set() or loading.done()
            if is_ending or not self._joiner:
                if self._engine:
                    self._engine.stop()
                # The gateway ends the stream once it has read everything: if we cut it, what is on its way would be
                # lost.
                self._outbox.close()
                await asyncio.wait({sending, reading}, timeout=_FAREWELL_S)
            self._is_connected = False
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)
        return bool(self._joiner and not is_ending)

    async def _join_again(self, loading: asyncio.Task[None], drained: asyncio.Task[None]) -> bool:
        """Forget what was asked over the stream that is lost, and ask the gateway for another; whether there is one."""
        assert self._joiner
        for request_id in tuple(self._open):
            self._abort(request_id)
        asking = asyncio.create_task(self._asked_again(self._joiner))
        await asyncio.wait({asking, loading, drained}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            return False
        try:
            launch, self._dial = asking.result()
            _check_same(self._launch, launch)
        except MayNotJoin as fault:
            log.error("the worker ends: %s", fault)
            return False
        self._launch = replace(self._launch, replica=launch.replica, token=launch.token)
        log.info("joined again, as %s", launch.replica)
        return True

    async def _asked_again(self, joiner: Joiner) -> tuple[WorkerLaunch, Dial]:
        try:
            await asyncio.wait_for(self._idle.wait(), joiner.rejoin_s)
        except asyncio.TimeoutError:  # given up for that, maybe: it would hang for whoever asks next
            raise MayNotJoin(f"its engine has not ended what was asked before for {joiner.rejoin_s:g} s") from None
        return await joiner.again()

    def _hello(self) -> pb.FromWorker:
        launch = self._launch
        return pb.FromWorker(
            hello=pb.Hello(
                replica=launch.replica,
                token=launch.token,
                spec_digest=launch.spec.digest,
                protocol_version=PROTOCOL_VERSION,
                package_version=__version__,
            )
        )

    async def _read(self, stream: grpc.aio.StreamStreamCall[pb.FromWorker, pb.ToWorker]) -> None:
        """Act on what the gateway says until it leaves."""
        try:
            async for message in stream:
                if message.WhichOneof("kind") == "refuse":
                    log.error("the gateway refused this worker: %s", message.refuse.reason)
                    self._is_refused = True
                    return
                for command in message.several.commands or (message,):
                    self._obey(command)
        except grpc.aio.AioRpcError as fault:
            log.warning("the stream to the gateway broke: %s", fault.details())

    def _obey(self, command: pb.ToWorker) -> None:
        kind = command.WhichOneof("kind")
        if kind == "submit":
            self._submit(command.submit)
        elif kind == "abort":
            self._abort(command.abort.request_id)
        elif kind == "drain":
            self._draining.set()

    def _submit(self, message: pb.Submit) -> None:
        self._open.add(message.request_id)
        self._idle.clear()
        task = self._accepting[message.request_id] = asyncio.create_task(self._accept(message))
        task.add_done_callback(lambda _: self._accepting.pop(message.request_id))

    def _abort(self, request_id: str) -> None:
        task = self._accepting.get(request_id)
        if task and task.cancel():  # the engine does not know it yet
            self._send_chunks([Chunk(request_id, finish_reason=FinishReason.ABORT)])
        elif self._engine:
            self._engine.abort(request_id)

    async def _accept(self, message: pb.Submit) -> None:
        """Tokenize and hand over to the engine; a refusal goes back as the request's only chunk."""
        now = time.monotonic()
        try:
            if self._engine is None:
                raise EngineFailure("the worker got a request before it was ready")
            request = codec.request_from(message)
            if isinstance(self._engine, Batcher):
                self._engine.post(await self._tokenized(self._engine.prepare, request, now))
            else:
                prepare = partial(sequence_of, self._request_tokenizer)
                sequence = await self._tokenized(prepare, request, now)
                if structure := structure_of(self._request_tokenizer, request):
                    matcher = self._request_tokenizer.matcher
                    sequence.matcher = await self._loop.run_in_executor(self._compiling, matcher, structure)
                sequence.tokenized_s = time.monotonic()
                self._engine.post(sequence)
        except Exception as fault:
            error = fault if isinstance(fault, DSServeError) else EngineFailure(f"tokenizing failed: {fault}")
            self._send_chunks([Chunk(message.request_id, finish_reason=FinishReason.ERROR, error=error)])

    async def _tokenized(self, prepare: Callable[[Request, float], T], request: Request, now: float) -> T:
        num_chars = num_chars_of(request)
        if num_chars > _LONG_CHARS:
            return await self._loop.run_in_executor(self._tokenizing_long, prepare, request, now)
        async with self._turns.taken(num_chars):
            return await self._loop.run_in_executor(self._tokenizing, prepare, request, now)

    def _emit(self, chunks: list[Chunk]) -> None:
        """From the engine's thread: all chunks of one step."""
        num_running = self._engine.num_running if isinstance(self._engine, Engine) else 0
        self._loop.call_soon_threadsafe(self._send_chunks, chunks, num_running)

    def _send_chunks(self, chunks: list[Chunk], num_running: int = 0) -> None:
        self._outbox.put_chunks(chunks, num_running)
        self._open.difference_update(c.request_id for c in chunks if c.finish_reason)
        if not self._open:
            self._idle.set()

    async def _wait_drained(self) -> None:
        await self._draining.wait()
        await self._idle.wait()

    # ---- loading

    async def _load_and_serve(self) -> None:
        """Load in the engine's thread, then send heartbeats; returns only if the load failed."""
        ready: asyncio.Future[AnyRunner] = self._loop.create_future()
        try:
            await self._check_content()
            path = await asyncio.to_thread(snapshot_at, self._launch.model_path)
        except (Conflict, InvalidRequest) as fault:
            log.error("the load failed: %s", fault.message)
            self._outbox.put(pb.FromWorker(failed=pb.Failed(error=codec.error_to_pb(fault))))
            return
        self._launch = replace(self._launch, model_path=path)
        if self._launch.spec.tp > 1:
            self._group = RankGroup(
                self._launch.spec,
                self._launch.model_path,
                lambda fault: self._loop.call_soon_threadsafe(_settle, ready, fault),
            )
        threading.Thread(target=self._engine_thread, args=(ready,), name="engine", daemon=True).start()
        try:
            runner = await ready
        except Exception as fault:
            log.exception("the load failed")
            error = fault if isinstance(fault, DSServeError) else EngineFailure(f"{type(fault).__name__}: {fault}")
            self._outbox.put(pb.FromWorker(failed=pb.Failed(error=codec.error_to_pb(error))))
            return
        kind = self._engine.runner.kind if isinstance(self._engine, Engine) else self._launch.spec.runner
        log.info("ready on %s, %s", runner.device, kind)
        info = runner.info
        if isinstance(self._engine, Engine):
            info = replace(
                _with_room(info, self._engine.scheduler.room),
                step_times=self._step_times,
                tool_format=self._engine.runner.tokenizer.tool_format,
            )
        ready_now = pb.Ready(device=runner.device, runner=kind, info=codec.info_to_pb(info))
        self._ready = pb.FromWorker(ready=ready_now)
        self._outbox.put(self._ready)
        while True:
            if self._is_connected:
                self._outbox.put(self._heartbeat(runner))
            await asyncio.sleep(HEARTBEAT_S)

    async def _check_content(self) -> None:
        """Raises `Conflict` if this machine has another model in its place."""
        launch = self._launch
        if launch.content:
            version, model = launch.replica.partition("#")[0], f"{launch.spec.model} on {socket.gethostname()}"
            check_content(version, launch.content, await content_at(launch.model_path), model)

    def _engine_thread(self, ready: asyncio.Future[AnyRunner]) -> None:
        is_generating = self._launch.spec.task == "generate"
        try:
            self._engine = self._load_engine() if is_generating else self._load_batcher()
        except Exception as fault:
            self._loop.call_soon_threadsafe(_settle, ready, fault)
            return
        if self._group:
            self._group.serving()
        self._loop.call_soon_threadsafe(_settle, ready, self._engine.runner)
        try:
            self._engine.run()
        except Exception:
            log.exception("the engine ended")
            os._exit(1)  # without it nobody would ever be answered: let the fleet start another worker

    def _load_engine(self) -> Engine:
        runner = load_runner(self._launch, self._group, self._progress)
        self._step_times = measured_steps(runner, time.monotonic)
        self._request_tokenizer = runner.tokenizer.copy()
        return Engine(runner, self._emit)

    def _load_batcher(self) -> Batcher:
        runner = load_batch_runner(self._launch, self._progress)
        if runner.info.note:
            log.info("%s: %s", self._launch.spec.model, runner.info.note)
        return Batcher(runner, self._emit)

    def _progress(self, stage: str, fraction: float) -> None:
        message = pb.FromWorker(progress=pb.Progress(stage=stage, fraction=fraction))
        self._loop.call_soon_threadsafe(self._outbox.put, message)

    def _heartbeat(self, runner: Runner | BatchRunner) -> pb.FromWorker:
        assert self._engine is not None
        load = self._engine.load()
        return pb.FromWorker(
            heartbeat=pb.Heartbeat(
                num_steps=load.num_steps,
                running=load.running,
                waiting=load.waiting,
                kv_used=load.kv_used,
                device_bytes=runner.device_bytes(),
                padding=load.padding,
                num_prompt=load.num_prompt,
                num_cached=load.num_cached,
                num_preempted=load.num_preempted,
            )
        )


def _settle(ready: asyncio.Future[AnyRunner], outcome: AnyRunner | Exception) -> None:
    """The first outcome of a load counts: of a group's ranks several may say that it failed."""
    if ready.done():
        return
    if isinstance(outcome, Exception):
        ready.set_exception(outcome)
    else:
        ready.set_result(outcome)


def _check_same(loaded: WorkerLaunch, told: WorkerLaunch) -> None:
    """Raises `MayNotJoin` if the gateway has another model under that name by now."""
    if (loaded.spec, loaded.content) != (told.spec, told.content):
        name = told.replica.partition("#")[0]
        raise MayNotJoin(f"{name} is another model by now than the one that is loaded here: start the command again")


def _with_room(info: ModelInfo, room: KVRoom) -> ModelInfo:
    return replace(info, note="; ".join(filter(None, (info.note, str(room))))) if room.max_bytes else info
