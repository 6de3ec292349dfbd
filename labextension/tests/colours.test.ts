import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { COLOURS, colourOf } from '../src/colours';

test("the colours are the notebook panel's", () => {
  const python = readFileSync('../jupyter_dsserve/notebook/views.py', 'utf8');
  const line = /^COLOURS = \((.*)\)$/m.exec(python)![1];
  assert.deepEqual(
    line.split(', ').map(each => each.replaceAll('"', '')),
    [...COLOURS]
  );
});

// What `colour_of` of views.py says.
const PYTHON: [string, string][] = [
  ['v1', '#0072B2'],
  ['v2', '#D55E00'],
  ['v7', '#0072B2'],
  ['v0', '#E69F00'],
  ['2024-11-24', '#E69F00'],
  ['main', '#009E73'],
  ['red', '#CC79A7'],
  ['größe', '#E69F00'],
  ['v1234567', '#009E73']
];

for (const [version, colour] of PYTHON) {
  test(`${version} has the colour it has in Python`, () => {
    assert.equal(colourOf(version), colour);
  });
}
