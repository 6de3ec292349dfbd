"""`Keeper`: the one gateway of this user: started at first use, and after a crash; stopped with the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from jupyter_dsserve.data_dir import Holder, holder, killed_holder, read_admin_key
from jupyter_dsserve.parent import backoff_s, childs_environment
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.records import GatewayAddress, GatewayState, GatewayStatus

MAX_CRASHES = 5
# A gateway that lived this long was healthy: what ends it now is a new trouble, not the old one again.
HEALTHY_S = 60.0
MAX_START_S = 60.0  # one that does not answer by then hangs
_HURRY_S = 1.0  # for one that was told twice to end, before it is killed
_LOOK_S = 0.05
_MAX_LINE = 1_000_000


class Keeper:
    """Lives on the Jupyter server's loop. The data directory says who serves: a gateway that another server of the
    user runs is used, not owned."""

    def __init__(
        self,
        config: GatewayConfig,
        stop_s: float,
        log: logging.Logger,
        on_crash: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``stop_s``: seconds that running requests get when the server stops. ``on_crash`` hears why our gateway ended
        that had answered."""
        self._on_crash = on_crash
        self._config = config
        self._stop_s = stop_s
        self._log = log
        self._life: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._own: GatewayAddress | None = None  # of our process, from its first answer to its end
        self._last: Holder | None = None  # the one we saw answering last, ours or not
        self._attached: GatewayAddress | None = None  # of ``_last``
        self._failure = ""
        self._is_stopping = False

    def status(self) -> GatewayStatus:
        """Looks only: starts nothing."""
        held = holder(self._config.data_dir)
        pid = self._process.pid if self._process else 0
        if held and held.url:
            return GatewayStatus(GatewayState.RUNNING, held.url, held.pid, is_attached=held.pid != pid, grpc=held.grpc)
        if held or self._life:
            return GatewayStatus(GatewayState.STARTING)
        if self._failure:
            return GatewayStatus(GatewayState.FAILED, reason=self._failure)
        return GatewayStatus(GatewayState.OFF)

    def running(self) -> GatewayAddress | None:
        """Where the gateway answers, if it does."""
        if self._own:
            return self._own
        held = holder(self._config.data_dir)
        if not held or not held.url:
            return None
        if held != self._last or not self._attached:
            self._last, self._attached = held, GatewayAddress(held.url, read_admin_key(self._config.data_dir))
        return self._attached

    async def address(self, wait_s: float) -> GatewayAddress:
        """Where the gateway answers; it is started if none runs.

        Raises `Unavailable` with the reason if it cannot be started, and after ``wait_s`` if it is still starting.
        """
        end = time.monotonic() + wait_s
        if not self._life:
            self._failure = ""  # a new use tries again
        while not (found := self.running()):
            if self._is_stopping:
                raise Unavailable("the Jupyter server is stopping")
            if self._failure:
                raise Unavailable(f"the gateway could not be started: {self._failure}")
            if not self._life and not holder(self._config.data_dir):
                self._life = asyncio.create_task(self._keep())
            if time.monotonic() > end:
                raise Unavailable(f"the gateway is still starting after {wait_s:.1f} s: ask again")
            await asyncio.sleep(_LOOK_S)
        return found

    async def stop(self) -> None:
        """End our gateway: it drains for ``stop_s``, is told to hurry, and is killed at last. Never raises."""
        self._is_stopping = True
        if process := self._process:
            for wait_s in (self._stop_s, _HURRY_S):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(process.wait(), wait_s)
                    break
        if self._life:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def _keep(self) -> None:
        """One gateway after another until one ends in good order or cannot go on; ``_failure`` then says why."""
        num_crashes, config = 0, self._config_after(killed_holder(self._config.data_dir))
        try:
            while True:
                started = time.monotonic()
                has_answered, code, reason = await self._run(config)
                if self._is_stopping or code == 0 or holder(self._config.data_dir):  # held: by a faster server's
                    return
                if has_answered:
                    self._on_crash(reason)
                num_crashes = 1 if time.monotonic() - started > HEALTHY_S else num_crashes + 1
                if num_crashes > MAX_CRASHES or not (has_answered or config.restore):
                    self._failure = reason
                    return
                self._log.warning("%s; starting it again", reason)
                config = self._config_after(self._last) if has_answered else replace(config, port=self._config.port)
                await asyncio.sleep(backoff_s(num_crashes))
        except Exception as fault:
            self._failure = f"{type(fault).__name__}: {fault}"
        finally:
            self._life = None

    def _config_after(self, killed: Holder | None) -> GatewayConfig:
        """After a crash of a gateway we used, whoever owned it: what ran comes back, where it was known to answer."""
        if killed and killed == self._last:
            return replace(self._config, restore=True, port=urlsplit(killed.url).port or 0)
        return self._config

    async def _run(self, config: GatewayConfig) -> tuple[bool, int, str]:
        """One life of a gateway: whether it answered, its exit code, why it ended. The process is gone afterwards."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jupyter_dsserve.gateway"),
            stdin=asyncio.subprocess.PIPE,  # stays open: its end tells the gateway that we died
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=childs_environment(),
            start_new_session=True,  # Ctrl-C in our terminal is ours to handle
        )
        assert process.stdin
        assert process.stderr
        self._process, last_words = process, deque[str](maxlen=5)
        listening = asyncio.create_task(self._listen(process.stderr, last_words))
        try:
            process.stdin.write(config.to_json().encode() + b"\n")
            has_answered = await self._has_answered(process)
            code = await process.wait()
            await listening
            why = "it did not answer in time" if not has_answered and code < 0 else " / ".join(last_words)
            return has_answered, code, f"the gateway ended with code {code}: {why or 'without a word'}"
        finally:
            self._own = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
            listening.cancel()
            self._process = None

    async def _has_answered(self, process: asyncio.subprocess.Process) -> bool:
        """True once it answers; False if it ended before that, or hung and was ended."""
        end = time.monotonic() + MAX_START_S
        while process.returncode is None:
            held = holder(self._config.data_dir)
            if held and held.url and held.pid == process.pid:
                self._own, self._last = GatewayAddress(held.url, read_admin_key(self._config.data_dir)), held
                self._log.info("the gateway answers at %s", held.url)
                return True
            if time.monotonic() > end:
                process.kill()
            await asyncio.sleep(_LOOK_S)
        return False

    async def _listen(self, stderr: asyncio.StreamReader, last_words: deque[str]) -> None:
        begun = b""
        while piece := await stderr.read(65536):  # not by lines: one that is too long would end the reading
            if not self._config.log_json:
                last_words.extend(line[:1000] for line in piece.decode(errors="replace").splitlines())
                self._log.info("gateway: %s", piece[:4000].decode(errors="replace").rstrip())
                continue
            # Whole records go on as they are, beside the server's own lines, which have its own format.
            whole, sign, begun = (begun + piece).rpartition(b"\n")
            sys.stderr.write((whole + sign).decode(errors="replace"))
            sys.stderr.flush()
            last_words.extend(message_of(line)[:1000] for line in whole.decode(errors="replace").splitlines())
            begun = begun[-_MAX_LINE:]


def message_of(line: str) -> str:
    """Of a record in JSON; a line that is none is its own."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
