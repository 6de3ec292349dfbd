import assert from 'node:assert/strict';
import { test } from 'node:test';

import { IDeploymentStatus } from '../src/records';
import { Series } from '../src/series';
import { IVersionView, milliseconds, rate, statusLine, view } from '../src/view';

import { deployment, gateway, stats, version } from './support';

function seen(...deployments: IDeploymentStatus[]) {
  return view(gateway(), { deployments }, new Series());
}

function only(fields: Parameters<typeof version>[1]): IVersionView {
  return seen(deployment([version('v1', fields)])).deployments[0].versions[0];
}

test('a version that loads shows how far it is', () => {
  const v = only({ state: 'LOADING', stage: 'weights', progress: 0.4 });
  assert.equal(v.stateText, 'LOADING weights 40 %');
  assert.equal(v.progress, 0.4);
  assert.equal(only({ state: 'WARMING', stage: 'warming', progress: 0.9 }).stateText, 'WARMING 90 %');
});

test('a version that failed says why', () => {
  const v = only({ state: 'FAILED', reason: 'out of memory', progress: 0.4 });
  assert.equal(v.stateText, 'FAILED: out of memory');
  assert.equal(v.sign, '✕');
  assert.equal(v.progress, null);
});

test('a READY version says which of its workers take no requests', () => {
  const shut = (...replicas: object[]) =>
    only({ replicas: replicas.map(each => ({ state: 'READY', ...each })) }).stateText;
  assert.equal(shut({}, { breaker: 'closed', trouble: '' }), 'READY');
  assert.equal(shut({}, { breaker: 'open' }), 'READY, 1 of 2 workers shut: breaker open');
  assert.equal(
    shut({ breaker: 'closed', trouble: 'its steps stand still' }),
    'READY, 1 of 1 worker shut: its steps stand still'
  );
});

test('a READY version has a sign of its own, besides its colour', () => {
  const signs = (['READY', 'STOPPED', 'FAILED', 'LOADING'] as const).map(
    state => only({ state }).sign
  );
  assert.equal(new Set(signs).size, 4);
});

test('what can be done depends on the state', () => {
  const can = (fields: Parameters<typeof version>[1]) => {
    const v = only(fields);
    return [v.canLoad, v.canUnload, v.canActivate];
  };
  assert.deepEqual(can({ state: 'READY', weight: 100 }), [false, true, false]);
  assert.deepEqual(can({ state: 'READY', weight: 90 }), [false, true, true]);
  assert.deepEqual(can({ state: 'LOADING' }), [false, true, true]);
  assert.deepEqual(can({ state: 'STOPPED' }), [true, false, true]);
  assert.deepEqual(can({ state: 'FAILED' }), [true, true, true]);
  assert.deepEqual(can({ state: 'DRAINING' }), [false, false, false]);
});

test('the traffic is told in words', () => {
  const { deployments } = seen(
    deployment([
      version('v1', { weight: 90 }),
      version('v2', { weight: 10 }),
      version('v3')
    ]),
    deployment([version('v1', { state: 'STOPPED' })], { name: 'idle' })
  );
  assert.equal(deployments[0].traffic, 'v1 90 %, v2 10 %');
  assert.equal(deployments[1].traffic, 'no version has traffic');
});

test('an activation that waits is shown', () => {
  const [demo] = seen(deployment([version('v1')], { activating: 'v2' })).deployments;
  assert.equal(demo.change, 'activating v2');
});

test('a rollout shows its state and its reason, whatever else it brings', () => {
  const rollout = {
    state: 'ROLLED_BACK',
    candidate: 'v2',
    reason: 'p95 1.31 times that of v1',
    step: 2
  };
  const [demo] = seen(deployment([version('v1')], { rollout })).deployments;
  assert.equal(demo.change, 'rollout of v2 ROLLED_BACK: p95 1.31 times that of v1');
  assert.ok(demo.isRolledBack);
});

test('a deployment can be rolled back where the gateway knows of rollouts', () => {
  const can = (fields: Partial<IDeploymentStatus>) => {
    const [d] = seen(deployment([version('v1')], fields)).deployments;
    return [d.canPause, d.canResume, d.canPromote, d.canRollback];
  };
  assert.deepEqual(can({}), [false, false, false, false]);
  assert.deepEqual(can({ rollout: null }), [false, false, false, true]);
  assert.deepEqual(can({ rollout: { state: 'PROGRESSING' } }), [true, false, true, true]);
  assert.deepEqual(can({ rollout: { state: 'PAUSED' } }), [false, true, true, true]);
  assert.deepEqual(can({ rollout: { state: 'PROMOTED' } }), [false, false, false, true]);
});

test('a version can be rolled out beside the one that has the traffic', () => {
  const can = (fields: Partial<IDeploymentStatus>, ...weights: number[]) =>
    seen(
      deployment(weights.map((weight, i) => version(`v${i + 1}`, { weight })), fields)
    ).deployments[0].versions.map(v => v.canRollOut);
  assert.deepEqual(can({ rollout: null }, 100, 0), [false, true]);
  assert.deepEqual(can({ rollout: null }, 90, 10), [true, true]);
  assert.deepEqual(can({ rollout: null }, 50, 50, 0), [true, true, false], 'beside which?');
  assert.deepEqual(can({ rollout: { state: 'PAUSED' } }, 90, 10), [false, false]);
  assert.deepEqual(can({ rollout: { state: 'PROMOTED' } }, 0, 100), [true, false]);
  assert.deepEqual(can({}, 100, 0), [false, false], 'a gateway without rollouts');
});

test('traffic can be set where two can take it and no rollout moves it', () => {
  const can = (second: Parameters<typeof version>[1], rollout: object | null = null) =>
    seen(deployment([version('v1'), version('v2', second)], { rollout } as never))
      .deployments[0].canRoute;
  assert.ok(can({}));
  assert.ok(!can({ state: 'STOPPED' }));
  assert.ok(!can({}, { state: 'PROGRESSING' }));
  assert.ok(can({}, { state: 'ROLLED_BACK' }));
});

test('a gateway that does not run is explained', () => {
  assert.match(view(gateway('OFF'), null, new Series()).gatewayText, /starts when/);
  const failed = view(gateway('FAILED', 'port taken'), null, new Series());
  assert.match(failed.gatewayText, /port taken/);
  assert.deepEqual(failed.deployments, []);
});

test('the status line counts, and has the slowest p95 and all requests', () => {
  const series = new Series();
  for (const [name, p95_s] of [['v1', 0.084], ['v2', 0.05]] as const) {
    series.add(stats({ version: name, at: 10, requests: 0, p95_s }));
    series.add(stats({ version: name, at: 12, requests: 12, p95_s }));
  }
  const both = [version('v1', { weight: 90 }), version('v2', { weight: 10 })];
  const deployments = [deployment(both), deployment([], { name: 'other' })];
  const line = statusLine(view(gateway(), { deployments }, series));
  assert.deepEqual(line, {
    text: '2 deployments · 12 req/s · p95 84 ms',
    isBad: false,
    title: 'Model serving: 2 deployments · 12 req/s · p95 84 ms'
  });
});

/** What is seen `at` seconds after a rollout of `b` began that ended, by a rollback, after 100. */
function seenAfterRollback(at: number, seenAt = 0) {
  const series = new Series();
  series.add(stats({ at }));
  const rollout = { state: 'ROLLED_BACK', ended_at: 100 };
  const deployments = [
    deployment([version('v1', { state: 'FAILED', reason: 'no memory' })]),
    deployment([version('v1')], { name: 'b', rollout })
  ];
  return view(gateway(), { deployments }, series, seenAt);
}

test('a rollback is in the status line for ten minutes, or until somebody looked', () => {
  const isTold = (at: number, seenAt = 0) =>
    /rolled back/.test(statusLine(seenAfterRollback(at, seenAt))?.text ?? '');
  assert.deepEqual([101, 699, 701].map(at => isTold(at)), [true, true, false]);
  assert.equal(isTold(101, 99), true, 'what was looked at is an earlier one');
  assert.equal(isTold(101, 100), false);
  assert.ok(seenAfterRollback(9999).deployments[1].isRolledBack, 'the sidebar goes on');
});

test('before the first number nobody knows how long ago a rollback was', () => {
  const rollout = { state: 'ROLLED_BACK', ended_at: 100 };
  const found = seen(deployment([version('v1')], { rollout }));
  assert.equal(statusLine(found)?.isBad, false);
});

test('the status line is bad, in words too, when a version failed or a rollout was rolled back', () => {
  const line = statusLine(seenAfterRollback(101));
  assert.equal(line?.text, '2 deployments · ✕ 1 failed · ✕ 1 rolled back');
  assert.ok(line?.isBad);
  assert.match(line?.title ?? '', /demo@v1 FAILED; the rollout of b was rolled back/);
});

test('the status line is quiet while nothing is served', () => {
  assert.equal(statusLine(view(gateway('OFF'), null, new Series())), null);
  assert.equal(statusLine(view(gateway('STARTING'), null, new Series())), null);
  assert.equal(statusLine(seen()), null);
  assert.ok(statusLine(view(gateway('FAILED', 'x'), null, new Series()))?.isBad);
});

test('numbers are short', () => {
  assert.deepEqual([1.234, 84.4, 1234].map(milliseconds), ['1.2 ms', '84 ms', '1.2 s']);
  assert.deepEqual([0, 0.25, 12.4].map(rate), ['0 req/s', '0.3 req/s', '12 req/s']);
});
