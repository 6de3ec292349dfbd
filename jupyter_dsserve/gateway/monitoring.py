"""``jupyter dsserve monitoring``: what Prometheus and Grafana need to watch a gateway, as files.

Queries are of the metrics in `gateway.metrics`; each is run by tests in a Prometheus that scrapes a gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from traitlets import Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.data_dir import holder

Json = dict[str, Any]

_DURATION = "gen_ai_server_request_duration_seconds"
_OF = 'deployment=~"$deployment"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot: its queries with the names of their lines. ``unit`` is Grafana's word."""

    title: str
    unit: str
    queries: Mapping[str, str]


def _quantile(share: float, metric: str, by: str = "version", where: str = "") -> str:
    return f"histogram_quantile({share}, sum by (deployment, {by}, le) (rate({metric}_bucket{{{_OF}{where}}}{_RATE})))"


def _quantiles(metric: str, where: str = "") -> Mapping[str, str]:
    return {
        f"p{share} {{{{deployment}}}}@{{{{version}}}}": _quantile(share / 100, metric, where=where)
        for share in (50, 95, 99)
    }


_VERSION = "{{deployment}}@{{version}}"
_ENDED = f'{_DURATION}_count{{{_OF}, outcome=~"ok|error|timeout"}}'

PANELS = (
    Panel(
        "Calls by how they ended",
        "reqps",
        {"{{deployment}} {{outcome}}": f"sum by (deployment, outcome) (rate({_DURATION}_count{{{_OF}}}{_RATE}))"},
    ),
    Panel(
        "Success rate",
        "percentunit",
        {
            "{{deployment}}": f'sum by (deployment) (rate({_DURATION}_count{{{_OF}, outcome="ok"}}{_RATE}))'
            f" / sum by (deployment) (rate({_ENDED}{_RATE}))"
        },
    ),
    Panel("Duration of calls", "s", _quantiles(_DURATION, ', outcome="ok"')),
    Panel("Time to the first token", "s", _quantiles("gen_ai_server_time_to_first_token_seconds")),
    Panel("Time per output token", "s", _quantiles("gen_ai_server_time_per_output_token_seconds")),
    Panel("Time in line", "s", _quantiles("dsserve_queue_seconds")),
    Panel(
        "Tokens",
        "short",
        {
            f"{_VERSION} {{{{type}}}} / s": "sum by (deployment, version, type) "
            f"(rate(dsserve_tokens_total{{{_OF}}}{_RATE}))"
        },
    ),
    Panel(
        "In flight and in line",
        "short",
        {
            f"{_VERSION} in flight": f"dsserve_in_flight{{{_OF}}}",
            f"{_VERSION} in line, {{{{place}}}}": f"dsserve_queue_length{{{_OF}}}",
        },
    ),
    Panel("Shares of the traffic", "percentunit", {_VERSION: f"dsserve_route_weight_ratio{{{_OF}}}"}),
    Panel(
        "Rollouts",
        "short",
        {"{{deployment}}@{{candidate}} {{state}}": f"dsserve_rollout_state{{{_OF}}} == 1"},
    ),
    Panel(
        "Workers",
        "short",
        {
            f"{_VERSION} ready": f"dsserve_ready_workers{{{_OF}}}",
            f"{_VERSION} wanted": f"dsserve_wanted_workers{{{_OF}}}",
        },
    ),
    Panel("Breakers", "short", {"{{worker}} {{state}}": f"dsserve_breaker_state{{{_OF}}} == 1"}),
    Panel("Memory of versions", "bytes", {_VERSION: f"dsserve_device_bytes{{{_OF}}}"}),
    Panel(
        "Memory of devices",
        "bytes",
        {
            "{{device}} we may hold": "dsserve_ledger_capacity_bytes",
            "{{device}} free": "dsserve_ledger_free_bytes",
            "{{device}} held": "sum by (device) (dsserve_ledger_held_bytes)",
        },
    ),
    Panel(
        "Batches",
        "short",
        {f"{_VERSION} sequences": f"dsserve_batch_sequences{{{_OF}}}"},
    ),
    Panel(
        "KV cache, padding, prefixes",
        "percentunit",
        {
            f"{_VERSION} KV used": f"dsserve_kv_used_ratio{{{_OF}}}",
            f"{_VERSION} padding": f"dsserve_padding_ratio{{{_OF}}}",
            f"{_VERSION} prefix hits": f"dsserve_prefix_hit_ratio{{{_OF}}}",
        },
    ),
    Panel(
        "What happened",
        "short",
        {"{{kind}} {{deployment}}": f"sum by (kind, deployment) (increase(dsserve_events_total{{{_OF}}}{_RATE}))"},
    ),
)


@dataclass(frozen=True, slots=True)
class Alert:
    """``query`` has a value for what is wrong, for as long as ``lasts``; ``summary`` says what and what to do."""

    name: str
    query: str
    lasts: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=lambda: {"severity": "warning"})


_STEADY = (
    'min_over_time(dsserve_version_state{state="READY"}[10m]) == 1 and on (deployment, version) '
    "changes(dsserve_ready_workers[10m]) == 0"
)

ALERTS = (
    Alert(
        "DSServeDown",
        'up{job="dsserve"} == 0',
        "1m",
        "No gateway answers at {{ $labels.instance }}: is it running, and is its key the one that Prometheus has?",
        {"severity": "critical"},
    ),
    Alert(
        "DSServeSuccessRate",
        f'sum by (deployment) (rate({_DURATION}_count{{outcome=~"error|timeout"}}[5m])) / sum by (deployment) '
        f'(rate({_DURATION}_count{{outcome=~"ok|error|timeout"}}[5m])) > 0.0005',
        "1m",
        "Of the calls of {{ $labels.deployment }} less than 99.95 % succeed: {{ $value | humanizePercentage }} fail.",
        {"severity": "critical"},
    ),
    Alert(
        "DSServeLatency",
        f"histogram_quantile(0.99, sum by (deployment, version, le) "
        f'(rate({_DURATION}_bucket{{outcome="ok"}}[5m]))) > 10',
        "5m",
        "One call in a hundred of {{ $labels.deployment }}@{{ $labels.version }} takes more than {{ $value }} s.",
    ),
    Alert(
        "DSServeMemorySwing",
        "(max_over_time(dsserve_device_bytes[10m]) > 1.15 * avg_over_time(dsserve_device_bytes[10m]) or "
        "min_over_time(dsserve_device_bytes[10m]) < 0.85 * avg_over_time(dsserve_device_bytes[10m])) and on "
        f"(deployment, version) ({_STEADY})",
        "1m",
        "The device memory of {{ $labels.deployment }}@{{ $labels.version }} swings by more than 15 % although its "
        "workers stay the same.",
    ),
    Alert(
        "DSServeBreakerOpen",
        'dsserve_breaker_state{state="open"} == 1',
        "0m",
        "The worker {{ $labels.worker }} takes no requests: too many failed on it; see its logs.",
    ),
    Alert(
        "DSServeWorkersMissing",
        "dsserve_ready_workers < dsserve_wanted_workers",
        "5m",
        "{{ $labels.deployment }}@{{ $labels.version }} has only {{ $value }} workers that take requests; see its "
        "status and logs.",
    ),
    # The state stays until the next rollout: what counts is that it is new.
    Alert(
        "DSServeRolloutRolledBack",
        'dsserve_rollout_state{state="ROLLED_BACK"} == 1 unless (dsserve_rollout_state{state="ROLLED_BACK"} offset 15m '
        "== 1)",
        "0m",
        "The rollout of {{ $labels.deployment }}@{{ $labels.candidate }} was rolled back; its status says why.",
    ),
)


def dashboard() -> Json:
    """For Grafana's import; it asks for the Prometheus to read."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "deployment",
            "type": "query",
            "datasource": source,
            "query": "label_values(dsserve_version_state, deployment)",
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "refresh": 2,
        },
    ]
    return {
        "title": "jupyter_dsserve",
        "uid": "jupyter-dsserve",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "panels": [_drawn(panel, number, source) for number, panel in enumerate(PANELS)],
    }


def _drawn(panel: Panel, number: int, source: Json) -> Json:
    """Two in a row of 24 columns."""
    targets = [
        {"refId": chr(ord("A") + at), "datasource": source, "expr": query, "legendFormat": name}
        for at, (name, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def rules(alerts: Sequence[Alert] = ALERTS) -> Json:
    """For Prometheus' ``rule_files``."""
    told = [
        {
            "alert": alert.name,
            "expr": alert.query,
            "for": alert.lasts,
            "labels": dict(alert.labels),
            "annotations": {"summary": alert.summary},
        }
        for alert in alerts
    ]
    return {"groups": [{"name": "jupyter_dsserve", "rules": told}]}


def prometheus_config(url: str, key_file: Path, rule_file: Path, interval: str = "5s") -> Json:
    """A configuration that scrapes the gateway at ``url`` with the key in ``key_file``."""
    where = urlsplit(url)
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(rule_file)],
        "scrape_configs": [
            {
                "job_name": "dsserve",
                "scheme": where.scheme,
                "authorization": {"credentials_file": str(key_file)},
                "static_configs": [{"targets": [where.netloc]}],
            }
        ],
    }


class MonitoringApp(Command):
    name = "jupyter-dsserve-monitoring"
    version = __version__
    description = (
        "Write what Prometheus and Grafana need into a directory: jupyter dsserve monitoring DIR. It gets "
        "prometheus.yml (which scrapes your gateway with its admin key, or --key-file), alerts.yml and dashboard.json."
    )
    examples = "jupyter dsserve monitoring monitoring\nprometheus --config.file monitoring/prometheus.yml"

    url = Unicode("", help="The gateway; none is yours on this machine, or http://127.0.0.1:8899.").tag(config=True)
    key_file = Unicode(
        "", help="Where a key lies that Prometheus reads, such as one of scope metrics; empty is the admin key's file."
    ).tag(config=True)

    aliases = {
        **SHARED_ALIASES,
        "url": "MonitoringApp.url",
        "key-file": "MonitoringApp.key_file",
        "data-dir": "MonitoringApp.dsserve_data_dir",
    }
    flags = SHARED_FLAGS

    def start(self) -> None:
        super().start()
        if len(self.extra_args) != 1:
            self.quit("name one directory for the files: jupyter dsserve monitoring DIR")
        data_dir, target = Path(self.dsserve_data_dir).expanduser().absolute(), Path(self.extra_args[0]).absolute()
        held = holder(data_dir) if data_dir.exists() else None
        url = self.url or (held.url if held else "") or "http://127.0.0.1:8899"
        key_file = Path(self.key_file).expanduser().absolute() if self.key_file else data_dir / "admin.key"
        config = prometheus_config(url, key_file, target / "alerts.yml")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, text in (
                ("prometheus.yml", yaml.safe_dump(config, sort_keys=False)),
                ("alerts.yml", yaml.safe_dump(rules(), sort_keys=False, width=120)),
                ("dashboard.json", json.dumps(dashboard(), indent=1) + "\n"),
            ):
                (target / name).write_text(text)
                print(target / name)  # noqa: T201
        except OSError as fault:
            self.quit(f"the files cannot be written to {target} ({fault.strerror}): give another directory")
