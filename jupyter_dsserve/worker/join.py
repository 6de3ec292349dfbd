"""A worker that people start: it asks the gateway what to load, and goes on as any other."""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

from jupyter_dsserve import __version__
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION, WorkerLaunch
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub
from jupyter_dsserve.worker.dial import Dial, Untrusted, pinned

_ANSWER_S = 10.0


def launch_asked(arguments: Sequence[str]) -> tuple[WorkerLaunch, Dial]:
    """What the gateway tells a worker with this command line, and how it is reached. The token comes on stdin,
    or in a file: a command line can be read by everybody on the machine. Ends the process if it may not join."""
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
    for name in ("deployment", "version"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args(arguments)
    dial = _dial(given.join, given.fingerprint, given.name)
    launch = _ask(dial, given.deployment, given.version, _token(given.token_file))
    # To people Ctrl-C means: finish what runs, and leave.
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return launch, dial


def _dial(address: str, fingerprint: str, name: str) -> Dial:
    if address.startswith("unix:"):
        return Dial(address)
    if not fingerprint:
        sys.exit(f"--join {address} is no unix socket: give --fingerprint too, which the join command has")
    try:
        return pinned(address, fingerprint, name)
    except Untrusted as fault:
        sys.exit(f"this worker does not join: {fault}")
    except OSError as fault:
        sys.exit(f"no gateway answers at {address} ({fault}): is it running, and can this machine reach it?")


def _token(file: str) -> str:
    if file:
        try:
            with Path(file).expanduser().open() as opened:
                return opened.readline().strip() or sys.exit(f"--token-file {file} has no token in its first line")
        except (OSError, UnicodeDecodeError) as fault:
            sys.exit(f"--token-file {file} cannot be read ({fault}): give a file whose first line is the token")
    token = getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    return token.strip() or sys.exit("stdin has no token: its first line is to be the one of the join command")


def _ask(dial: Dial, deployment: str, version: str, token: str) -> WorkerLaunch:
    request = pb.JoinRequest(
        deployment=deployment,
        version=version,
        token=token,
        protocol_version=PROTOCOL_VERSION,
        package_version=__version__,
        pid=os.getpid(),
    )
    try:
        with dial.channel() as channel:
            reply: pb.JoinReply = LinkStub(channel).Join(request, timeout=_ANSWER_S, metadata=dial.metadata(token))
    except grpc.RpcError as fault:
        if fault.code() is grpc.StatusCode.UNAUTHENTICATED:
            sys.exit(f"this worker may not join: {fault.details()}")
        sys.exit(f"no gateway answers at {dial.address} ({fault.code().name}): is it running, and on this machine?")
    if reply.refusal:
        sys.exit(f"this worker may not join: {reply.refusal}")
    return WorkerLaunch.from_json(reply.launch)
