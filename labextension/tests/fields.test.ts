import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  balanced,
  IField,
  KEY_FIELDS,
  keyBody,
  loadBody,
  loadFields,
  ROLLOUT_FIELDS,
  rolloutBody,
  sharesOf,
  Values,
  versionFor
} from '../src/fields';
import { Series } from '../src/series';
import { IDeploymentView, view } from '../src/view';

import { deployment, gateway, version } from './support';

function seen(...versions: ReturnType<typeof version>[]): IDeploymentView {
  const status = { deployments: [deployment(versions)] };
  return view(gateway(), status, new Series()).deployments[0];
}

/** What a form of `fields` gives when a person changed `changes`. */
function filled(fields: readonly IField[], changes: Values = {}): Values {
  const given = Object.fromEntries(fields.map(({ name, value }) => [name, value]));
  return { ...given, ...changes };
}

test('a load leaves out what is the default, and names the next version', () => {
  const { versions } = seen(version('v1'), version('v3'), version('best'));
  const given = { model: ' org/name ' };
  assert.deepEqual(loadBody(filled(loadFields('demo'), given), versions), {
    name: 'demo',
    model: 'org/name',
    version: 'v4'
  });
});

test('a load says what a person chose', () => {
  const given = {
    model: 'toy:',
    version: 'v9',
    dtype: 'bf16',
    priority: 'low',
    note: 'a try'
  };
  assert.deepEqual(loadBody(filled(loadFields('demo'), given), []), {
    name: 'demo',
    ...given
  });
});

test('a model that is there is loaded as the version it is', () => {
  const { versions } = seen(
    version('v1', { spec: { model: 'toy:' } }),
    version('v2', { spec: { model: 'org/name' } })
  );
  assert.equal(versionFor(versions, 'toy:'), 'v1');
  assert.equal(versionFor(versions, 'other'), 'v3');
  assert.equal(versionFor([], 'other'), 'v1');
});

test('a rollout is made of numbers', () => {
  const changes = { steps: ' 5 25,50,  100 ', interval_s: '0.5' };
  assert.deepEqual(rolloutBody('v2', filled(ROLLOUT_FIELDS, changes)), {
    candidate: 'v2',
    steps: [5, 25, 50, 100],
    interval_s: 0.5,
    min_requests: 50
  });
});

test('a key has the limits that were given, and no others', () => {
  assert.deepEqual(keyBody(filled(KEY_FIELDS, { name: 'app' })), { name: 'app' });
  const changes = { name: 'app', deployments: 'demo, other', rate: '5', days: '2' };
  assert.deepEqual(keyBody(filled(KEY_FIELDS, changes)), {
    name: 'app',
    deployments: ['demo', 'other'],
    rate: 5,
    ttl_s: 172_800
  });
});

test('patterns take what the server takes', () => {
  const pattern = (fields: readonly IField[], name: string) =>
    new RegExp(`^(?:${fields.find(each => each.name === name)?.pattern})$`, 'v');
  const names = pattern(loadFields(''), 'name');
  assert.deepEqual(['demo', 'a.b-c_1', '-x', 'a b', ''].map(t => names.test(t)), [true, true, false, false, false]);
  const steps = pattern(ROLLOUT_FIELDS, 'steps');
  assert.deepEqual(['5, 25 50', '100', 'x', '5;6'].map(t => steps.test(t)), [true, true, false, false]);
  const deployments = pattern(KEY_FIELDS, 'deployments');
  assert.deepEqual(['demo', 'demo, other', 'a b', ','].map(t => deployments.test(t)), [true, true, true, false]);
});

test('shares are those of the versions that can take traffic, and sum to 100', () => {
  const found = sharesOf(
    seen(
      version('v1', { weight: 33.3 }),
      version('v2', { weight: 66.7 }),
      version('v3', { state: 'STOPPED' })
    )
  );
  assert.deepEqual([...found], [['v1', 33], ['v2', 67]]);
  const none = sharesOf(seen(version('v1'), version('v2'), version('v3')));
  assert.deepEqual([...none], [['v1', 34], ['v2', 33], ['v3', 33]]);
});

test('the others share what one leaves, as they did before', () => {
  const shares = new Map([['a', 60], ['b', 30], ['c', 10]]);
  assert.deepEqual([...balanced(shares, 'a', 20)], [['a', 20], ['b', 60], ['c', 20]]);
  assert.deepEqual([...balanced(shares, 'c', 100)], [['a', 0], ['b', 0], ['c', 100]]);
  const all = new Map([['a', 100], ['b', 0], ['c', 0]]);
  assert.deepEqual([...balanced(all, 'a', 75)], [['a', 75], ['b', 13], ['c', 12]]);
  assert.deepEqual([...balanced(new Map([['a', 100]]), 'a', 20)], [['a', 100]]);
  for (let value = 0; value <= 100; value++) {
    const sum = [...balanced(shares, 'b', value).values()].reduce((x, y) => x + y, 0);
    assert.equal(sum, 100);
  }
});
