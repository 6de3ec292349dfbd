"""What everything shows: the two records of the event stream, `Event` and `VersionStats`, and the status records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo


class VersionState(str, Enum):
    """What a version is doing. Reported after the effect, but for DRAINING, which is reported before it.

    QUEUED    a worker is about to be started, or waits for memory; `reason` says for what
    LOADING   the worker process runs and reads weights; `progress` moves
    WARMING   weights are in; the engine checks itself and generates its first token
    READY     one token was really generated; takes traffic if the route gives it some
    DRAINING  takes nothing new, finishes what runs
    STOPPED   no process; registered, can be loaded again (one that autoscaling put to rest comes with its next request)
    FAILED    no process; `reason` says why in words
    """

    QUEUED = "QUEUED"
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened. ``at`` is seconds since the epoch; ``id`` grows and is never reused."""

    id: int
    at: float
    kind: str
    deployment: str = ""
    version: str = ""
    replica: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VersionStats:
    """A version over the last seconds: counts since it was registered, latencies (``_s``) over the window.

    ``requests`` counts ended ones, ``errors`` those among them that ended in our error (a caller who leaves is none).
    A latency is None while the window is empty. ``kv_used`` is a share from 0 to 1, ``device_bytes`` the worker's
    memory on its device, ``padding`` the share of the tokens its batches computed that only filled up rows (0 to 1),
    ``prefix_hits`` the share of the prompts' tokens that an earlier prompt had computed, ``preemptions`` how often a
    request had to leave for want of KV memory and was computed again; both since its workers started.
    """

    deployment: str
    version: str
    at: float
    state: VersionState
    weight: float
    replicas: int
    requests: int
    errors: int
    in_flight: int
    queued: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    first_token_p95_s: float | None
    tokens_per_s: float
    kv_used: float
    device_bytes: int
    padding: float = 0.0
    prefix_hits: float = 0.0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class StatsPoint:
    """A version over one step of its history, which begins ``at`` (seconds since the epoch). Latencies (``_s``) are of
    good answers, read off histograms, a fifth off at most, and None if there was none; ``in_flight``, ``queued``,
    ``kv_used`` (0 to 1), ``device_bytes`` and READY ``replicas`` are the most that a look each second saw."""

    at: float
    requests: int
    errors: int
    requests_per_s: float
    prompt_tokens: int
    tokens: int
    tokens_per_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    first_token_p95_s: float | None
    in_flight: int
    queued: int
    kv_used: float
    device_bytes: int
    replicas: int


@dataclass(frozen=True, slots=True)
class StatsSeries:
    """The points of a version, oldest first; none where it was not loaded."""

    deployment: str
    version: str
    points: list[StatsPoint]


@dataclass(frozen=True, slots=True)
class StatsHistory:
    """Versions from ``since`` to ``until`` (seconds since the epoch), a point every ``step_s`` seconds."""

    since: float
    until: float
    step_s: int
    series: list[StatsSeries]


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One worker of a version. ``device`` and ``runner`` (``ragged``, or ``padded:`` and what kept the model from
    ragged) are empty until it is READY; ``pid`` 0 before its process runs. ``breaker`` is ``closed`` (requests go
    through), ``open`` or ``half-open``; ``trouble`` says why it takes none although it is READY."""

    id: str
    state: VersionState
    device: str
    runner: str
    pid: int
    in_flight: int
    breaker: str = "closed"
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a version comes from: a word about it, who registered it, what is known of the run that trained it (flat),
    and ``content``, which names what lay in its directory then; empty where that is not known."""

    note: str = ""
    created_by: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: str = ""


@dataclass(frozen=True, slots=True)
class Joining:
    """How a worker that people start joins a version: where it dials, with which token, and all of that as a command
    for a shell, on this machine or, if the gateway has a ``join_address``, on any that reaches it. The token is good
    until the version is deleted."""

    address: str
    token: str = field(repr=False)
    command: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A version as the control API shows it. ``progress`` is 0 to 1; ``stage`` a word for what loads; ``created_at``
    seconds since the epoch; ``reason`` says why a version is FAILED, or what it, or one more worker of it, waits for;
    ``info`` is empty until it is READY. ``num_replicas`` are wanted; ``settings`` are what may change of a version:
    ``priority``, ``autoscale``, and what it took when it was loaded (``measured``)."""

    deployment: str
    version: str
    state: VersionState
    progress: float
    stage: str
    reason: str
    weight: float
    replicas: list[ReplicaStatus]
    spec: WorkerSpec
    note: str
    created_at: float
    info: ModelInfo = field(default_factory=ModelInfo)
    created_by: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: str = ""
    num_replicas: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


class RolloutState(str, Enum):
    """What a rollout is doing.

    PROGRESSING  the candidate loads, or takes its share and is compared
    PAUSED       weights stay as they are, nothing is decided; the candidate can still be taken back by hand
    PROMOTED     the candidate has all traffic; the old version drains and stops, and stays registered
    ROLLED_BACK  the weights are those before the rollout; `reason` says why
    """

    PROGRESSING = "PROGRESSING"
    PAUSED = "PAUSED"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"


@dataclass(frozen=True, slots=True)
class Measure:
    """Something a rollout compares: estimates of ``stable`` and of ``candidate`` (for latencies 1, and the ratio).

    ``lower_bound`` of the ratio lies above the true one at any time with a small probability (None: no bound yet);
    ``limit`` is what the candidate may be worse by; ``against`` the share of the evidence that rolls it back, 0 to 1.
    """

    name: str
    stable: float
    candidate: float
    lower_bound: float | None
    limit: float
    against: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Two answers to one greedy request that are not the same text."""

    prompt: str
    stable: str
    candidate: str


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """Copies of stable's requests that the candidate got: ``compared`` greedy ones, of which ``agreed`` had the same
    text; ``dropped`` for want of room; ``failed`` without an answer. ``differences`` are the last few."""

    sent: int
    compared: int
    agreed: int
    dropped: int
    failed: int
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """A rollout as it stands. ``step`` is an index into ``steps`` (-1: the mirror phase), ``weight`` the candidate's in
    percent, ``reason`` the last verdict's; ``requests`` and ``errors`` are the candidate's at this step, ``at_step_s``
    the seconds at it; ``started_at`` and ``ended_at`` (None until it is over) seconds since the epoch."""

    deployment: str
    stable: str
    candidate: str
    state: RolloutState
    reason: str
    step: int
    steps: list[float]
    weight: float
    at_step_s: float
    requests: int
    errors: int
    started_at: float
    measures: list[Measure] = field(default_factory=list)
    mirror: MirrorStatus | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment with its route: ``weights`` in percent by version. ``activating`` names the version an activation
    waits for, or is empty. ``rollout`` is the one that runs, or the last one."""

    name: str
    weights: Mapping[str, float]
    revision: int
    activating: str
    versions: list[VersionStatus]
    rollout: RolloutStatus | None = None


@dataclass(frozen=True, slots=True)
class HeldMemory:
    """What a replica holds of a device. ``expected_bytes`` was computed before it was loaded, ``taken_bytes`` is what
    its processes have now; ``bytes`` is what nobody else gets: before it is READY what was expected, then what it took,
    with the KV cache it may still fill. ``note`` says where the expectation comes from."""

    owner: str
    replica: str
    bytes: int
    expected_bytes: int
    taken_bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class OtherMemory:
    """What a process that is none of our workers holds of a device. ``owner`` says what it is."""

    owner: str
    pid: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device in the ledger: ``cpu`` (RAM) or ``cuda:N``. ``capacity_bytes`` is the most that we hold of its
    ``device_bytes``; ``free_bytes`` of it can be had now, which is less than what we do not hold where other processes
    have taken it."""

    id: str
    capacity_bytes: int
    free_bytes: int
    held: list[HeldMemory]
    device_bytes: int
    others: list[OtherMemory]


@dataclass(frozen=True, slots=True)
class WaitingLoad:
    """A replica that waits for memory, the next first. ``since`` is seconds since the epoch; ``bytes`` the least it
    takes."""

    owner: str
    replica: str
    priority: str
    bytes: int
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """Who holds the memory of every device, and who waits for it."""

    devices: list[DeviceMemory]
    waiting: list[WaitingLoad]


class ApplyState(str, Enum):
    """How far a deployments file is.

    IDLE      none was applied since the gateway started
    PLANNED   only the plan was asked for
    APPLYING  its changes are being made
    APPLIED   the fleet is as it says
    FAILED    one change failed and those after it were not made; `reason` says why
    """

    IDLE = "IDLE"
    PLANNED = "PLANNED"
    APPLYING = "APPLYING"
    APPLIED = "APPLIED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a plan. ``kind`` is ``register``, ``load``, ``scale``, ``set``, ``policy``, ``route``, ``unload`` or
    ``delete``; ``weights`` are the route's, in percent."""

    kind: str
    deployment: str
    version: str = ""
    detail: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        thing = f"{self.deployment}@{self.version}" if self.version else self.deployment
        return f"{self.kind} {thing}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class ApplyStatus:
    """A deployments file on its way. The first ``num_done`` of ``changes`` are made. ``left_alone`` is what the fleet
    has and the file does not name."""

    state: ApplyState
    changes: list[Change] = field(default_factory=list)
    num_done: int = 0
    reason: str = ""
    left_alone: list[str] = field(default_factory=list)


Scope = Literal["infer", "metrics", "admin"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key: never the key itself.

    ``scope`` is ``infer`` (it asks models), ``metrics`` (it reads /metrics) or ``admin`` (it may do everything);
    ``deployments`` those it may ask, None all of them. 0 sets no limit: ``rate`` calls a second and ``burst`` of them
    at once (0: as many as in a second), ``tokens_per_min`` of prompts and answers together, ``concurrency`` calls that
    run. Its requests never go before ``priority`` (lower goes first). A deployment's rules can send what bears its
    ``label`` to a version. ``created_at`` and ``expires_at`` (None: never) are seconds since the epoch.
    """

    id: str
    name: str
    scope: str = "infer"
    deployments: tuple[str, ...] | None = None
    rate: float = 0.0
    burst: int = 0
    tokens_per_min: int = 0
    concurrency: int = 0
    priority: int = 0
    label: str = ""
    created_at: float = 0.0
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key as it is told once. ``key`` is not shown: a notebook keeps what it shows."""

    record: ApiKey
    key: str = field(repr=False)


class GatewayState(str, Enum):
    """What the gateway of a Jupyter server is doing.

    OFF       it was not needed yet, or was stopped; the first use starts it
    STARTING  a process runs and does not answer yet; uses wait
    RUNNING   it answers
    FAILED    it could not be started, or crashed too often; `reason` says why, the next use tries again
    """

    OFF = "OFF"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """The gateway as a Jupyter server sees it. ``is_attached``: another server of the same user runs it. ``grpc`` is
    where gRPC answers, ``host:port``; empty: nowhere."""

    state: GatewayState
    url: str = ""
    pid: int = 0
    is_attached: bool = False
    reason: str = ""
    grpc: str = ""


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a gateway answers and the key that opens it, which is not shown: a notebook keeps what it shows."""

    url: str
    key: str = field(repr=False)
