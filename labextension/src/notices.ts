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

/** As many of one kind are told one by one; a fleet that loads would cover the page. */
const MAX_ALONE = 2;

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
  const ready: string[] = [];
  const failed: string[] = [];
  const reasons: string[] = [];
  for (const deployment of after.status.deployments) {
    for (const version of deployment.versions) {
      const id = `${deployment.name}@${version.version}`;
      if (states.get(id) === version.state) {
        continue;
      }
      if (version.state === 'READY') {
        ready.push(id);
      } else if (version.state === 'FAILED') {
        failed.push(id);
        reasons.push(version.reason);
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
  if (ready.length > MAX_ALONE) {
    const text = `${ready.length} versions are READY: ${ready.join(', ')}`;
    found.push({ text, isBad: false });
  } else {
    found.push(...ready.map(id => ({ text: `${id} is READY`, isBad: false })));
  }
  if (failed.length > MAX_ALONE) {
    const text = `${failed.length} versions FAILED: ${failed.join(', ')}; the first: ${reasons[0]}`;
    found.push({ text, isBad: true });
  } else {
    const tell = (id: string, i: number) => `${id} FAILED: ${reasons[i]}`;
    found.push(...failed.map((id, i) => ({ text: tell(id, i), isBad: true })));
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
