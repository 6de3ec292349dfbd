"""The access log: a line for each request, with what a call of a model was. Fields have the names of Elastic's Common
Schema, and ours begin with ``dsserve.``; a query is left out, since whatever people put there would stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from tornado.web import RequestHandler

from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.protocol.request import Request
from jupyter_dsserve.protocol.traces import Attribute

log = logging.getLogger(__name__)

_MAX_PROMPT = 300
_LEFT = 499  # nginx's word for a caller who left before the answer


def log_call(trace: Trace | None, id: str, outcome: str, passed_s: float, attributes: Mapping[str, Attribute]) -> None:
    """A call of a model that has ended, by whichever face; ``attributes`` are the face's, ``id`` the request's."""
    level = logging.WARNING if outcome in ("error", "timeout") else logging.INFO
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Attribute] = dict(attributes)
    if outcome == "cancelled" and "http.response.status_code" in fields:
        fields["http.response.status_code"] = _LEFT
    words = [f"{_asked(fields)} {1000 * passed_s:.1f} ms {fields.get('client.address', '')}".rstrip(), id]
    fields |= {"event.duration": int(passed_s * 1e9), "event.outcome": outcome, "dsserve.request_id": id}
    if trace:
        said = trace.summary(trace.ended_s)
        fields |= {
            "trace.id": said.trace_id,
            "dsserve.operation": said.operation,
            "dsserve.deployment": said.deployment,
            "dsserve.version": said.version,
            "dsserve.input_tokens": said.input_tokens,
            "dsserve.output_tokens": said.output_tokens,
        }
        if said.version:
            words.append(f"{said.deployment}@{said.version} {said.input_tokens} → {said.output_tokens} tokens")
        if said.first_token_s is not None:
            fields["dsserve.first_token_s"] = round(said.first_token_s, 6)
            words.append(f"first {1000 * said.first_token_s:.1f} ms")
        if trace.error:
            fields["error.type"] = trace.error
    if outcome != "ok":
        words.append(outcome)
    log.log(level, " · ".join(words), extra=fields)


def log_request(handler: RequestHandler) -> None:
    """Any other request, once it is answered. What only looks is told at the level DEBUG: panels look all the time."""
    if getattr(handler, "asked", None) is not None:  # a call of a model, which `log_call` tells of
        return
    request, status = handler.request, handler.get_status()
    is_probe = status == 503 and "/health" in request.path
    is_looking = request.method in ("GET", "HEAD", "OPTIONS") and (status < 400 or is_probe)
    level = logging.DEBUG if is_looking else logging.WARNING if status >= 500 else logging.INFO
    if not log.isEnabledFor(level):
        return
    passed_s = request.request_time()
    fields: dict[str, Attribute] = {
        "http.request.method": request.method or "",
        "url.path": request.path,
        "http.response.status_code": status,
        "client.address": request.remote_ip or "",
        "event.duration": int(passed_s * 1e9),
    }
    log.log(level, "%s %.1f ms %s", _asked(fields), 1000 * passed_s, request.remote_ip, extra=fields)


def log_prompts(requests: Sequence[Request]) -> None:
    """The beginning of each prompt: only where somebody asks for it by ``--log-prompts``."""
    for request in requests:
        prompt = request.prompt
        text = prompt if isinstance(prompt, str) else repr(prompt)
        shown = text if len(text) <= _MAX_PROMPT else f"{text[:_MAX_PROMPT]}… ({len(text)} characters)"
        log.info("PROMPT of %s (--log-prompts): %r", request.id, shown, extra={"dsserve.request_id": request.id})


def _asked(fields: Mapping[str, Attribute]) -> str:
    """``POST /v1/completions 200``; a face that is not HTTP's has a method of its own."""
    path = fields.get("url.path") or fields.get("rpc.method", "")
    status = fields.get("http.response.status_code", fields.get("rpc.grpc.status_code", ""))
    return " ".join(filter(None, (str(fields.get("http.request.method", "")), str(path), str(status))))
