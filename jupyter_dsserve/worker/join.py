"""A worker that people start: it asks the gateway what to load, is as any other, and joins anew when that is lost."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import itertools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from jupyter_dsserve import __version__
from jupyter_dsserve.parent import backoff_s
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION, WorkerLaunch
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub
from jupyter_dsserve.worker.dial import Dial, Untrusted, pinned

log = logging.getLogger(__name__)

_ANSWER_S = 10.0
_REJOIN_S = 300.0  # a network's trouble, or a machine's restart
_MAX_WAIT_S = 5.0  # between two tries: a model that is loaded is to serve soon


class MayNotJoin(Exception):
    """And will not, however often it asks."""


class _NoAnswer(Exception):
    """The gateway is not there now, or not to be reached."""


class Joiner:
    """Asks one gateway for one version. ``rejoin_s``: for how many seconds it asks `again`."""

    def __init__(
        self, dial: Callable[[], Dial], request: pb.JoinRequest, rejoin_s: float, clock: Callable[[], float]
    ) -> None:
        """``dial`` finds the way there. ``clock`` gives monotonic seconds."""
        self._dial = dial
        self._request = request
        self.rejoin_s = rejoin_s
        self._clock = clock
        self._asking = ThreadPoolExecutor(1, "joining")  # of its own: nobody waits for its end

    def ask(self) -> tuple[WorkerLaunch, Dial]:
        """What to load, and where to dial in. Raises `MayNotJoin`, or `_NoAnswer` if that may be different later."""
        dial = self._dial()
        try:
            with dial.channel() as channel:
                join = LinkStub(channel).Join
                reply: pb.JoinReply = join(
                    self._request, timeout=_ANSWER_S, metadata=dial.metadata(self._request.token)
                )
        except grpc.RpcError as fault:
            if fault.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise MayNotJoin(f"this worker may not join: {fault.details()}") from None
            raise _NoAnswer(
                f"no gateway answers at {dial.address} ({fault.code().name}): is it running, and on this machine?"
            ) from None
        if reply.refusal:
            raise MayNotJoin(f"this worker may not join: {reply.refusal}")
        return WorkerLaunch.from_json(reply.launch), dial

    async def again(self) -> tuple[WorkerLaunch, Dial]:
        """As `ask`, until there is an answer. Raises `MayNotJoin`, also if there is none in time."""
        version = f"{self._request.deployment}@{self._request.version}"
        log.info("it keeps %s loaded, and asks for %g s to join again", version, self.rejoin_s)
        end = self._clock() + self.rejoin_s
        for number in itertools.count(1):
            try:
                return await asyncio.get_running_loop().run_in_executor(self._asking, self.ask)
            except _NoAnswer as fault:
                if (left_s := end - self._clock()) <= 0:
                    raise MayNotJoin(f"{fault}; it was asked for {self.rejoin_s:g} s (--rejoin-s)") from None
            await asyncio.sleep(min(backoff_s(number), _MAX_WAIT_S, left_s))
        raise AssertionError("unreachable")


def launch_asked(arguments: Sequence[str]) -> tuple[WorkerLaunch, Dial, Joiner | None]:
    """What the gateway tells a worker with this command line, how it is reached, and who joins anew when it is lost
    (None: the worker ends then). The token comes on stdin, or in a file: a command line can be read by everybody on the
    machine. Ends the process if it may not join."""
    given = _parser().parse_args(arguments)
    is_far = not given.join.startswith("unix:")
    if is_far and not given.fingerprint:
        sys.exit(f"--join {given.join} is no unix socket: give --fingerprint too, which the join command has")
    request = pb.JoinRequest(
        deployment=given.deployment,
        version=given.version,
        token=_token(given.token_file),
        protocol_version=PROTOCOL_VERSION,
        package_version=__version__,
        pid=os.getpid(),
    )
    # A unix socket is lost with its gateway only, and with that everything ends on its machine.
    rejoin_s = (_REJOIN_S if is_far else 0.0) if given.rejoin_s is None else given.rejoin_s
    joiner = Joiner(lambda: _dial(given.join, given.fingerprint, given.name), request, rejoin_s, time.monotonic)
    try:
        launch, dial = joiner.ask()
    except (MayNotJoin, _NoAnswer) as fault:
        sys.exit(str(fault))
    # To people Ctrl-C means: finish what runs, and leave.
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return launch, dial, joiner if rejoin_s else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jupyter_dsserve.worker",
        description="Join a version as one more replica, until Ctrl-C or the gateway's end. The token is the "
        "first line of stdin, or of --token-file. %%dsserve join demo@v1 (or POST "
        "/api/deployments/demo/versions/v1/join) gives the whole command.",
    )
    parser.add_argument("--join", required=True, metavar="ADDRESS", help="Where the gateway listens for workers.")
    parser.add_argument("--fingerprint", default="", help="Of the gateway's certificate: SHA-256, in hex.")
    parser.add_argument("--name", default="", help="That its certificate is made out to.")
    parser.add_argument("--token-file", default="", metavar="FILE", help="Its first line is the token, not stdin's.")
    parser.add_argument(
        "--rejoin-s",
        type=_seconds,
        metavar="SECONDS",
        help="How long it keeps the model and asks to join again when the gateway is lost; 0: it ends at once. "
        f"Default {_REJOIN_S:g}, and 0 for a gateway on this machine.",
    )
    for name in ("deployment", "version"):
        parser.add_argument(f"--{name}", required=True)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give seconds from 0 on")
    return seconds


def _dial(address: str, fingerprint: str, name: str) -> Dial:
    if address.startswith("unix:"):
        return Dial(address)
    try:
        return pinned(address, fingerprint, name)
    except Untrusted as fault:
        raise MayNotJoin(f"this worker does not join: {fault}") from None
    except OSError as fault:
        raise _NoAnswer(
            f"no gateway answers at {address} ({fault}): is it running, and can this machine reach it?"
        ) from None


def _token(file: str) -> str:
    if file:
        try:
            with Path(file).expanduser().open() as opened:
                return opened.readline().strip() or sys.exit(f"--token-file {file} has no token in its first line")
        except (OSError, UnicodeDecodeError) as fault:
            sys.exit(f"--token-file {file} cannot be read ({fault}): give a file whose first line is the token")
    token = getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    return token.strip() or sys.exit("stdin has no token: its first line is to be the one of the join command")
