import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ISeen, notices } from '../src/notices';
import { IDeploymentStatus, IVersionStatus } from '../src/records';

import { deployment, gateway, version } from './support';

function seen(...deployments: IDeploymentStatus[]): ISeen {
  return { gateway: gateway(), status: { deployments } };
}

function of(state: IVersionStatus['state'], reason = ''): ISeen {
  return seen(deployment([version('v1', { state, reason })]));
}

test('a load that ended is told once', () => {
  assert.deepEqual(notices(of('WARMING'), of('READY')), [
    { text: 'demo@v1 is READY', isBad: false }
  ]);
  assert.deepEqual(notices(of('READY'), of('READY')), []);
});

test('a version that was not there before and is READY is told too', () => {
  assert.equal(notices(seen(), of('READY')).length, 1);
});

test('what happens to many at once is told in one notice', () => {
  const names = ['v1', 'v2', 'v3', 'v4', 'v5', 'v6'];
  const isBad = (name: string) => name < 'v4';
  const before = seen(deployment(names.map(name => version(name, { state: 'LOADING' }))));
  const after = seen(
    deployment(
      names.map(name =>
        isBad(name) ? version(name, { state: 'FAILED', reason: `why ${name}` }) : version(name)
      )
    )
  );
  assert.deepEqual(notices(before, after), [
    { text: '3 versions are READY: demo@v4, demo@v5, demo@v6', isBad: false },
    {
      text: '3 versions FAILED: demo@v1, demo@v2, demo@v3; the first: why v1',
      isBad: true
    }
  ]);
  const two = seen(deployment([version('v1'), version('v2')]));
  assert.equal(notices(seen(), two).length, 2);
});

test('a failure is told with its reason', () => {
  assert.deepEqual(notices(of('LOADING'), of('FAILED', 'no memory')), [
    { text: 'demo@v1 FAILED: no memory', isBad: true }
  ]);
});

test('what a person did is not told to them', () => {
  assert.deepEqual(notices(of('READY'), of('DRAINING')), []);
  assert.deepEqual(notices(of('DRAINING'), of('STOPPED')), []);
  assert.deepEqual(notices(of('STOPPED'), of('QUEUED')), []);
});

test('how a rollout ends is told, with its reason', () => {
  const at = (state: string, reason = '') =>
    seen(deployment([version('v1')], { rollout: { state, reason } }));
  assert.deepEqual(notices(at('PROGRESSING'), at('ROLLED_BACK', 'slower')), [
    { text: 'The rollout of demo is ROLLED_BACK: slower', isBad: true }
  ]);
  assert.deepEqual(notices(at('PROGRESSING'), at('PROMOTED')), [
    { text: 'The rollout of demo is PROMOTED', isBad: false }
  ]);
  assert.deepEqual(notices(at('PROGRESSING'), at('PAUSED')), []);
});

test('a gateway that comes or goes makes no news of its versions', () => {
  const off: ISeen = { gateway: gateway('OFF'), status: null };
  assert.deepEqual(notices(off, of('READY')), []);
  assert.deepEqual(notices(of('READY'), off), []);
});

test('a gateway that fails is told', () => {
  const failed: ISeen = { gateway: gateway('FAILED', 'port taken'), status: null };
  assert.deepEqual(notices(of('READY'), failed), [
    { text: 'The gateway failed: port taken', isBad: true }
  ]);
  assert.deepEqual(notices(failed, failed), []);
});
