"""``/metrics`` for Prometheus: read off the fleet when it is asked.

Names are OpenTelemetry's for generative AI where it has one (with Prometheus' ``_`` for ``.``, and the unit), and
``dsserve_`` for the rest. Labels are names of deployments, versions, workers and devices, and words of ours: there are
never more series than of those.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.breaker import Door
from jupyter_dsserve.fleet.deployment import Deployment
from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.stats import Histogram, Totals
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.calls import Calls
from jupyter_dsserve.gateway.connections import Connections
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.protocol.records import LedgerStatus, RolloutState, VersionState, VersionStats

_VERSION = ("deployment", "version")

_Key = tuple[str, str]  # as in _VERSION
_Pair = tuple[Deployment, Version]


class Metrics(Handler):
    scope = "metrics"

    def prepare(self) -> None:
        self.is_open = self.context.open_metrics
        super().prepare()

    @describes("Numbers for Prometheus; with --open-metrics no key is needed.", {200: str}, media="text/plain")
    async def get(self) -> None:
        ledger = await self.fleet.ledger()
        told = _Told(families(self.fleet, self.context.calls, self.context.connections, ledger, time.monotonic()))
        self.set_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.finish(generate_latest(told))


class _Told:
    """What `generate_latest` takes for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def families(
    fleet: Fleet, calls: Calls, connections: Connections, ledger: LedgerStatus, now: float
) -> Iterator[Metric]:
    """``now`` is monotonic seconds."""
    yield _gauge("dsserve_build_info", "The package's version.", ("version",), [((__version__,), 1)])
    yield _calls(fleet, calls)
    yield _gauge("dsserve_calls_running", "Calls of models that run or wait.", (), [((), calls.num_running)])
    yield from _connections(connections)
    yield _counter(
        "dsserve_events_total",
        "What happened since the gateway started, by kind: replica_lost, breaker_open, rollout_rolled_back, …",
        ("kind", *_VERSION),
        [(key, count) for key, count in fleet.events.counts.items()],
    )
    yield from _of_versions(fleet, now)
    yield from _of_replicas(fleet)
    yield from _of_rollouts(fleet)
    yield from _of_ledger(ledger)
    yield from PROCESS_COLLECTOR.collect()


def _of_versions(fleet: Fleet, now: float) -> Iterator[Metric]:
    pairs = [(d, v) for d in fleet.deployments() for v in d.versions.values()]
    stats = [((d.name, v.name), v.stats(d.route.weights.get(v.name, 0.0), 0.0, now)) for d, v in pairs]
    yield from _ended([((d.name, v.name), v.window.totals) for d, v in pairs], stats)
    yield from _running(pairs, stats)
    yield from _standing(pairs, stats)


def _ended(totals: Sequence[tuple[_Key, Totals]], stats: Sequence[tuple[_Key, VersionStats]]) -> Iterator[Metric]:
    """What ended requests took and gave."""
    yield _histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "From a request's arrival to its first token.",
        [(key, t.first_token_s) for key, t in totals],
    )
    yield _histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "The mean between an answer's tokens after the first.",
        [(key, t.per_token_s) for key, t in totals],
    )
    yield _histogram(
        "dsserve_queue_seconds",
        "In line at the gateway for a worker.",
        [(key, t.queued_s) for key, t in totals],
    )
    for name, help, of in (
        ("dsserve_requests_total", "Ended requests: each prompt and choice of a call is one.", "requests"),
        ("dsserve_request_errors_total", "Those among them that ended in an error of ours.", "errors"),
        ("dsserve_preemptions_total", "Requests computed again for want of KV memory.", "preemptions"),
    ):
        yield _counter(name, help, _VERSION, [(key, getattr(s, of)) for key, s in stats])
    yield _counter(
        "dsserve_tokens_total",
        "Tokens of prompts (input), of those that an earlier prompt had computed (cached), of answers (output).",
        (*_VERSION, "type"),
        [
            ((*key, kind), value)
            for key, t in totals
            for kind, value in (("input", t.prompt_tokens), ("cached", t.cached_tokens), ("output", t.tokens))
        ],
    )


def _running(pairs: Sequence[_Pair], stats: Sequence[tuple[_Key, VersionStats]]) -> Iterator[Metric]:
    """What is being worked on now, and with how much."""
    for name, help, of in (
        ("dsserve_in_flight", "Requests on workers.", "in_flight"),
        ("dsserve_kv_used_ratio", "Of the KV cache of the fullest worker.", "kv_used"),
        ("dsserve_padding_ratio", "Of computed tokens, those that only filled up rows.", "padding"),
        ("dsserve_prefix_hit_ratio", "Of prompts' tokens, those that an earlier prompt had computed.", "prefix_hits"),
        ("dsserve_device_bytes", "Memory that its workers have on their device.", "device_bytes"),
        ("dsserve_ready_workers", "Workers that take requests.", "replicas"),
    ):
        yield _gauge(name, help, _VERSION, [(key, getattr(s, of)) for key, s in stats])
    yield _gauge(
        "dsserve_queue_length",
        "Requests in line at the gateway, and those that wait within workers.",
        (*_VERSION, "place"),
        [row for d, v in pairs for row in _queues(d, v)],
    )
    yield _gauge(
        "dsserve_batch_sequences",
        "Sequences in the workers' steps at their last heartbeat.",
        _VERSION,
        [((d.name, v.name), sum(r.heartbeat.running for r in v.replicas)) for d, v in pairs],
    )


def _standing(pairs: Sequence[_Pair], stats: Sequence[tuple[_Key, VersionStats]]) -> Iterator[Metric]:
    """How versions stand: their workers, their traffic, their state."""
    yield _gauge(
        "dsserve_wanted_workers",
        "Workers that there should be.",
        _VERSION,
        [((d.name, v.name), v.num_replicas if v.is_wanted else 0) for d, v in pairs],
    )
    yield _gauge(
        "dsserve_route_weight_ratio",
        "The version's share of its deployment's traffic.",
        _VERSION,
        [(key, s.weight / 100) for key, s in stats],
    )
    yield _gauge(
        "dsserve_version_state",
        "1 for the state that it is in.",
        (*_VERSION, "state"),
        [((d.name, v.name, each.value), float(v.state is each)) for d, v in pairs for each in VersionState],
    )


def _queues(deployment: Deployment, version: Version) -> Iterator[tuple[tuple[str, ...], float]]:
    yield (deployment.name, version.name, "gateway"), deployment.road.line.num_waiting_for(version.name)
    yield (deployment.name, version.name, "worker"), sum(r.heartbeat.waiting for r in version.replicas)


def _of_replicas(fleet: Fleet) -> Iterator[Metric]:
    replicas = [(v, r) for d in fleet.deployments() for v in d.versions.values() for r in v.replicas]
    yield _gauge(
        "dsserve_breaker_state",
        "1 for the state that a worker's breaker is in.",
        (*_VERSION, "worker", "state"),
        [
            ((v.deployment, v.name, r.id, door.value), float(r.breaker.door is door))
            for v, r in replicas
            for door in Door
        ],
    )


def _of_rollouts(fleet: Fleet) -> Iterator[Metric]:
    found = [(d.name, status) for d in fleet.status() if (status := d.rollout)]
    yield _gauge(
        "dsserve_rollout_state",
        "1 for the state that a deployment's rollout, or its last one, is in.",
        ("deployment", "candidate", "state"),
        [((name, s.candidate, each.value), float(s.state is each)) for name, s in found for each in RolloutState],
    )


def _of_ledger(ledger: LedgerStatus) -> Iterator[Metric]:
    for name, help, of in (
        ("dsserve_ledger_capacity_bytes", "The most that we hold of a device.", "capacity_bytes"),
        ("dsserve_ledger_free_bytes", "What of it can be had now.", "free_bytes"),
    ):
        yield _gauge(name, help, ("device",), [((d.id,), getattr(d, of)) for d in ledger.devices])
    yield _gauge(
        "dsserve_ledger_held_bytes",
        "What a worker holds of a device.",
        ("device", "worker"),
        [((d.id, h.replica), h.bytes) for d in ledger.devices for h in d.held],
    )
    yield _gauge("dsserve_waiting_loads", "Loads that wait for memory.", (), [((), len(ledger.waiting))])


def _calls(fleet: Fleet, calls: Calls) -> Metric:
    return _histogram(
        "gen_ai_server_request_duration_seconds",
        "A call, as its caller sees it, by how it ended.",
        [(key, found) for key, found in calls.durations.items() if not key[0] or fleet.has_deployment(key[0])],
        (*_VERSION, "outcome"),
    )


def _connections(connections: Connections) -> Iterator[Metric]:
    yield _gauge("dsserve_connections", "Open connections of callers.", (), [((), connections.num_open)])
    yield _counter(
        "dsserve_connections_cut_total",
        "Connections and gRPC streams cut because their reader was stuck, or refused because there were too many.",
        ("reason",),
        [(("stalled",), connections.num_cut), (("too_many",), connections.num_refused)],
    )


def _gauge(name: str, help: str, labels: Iterable[str], rows: Iterable[tuple[Iterable[str], float]]) -> Metric:
    metric = GaugeMetricFamily(name, help, labels=tuple(labels))
    for values, value in rows:
        metric.add_metric(tuple(values), value)
    return metric


def _counter(name: str, help: str, labels: Iterable[str], rows: Iterable[tuple[Iterable[str], float]]) -> Metric:
    metric = CounterMetricFamily(name, help, labels=tuple(labels))
    for values, value in rows:
        metric.add_metric(tuple(values), value)
    return metric


def _histogram(
    name: str, help: str, rows: Iterable[tuple[Iterable[str], Histogram]], labels: Iterable[str] = _VERSION
) -> Metric:
    metric = HistogramMetricFamily(name, help, labels=tuple(labels))
    for values, found in rows:
        buckets = [("+Inf" if bound == float("inf") else str(bound), float(count)) for bound, count in found.buckets]
        metric.add_metric(tuple(values), buckets, found.sum)
    return metric


ROUTES: list[tuple[str, type[Handler]]] = [(r"/metrics", Metrics)]
