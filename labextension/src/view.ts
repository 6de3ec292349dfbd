/** Pure functions from what the server says to what is shown. */

import { colourOf } from './colours';
import {
  IDeploymentStatus,
  IGatewayStatus,
  IReplicaStatus,
  IStatus,
  IVersionStatus,
  Task,
  VersionState
} from './records';
import { IPoint, Series } from './series';

export interface IVersionView {
  /** `demo@v1`. */
  id: string;
  deployment: string;
  version: string;
  model: string;
  task: Task;
  note: string;
  state: VersionState;
  /** A shape besides the word, so that nothing is told by colour alone. */
  sign: string;
  /** `READY`, `LOADING weights 40 %`, `FAILED: reason`. */
  stateText: string;
  /** 0 to 1 while it loads, else null. */
  progress: number | null;
  isFailed: boolean;
  /** In percent. */
  weight: number;
  colour: string;
  p95Ms: number | null;
  requestsPerS: number | null;
  points: IPoint[];
  canLoad: boolean;
  canUnload: boolean;
  canActivate: boolean;
  /** A rollout can compare it with the one version that has traffic. */
  canRollOut: boolean;
  /** Workers that are wanted. */
  numReplicas: number;
}

export interface IDeploymentView {
  name: string;
  /** `v1 90 %, v2 10 %`. */
  traffic: string;
  /** Of an activation or a rollout, or empty. */
  change: string;
  isRolledBack: boolean;
  /** It was rolled back within the last `NEWS_S`, and nobody has seen it yet. */
  isNewlyRolledBack: boolean;
  canPause: boolean;
  canResume: boolean;
  canPromote: boolean;
  canRollback: boolean;
  /** Two versions can take traffic, and no rollout moves it. */
  canRoute: boolean;
  revision?: number;
  /** Of the version that has most of the traffic. */
  task: Task;
  versions: IVersionView[];
}

export interface IView {
  gateway: IGatewayStatus;
  /** In the words of a person, when it is not running. */
  gatewayText: string;
  deployments: IDeploymentView[];
}

/** So long after its end the status bar tells of a rollback, unless somebody looks before. */
export const NEWS_S = 600;

/**
 * `status` is null when the gateway does not run. `seenAt`: the rollouts that
 * ended until then, by the gateway's clock in seconds, have been looked at.
 */
export function view(
  gateway: IGatewayStatus,
  status: IStatus | null,
  series: Series,
  seenAt = 0
): IView {
  return {
    gateway,
    gatewayText: gatewayText(gateway),
    deployments: (status?.deployments ?? []).map(d =>
      deploymentView(d, series, seenAt)
    )
  };
}

function gatewayText(gateway: IGatewayStatus): string {
  switch (gateway.state) {
    case 'OFF':
      return 'The gateway is off. It starts when a model is loaded.';
    case 'STARTING':
      return 'The gateway is starting.';
    case 'FAILED':
      return `The gateway failed: ${gateway.reason || 'no reason is known'}`;
    default:
      return '';
  }
}

function deploymentView(
  deployment: IDeploymentStatus,
  series: Series,
  seenAt: number
): IDeploymentView {
  const isRunning = RUNNING.includes(deployment.rollout?.state ?? '');
  const versions = deployment.versions.map(v => ({
    ...versionView(v, series),
    canRollOut: canRollOut(deployment, v)
  }));
  const shares = versions.filter(v => v.weight > 0);
  const byWeight = [...versions].sort((a, b) => b.weight - a.weight);
  const state = deployment.rollout?.state ?? '';
  const isRolledBack = state === 'ROLLED_BACK';
  const endedAt = deployment.rollout?.ended_at ?? 0;
  return {
    name: deployment.name,
    traffic:
      shares.map(v => `${v.version} ${percent(v.weight)}`).join(', ') ||
      'no version has traffic',
    change: changeText(deployment),
    isRolledBack,
    isNewlyRolledBack:
      isRolledBack && endedAt > Math.max(seenAt, series.now - NEWS_S),
    canPause: state === 'PROGRESSING',
    canResume: state === 'PAUSED',
    canPromote: state === 'PROGRESSING' || state === 'PAUSED',
    canRollback: deployment.rollout !== undefined, // else the gateway has no such verb
    canRoute:
      !isRunning && versions.filter(v => v.state === 'READY').length > 1,
    revision: deployment.revision,
    task: byWeight[0]?.task ?? 'generate',
    versions
  };
}

function canRollOut(of: IDeploymentStatus, candidate: IVersionStatus): boolean {
  const stable = of.versions.filter(v => v !== candidate && v.weight > 0);
  return (
    of.rollout !== undefined && // else the gateway has no such verb
    !RUNNING.includes(of.rollout?.state ?? '') &&
    candidate.state !== 'DRAINING' &&
    stable.length === 1
  );
}

function changeText(deployment: IDeploymentStatus): string {
  if (deployment.activating) {
    return `activating ${deployment.activating}`;
  }
  const rollout = deployment.rollout;
  if (!rollout?.state) {
    return '';
  }
  const of = rollout.candidate ? ` of ${rollout.candidate}` : '';
  const why = rollout.reason ? `: ${rollout.reason}` : '';
  return `rollout${of} ${rollout.state}${why}`;
}

const RUNNING = ['PROGRESSING', 'PAUSED'];
const SIGNS: Partial<Record<VersionState, string>> = {
  READY: '●',
  FAILED: '✕',
  STOPPED: '○'
};
const LOADED = ['QUEUED', 'LOADING', 'WARMING', 'READY'];
const COMING = ['LOADING', 'WARMING'];

function versionView(
  status: IVersionStatus,
  series: Series
): Omit<IVersionView, 'canRollOut'> {
  const { deployment, version, state, weight } = status;
  const id = `${deployment}@${version}`;
  const isLoaded = LOADED.includes(state);
  return {
    id,
    deployment,
    version,
    model: status.spec.model,
    task: status.spec.task ?? 'generate',
    note: status.note,
    state,
    sign: SIGNS[state] ?? '◐',
    stateText: stateText(status),
    progress: COMING.includes(state) ? status.progress : null,
    isFailed: state === 'FAILED',
    weight,
    colour: colourOf(version),
    p95Ms: series.p95Ms(id),
    requestsPerS: series.requestsPerS(id),
    points: series.points(id),
    canLoad: state === 'STOPPED' || state === 'FAILED',
    canUnload: isLoaded || state === 'FAILED',
    canActivate: state !== 'DRAINING' && !(state === 'READY' && weight === 100),
    numReplicas: status.num_replicas ?? 1
  };
}

/** As `state_text` in jupyter_dsserve/notebook/views.py. */
function stateText(status: IVersionStatus): string {
  if (status.reason) {
    return `${status.state}: ${status.reason}`;
  }
  if (COMING.includes(status.state)) {
    const isNews = status.stage.toUpperCase() !== status.state;
    const stage = status.stage && isNews ? ` ${status.stage}` : '';
    return `${status.state}${stage} ${Math.round(100 * status.progress)} %`;
  }
  const ready = status.replicas.filter(each => each.state === 'READY');
  const shut = ready.map(troubleOf).filter(Boolean);
  const few = `${shut.length} of ${counted(ready.length, 'worker')} shut: `;
  return shut.length ? `${status.state}, ${few}${shut[0]}` : status.state;
}

function troubleOf(replica: IReplicaStatus): string {
  const breaker = replica.breaker ?? 'closed';
  return replica.trouble || (breaker === 'closed' ? '' : `breaker ${breaker}`);
}

export interface IStatusLine {
  text: string;
  isBad: boolean;
  /** For a tooltip and a screen reader. */
  title: string;
}

/** The status bar's line; null while there is nothing to say. */
export function statusLine(view: IView): IStatusLine | null {
  if (view.gateway.state === 'FAILED') {
    return { text: '✕ gateway failed', isBad: true, title: view.gatewayText };
  }
  const { deployments } = view;
  if (view.gateway.state !== 'RUNNING' || !deployments.length) {
    return null;
  }
  const versions = deployments.flatMap(d => d.versions);
  const failed = versions.filter(v => v.isFailed).map(v => v.id);
  const back = deployments.filter(d => d.isNewlyRolledBack).map(d => d.name);
  const slowest = versions.reduce(
    (max, v) => Math.max(max, v.p95Ms ?? 0),
    0
  );
  const rates = versions.map(v => v.requestsPerS).filter(r => r !== null);
  const parts = [
    counted(deployments.length, 'deployment'),
    ...(rates.length
      ? [rate((rates as number[]).reduce((sum, r) => sum + r, 0))]
      : []),
    ...(slowest ? [`p95 ${milliseconds(slowest)}`] : []),
    ...(failed.length ? [`✕ ${failed.length} failed`] : []),
    ...(back.length ? [`✕ ${back.length} rolled back`] : [])
  ];
  const text = parts.join(' · ');
  const title = [
    `Model serving: ${text}`,
    ...failed.map(id => `${id} FAILED`),
    ...back.map(name => `the rollout of ${name} was rolled back`)
  ].join('; ');
  return { text, isBad: failed.length + back.length > 0, title };
}

export function percent(weight: number): string {
  return `${Number(weight.toFixed(1))} %`;
}

export function milliseconds(ms: number): string {
  return ms < 10
    ? `${ms.toFixed(1)} ms`
    : ms < 1000
      ? `${Math.round(ms)} ms`
      : `${(ms / 1000).toFixed(1)} s`;
}

export function rate(perS: number): string {
  return `${perS < 10 ? Number(perS.toFixed(1)) : Math.round(perS)} req/s`;
}

function counted(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
