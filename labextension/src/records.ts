/**
 * What the gateway and the Jupyter server answer, as far as it is shown here:
 * jupyter_dsserve/protocol/records.py in TypeScript. A gateway may be older or
 * newer than this page, so what may be absent is optional.
 */

export type VersionState =
  | 'QUEUED'
  | 'LOADING'
  | 'WARMING'
  | 'READY'
  | 'DRAINING'
  | 'STOPPED'
  | 'FAILED';

export type Task = 'generate' | 'embed' | 'classify' | 'tensor';

export interface IReplicaStatus {
  state: VersionState;
  /** Why it takes no requests although it is READY; empty if it does. */
  trouble?: string;
  /** `closed`, `open` or `half-open`. */
  breaker?: string;
}

export interface IVersionStatus {
  deployment: string;
  version: string;
  state: VersionState;
  /** 0 to 1. */
  progress: number;
  /** A word for what loads. */
  stage: string;
  /** Why it is FAILED, or what it waits for while it is QUEUED. */
  reason: string;
  replicas: IReplicaStatus[];
  /** That are wanted. */
  num_replicas?: number;
  /** Its share of the traffic, in percent. */
  weight: number;
  spec: { model: string; task?: Task };
  note: string;
}

/** An automatic gray release. */
export interface IRollout {
  /** PROGRESSING, PAUSED, PROMOTED or ROLLED_BACK. */
  state: string;
  candidate?: string;
  reason?: string;
  /** Seconds since the epoch, by the gateway's clock; null while it runs. */
  ended_at?: number | null;
}

export interface IDeploymentStatus {
  name: string;
  /** Of the route: grows with each change. */
  revision?: number;
  /** The version an activation waits for, or empty. */
  activating: string;
  versions: IVersionStatus[];
  rollout?: IRollout | null;
}

export interface IStatus {
  deployments: IDeploymentStatus[];
}

export type GatewayState = 'OFF' | 'STARTING' | 'RUNNING' | 'FAILED';

export interface IGatewayStatus {
  state: GatewayState;
  url: string;
  /** Why it is FAILED. */
  reason: string;
}

/** A version over the last seconds. */
export interface IVersionStats {
  deployment: string;
  version: string;
  /** Seconds since the epoch, by the gateway's clock. */
  at: number;
  /** Ended since the version was registered. */
  requests: number;
  /** Null while nothing was answered. */
  p95_s: number | null;
}

/** Who holds the memory of every device, and who waits for it. */
export interface ILedger {
  devices: {
    id: string;
    /** The most that may be held; what can be had of it now; all there is. */
    capacity_bytes: number;
    free_bytes: number;
    device_bytes: number;
    held: { owner: string; replica: string; bytes: number }[];
    others: { owner: string; bytes: number }[];
  }[];
  waiting: { replica: string; priority: string; reason: string }[];
}

/** A key that was just made. */
export interface ICreatedKey {
  /** Told this once. */
  key: string;
  record: { id: string; name: string };
}
