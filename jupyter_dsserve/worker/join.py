"""A worker that people start: it asks the gateway what to load, and goes on as any other."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import grpc

from jupyter_dsserve import __version__
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION, WorkerLaunch
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub

_ANSWER_S = 10.0


def launch_asked(arguments: Sequence[str]) -> WorkerLaunch:
    """What the gateway tells a worker with this command line. Ends the process if it may not join."""
    parser = argparse.ArgumentParser(
        prog="python -m jupyter_dsserve.worker",
        description="Join a version as one more replica, until Ctrl-C or the gateway's end. %%dsserve join demo@v1 "
        "(or POST /api/deployments/demo/versions/v1/join) gives the whole command.",
    )
    parser.add_argument("--join", required=True, metavar="ADDRESS", help="Where the gateway listens for workers.")
    for name in ("token", "deployment", "version"):
        parser.add_argument(f"--{name}", required=True)
    launch = _ask(parser.parse_args(arguments))
    # To people Ctrl-C means: finish what runs, and leave.
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return launch


def _ask(given: argparse.Namespace) -> WorkerLaunch:
    request = pb.JoinRequest(
        deployment=given.deployment,
        version=given.version,
        token=given.token,
        protocol_version=PROTOCOL_VERSION,
        package_version=__version__,
        pid=os.getpid(),
    )
    try:
        with grpc.insecure_channel(given.join) as channel:
            reply: pb.JoinReply = LinkStub(channel).Join(request, timeout=_ANSWER_S)
    except grpc.RpcError as fault:
        sys.exit(f"no gateway answers at {given.join} ({fault.code().name}): is it running, and on this machine?")
    if reply.refusal:
        sys.exit(f"this worker may not join: {reply.refusal}")
    return WorkerLaunch.from_json(reply.launch)
