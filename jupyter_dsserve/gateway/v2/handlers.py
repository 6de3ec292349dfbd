"""What all routes below ``/v2`` share, and those that tell of the server and of its models."""

from __future__ import annotations

import asyncio
import time

from jupyter_dsserve import __version__
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.v2 import models
from jupyter_dsserve.gateway.v2.shapes import ModelConfig, Statistics
from jupyter_dsserve.gateway.v2.wire import inflated
from jupyter_dsserve.protocol.errors import DSServeError, NotFound, Unavailable
from jupyter_dsserve.protocol.records import Scope

Json = models.Json
EXTENSIONS = (
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "system_shared_memory",
)


class OIPHandler(Handler):
    """Errors in the protocol's shape."""

    scope: Scope = "infer"
    error_type = answers.OIPFaultAnswer

    def error_body(self, error: DSServeError) -> Json:
        return {"error": error.message}

    async def raw_body(self) -> bytes:
        """Inflated, if it came compressed. Raises `TooLarge`, and `InvalidRequest` for what is broken."""
        self._check_size(len(self._body))
        coding = self.request.headers.get("Content-Encoding", "").strip().lower()
        raw = bytes(self._body)
        if not coding:
            return raw
        return await asyncio.to_thread(inflated, raw, coding, self.context.max_body_bytes)


class Server(OIPHandler):
    @describes("The server, and the protocol's extensions that it has.", {200: answers.ServerMetadata})
    def get(self) -> None:
        self.answer({"name": "jupyter_dsserve", "version": __version__, "extensions": EXTENSIONS})


class Live(OIPHandler):
    is_open = True

    @describes("Whether the gateway runs.", {200: answers.ServerLive})
    def get(self) -> None:
        self.answer({"live": True})


class Ready(OIPHandler):
    is_open = True

    @describes("Whether some version can answer.", {200: answers.ServerReady, 503: answers.ServerReady})
    def get(self) -> None:
        is_ready = not self.context.connections.is_leaving and any(d.ready for d in self.fleet.deployments())
        self.answer({"ready": is_ready}, 200 if is_ready else 503)


class Model(OIPHandler):
    """Without a version: the READY one with the most weight."""

    @describes("What a model takes and gives.", {200: answers.ModelMetadata}, errors=(NotFound, Unavailable))
    def get(self, name: str, version: str = "") -> None:
        self.check_model(name)
        found = models.shown(self.fleet, name, version)
        told = models.metadata(found, self.fleet.deployment(found.deployment).ready)
        self.answer(
            {
                "name": name,
                "versions": told.versions,
                "platform": told.platform,
                **{
                    side: [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in infos]
                    for side, infos in (("inputs", told.inputs), ("outputs", told.outputs))
                },
            }
        )


class ModelReady(OIPHandler):
    @describes("Whether a model can answer.", {200: answers.ModelReady, 503: answers.ModelReady}, errors=(NotFound,))
    def get(self, name: str, version: str = "") -> None:
        self.check_model(name)
        deployment, pinned = models.named(name, version)
        ready = self.fleet.deployment(deployment).ready
        if pinned:
            self.fleet.version(deployment, pinned)  # a version nobody knows is not found
        is_ready = pinned in ready if pinned else bool(ready)
        self.answer({"name": name, "ready": is_ready}, 200 if is_ready else 503)


class Config(OIPHandler):
    """Without a version: that of the READY one with the most weight."""

    @describes("Triton's model configuration.", {200: ModelConfig}, errors=(NotFound, Unavailable))
    def get(self, name: str, version: str = "") -> None:
        self.check_model(name)
        self.answer(models.config(models.shown(self.fleet, name, version)))


class Stats(OIPHandler):
    """Of one version, of all of a model's, or of all that the key may ask."""

    @describes("How many requests there were, and how long they took.", {200: Statistics}, errors=(NotFound,))
    def get(self, name: str = "", version: str = "") -> None:
        if name:
            self.check_model(name)
        at, now = time.time(), time.monotonic()
        counted = models.counted(self.fleet, name, version, self.may_ask)
        self.answer({"model_stats": [models.statistics(each, at, now) for each in counted]})


MODEL = r"/v2/models/([^/]+)"
VERSION = rf"{MODEL}/versions/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v2", Server),
    (r"/v2/health/live", Live),
    (r"/v2/health/ready", Ready),
    (r"/v2/models/stats", Stats),
    (MODEL, Model),
    (VERSION, Model),
    *((f"{model}/ready", ModelReady) for model in (MODEL, VERSION)),
    *((f"{model}/config", Config) for model in (MODEL, VERSION)),
    *((f"{model}/stats", Stats) for model in (MODEL, VERSION)),
]
