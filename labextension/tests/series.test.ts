import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Series, sparkPath } from '../src/series';

import { stats } from './support';

function series(...numbers: [at: number, requests: number, p95_s: number | null][]): Series {
  const made = new Series();
  for (const [at, requests, p95_s] of numbers) {
    made.add(stats({ at, requests, p95_s }));
  }
  return made;
}

test('requests per second are those of the last ten seconds', () => {
  const made = series([0, 0, null], [100, 1000, 0.1], [104, 1010, 0.1], [108, 1040, 0.1]);
  assert.equal(made.requestsPerS('demo@v1'), 5);
});

test('one number alone tells no rate', () => {
  assert.equal(series([100, 7, 0.1]).requestsPerS('demo@v1'), null);
  assert.equal(series([10, 7, 0.1], [100, 900, 0.1]).requestsPerS('demo@v1'), null);
  assert.equal(new Series().requestsPerS('demo@v1'), null);
});

test('counts that begin again are of another gateway, and give no rate below zero', () => {
  const made = series([100, 500, 0.1], [102, 3, 0.2], [104, 5, 0.2]);
  assert.equal(made.requestsPerS('demo@v1'), 1);
  assert.equal(made.points('demo@v1').length, 2);
});

test('what is older than two minutes is forgotten', () => {
  const made = series([0, 0, 0.1], [120, 1, 0.1], [125, 2, 0.1]);
  const ago = made.points('demo@v1').map(point => point.agoS);
  assert.deepEqual(ago, [-5, 0]);
});

test('the p95 is the last one, in milliseconds', () => {
  assert.equal(series([1, 0, 0.05], [2, 1, 0.084]).p95Ms('demo@v1'), 84);
  assert.equal(series([1, 0, 0.05], [2, 1, null]).p95Ms('demo@v1'), null);
});

test('versions that are gone are forgotten', () => {
  const made = series([1, 0, 0.05]);
  made.keepOnly(['demo@v2']);
  assert.deepEqual(made.points('demo@v1'), []);
});

test('a path goes from the left edge to the right one, high numbers at the top', () => {
  const path = sparkPath(
    [{ agoS: -120, ms: 0 }, { agoS: -60, ms: 100 }, { agoS: 0, ms: 50 }],
    100,
    22
  );
  assert.equal(path, 'M0.0 21.0L50.0 1.0L100.0 11.0');
});

test('a path has a hole where nothing was answered or nobody looked', () => {
  const path = sparkPath(
    [{ agoS: -120, ms: 9 }, { agoS: -60, ms: null }, { agoS: 0, ms: 9 }],
    100,
    22
  );
  assert.equal(path, 'M0.0 1.0M100.0 1.0');
  assert.deepEqual(
    series([0, 0, 0.1], [60, 1, 0.1]).points('demo@v1').map(point => point.ms),
    [100, null, 100]
  );
});

test('there is no path before the first answer', () => {
  assert.equal(sparkPath([{ agoS: 0, ms: null }], 100, 22), '');
  assert.equal(sparkPath([{ agoS: 0, ms: 0 }], 100, 22), '');
  assert.equal(sparkPath([], 100, 22), '');
});
