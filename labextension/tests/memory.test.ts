import assert from 'node:assert/strict';
import { test } from 'node:test';

import { colourOf } from '../src/colours';
import { bytes, memoryView } from '../src/memory';

const GIB = 2 ** 30;

test('a device shows who holds what, in shares of all of it', () => {
  const { devices, waits } = memoryView({
    devices: [
      {
        id: 'cpu',
        capacity_bytes: 6 * GIB,
        free_bytes: 2 * GIB,
        device_bytes: 8 * GIB,
        held: [{ owner: 'demo@v2', replica: 'demo@v2#0', bytes: 4 * GIB }],
        others: [{ owner: 'kernel of train.ipynb', bytes: GIB }]
      }
    ],
    waiting: [{ replica: 'demo@v3#0', priority: 'low', reason: 'waits for 3.0 GiB on cpu' }]
  });
  assert.equal(devices[0].text, '2.0 GiB free of the 6.0 GiB that may be held');
  assert.deepEqual(devices[0].pieces, [
    { text: 'demo@v2#0 4.0 GiB', share: 50, colour: colourOf('v2') },
    { text: 'kernel of train.ipynb 1.0 GiB', share: 12.5, colour: '' }
  ]);
  assert.deepEqual(waits, ['demo@v3#0 (low) waits for 3.0 GiB on cpu']);
});

test('of many other processes the largest are named', () => {
  const others = [1, 5, 2, 3, 4].map(n => ({ owner: `p${n}`, bytes: n * 1024 }));
  const device = { id: 'cpu', capacity_bytes: 1, free_bytes: 0, device_bytes: 15 * 1024, held: [], others };
  const { pieces } = memoryView({ devices: [device], waiting: [] }).devices[0];
  assert.deepEqual(
    pieces.map(each => each.text),
    ['p5 5.0 KiB', 'p4 4.0 KiB', 'p3 3.0 KiB', '2 other processes 3.0 KiB']
  );
  assert.equal(Math.round(pieces.reduce((sum, each) => sum + each.share, 0)), 100);
});

test('amounts are written as the gateway writes them', () => {
  const shown = [0, 900, 2048, 3.5 * 2 ** 20, 120.4 * 2 ** 20, 11.2 * GIB].map(bytes);
  assert.deepEqual(shown, ['0 B', '900 B', '2.0 KiB', '3.5 MiB', '120 MiB', '11.2 GiB']);
});
