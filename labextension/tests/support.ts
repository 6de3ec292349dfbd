/** A server's answers, with what a test says about them. */

import {
  IDeploymentStatus,
  IGatewayStatus,
  IVersionStats,
  IVersionStatus
} from '../src/records';

export function version(
  name: string,
  fields: Partial<IVersionStatus> = {}
): IVersionStatus {
  return {
    deployment: 'demo',
    version: name,
    state: 'READY',
    progress: 1,
    stage: '',
    reason: '',
    replicas: [{ state: 'READY' }],
    weight: 0,
    spec: { model: 'toy:', task: 'generate' },
    note: '',
    ...fields
  };
}

export function deployment(
  versions: IVersionStatus[],
  fields: Partial<IDeploymentStatus> = {}
): IDeploymentStatus {
  return { name: 'demo', activating: '', versions, ...fields };
}

export function gateway(
  state: IGatewayStatus['state'] = 'RUNNING',
  reason = ''
): IGatewayStatus {
  return { state, url: 'http://127.0.0.1:8001', reason };
}

export function stats(fields: Partial<IVersionStats> = {}): IVersionStats {
  return {
    deployment: 'demo',
    version: 'v1',
    at: 0,
    requests: 0,
    p95_s: null,
    ...fields
  };
}
