/** What happened between two looks. */

import { IGatewayStatus, IStatus } from './records';

export interface ISeen {
  gateway: IGatewayStatus;
  /** Null when the gateway does not run. */
  status: IStatus | null;
}

export interface INotice {
  text: string;
  isBad: boolean;
}

/** Loads that ended, rollouts that ended, and a gateway that failed. */
export function notices(before: ISeen, after: ISeen): INotice[] {
  const found: INotice[] = [];
  if (
    after.gateway.state === 'FAILED' &&
    before.gateway.state !== after.gateway.state
  ) {
    const text = `The gateway failed: ${after.gateway.reason}`;
    found.push({ text, isBad: true });
  }
  if (!before.status || !after.status) {
    return found; // a gateway that came or went: nothing is news
  }
  const states = statesOf(before.status);
  for (const deployment of after.status.deployments) {
    for (const version of deployment.versions) {
      const id = `${deployment.name}@${version.version}`;
      if (states.get(id) === version.state) {
        continue;
      }
      if (version.state === 'READY') {
        found.push({ text: `${id} is READY`, isBad: false });
      } else if (version.state === 'FAILED') {
        found.push({ text: `${id} FAILED: ${version.reason}`, isBad: true });
      }
    }
    const rollout = deployment.rollout;
    if (rollout && states.get(deployment.name) !== rollout.state) {
      const isBad = rollout.state === 'ROLLED_BACK';
      if (isBad || rollout.state === 'PROMOTED') {
        const why = rollout.reason ? `: ${rollout.reason}` : '';
        const text = `The rollout of ${deployment.name} is ${rollout.state}${why}`;
        found.push({ text, isBad });
      }
    }
  }
  return found;
}

/** Of versions by `demo@v1`, of rollouts by `demo`. */
function statesOf(status: IStatus): Map<string, string> {
  const states = new Map<string, string>();
  for (const { name, versions, rollout } of status.deployments) {
    states.set(name, rollout?.state ?? '');
    for (const version of versions) {
      states.set(`${name}@${version.version}`, version.state);
    }
  }
  return states;
}
