import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Api, IDoor } from '../src/api';

/** Notes what is asked; the event stream goes on for ever. */
class FakeDoor implements IDoor {
  readonly asked: string[] = [];
  readonly bodies: unknown[] = [];
  readonly patience: (number | undefined)[] = [];
  hasLeft = false;

  constructor(
    private readonly _lines: string[] = [],
    private readonly _isCut = false
  ) {}

  async send(
    method: string,
    path: string,
    body?: object,
    patienceMs?: number
  ): Promise<unknown> {
    this.patience.push(patienceMs);
    this.asked.push(`${method} /${path.replace(/\?.*/, '')}`);
    this.bodies.push(body);
    return {};
  }

  async *lines(path: string, signal: AbortSignal): AsyncIterable<string> {
    this.asked.push(`GET /${path}`);
    yield* this._lines;
    if (!this._isCut) {
      await new Promise((_, reject) =>
        signal.addEventListener('abort', () => {
          this.hasLeft = true;
          reject(new Error('aborted'));
        })
      );
    }
  }
}

/** Verb and route of the table in docs/architecture.md. */
function table(): Map<string, string> {
  const page = readFileSync('../docs/architecture.md', 'utf8');
  const rows = page.split('## Verbs')[1].split('\n## ')[0].split('\n');
  return new Map(
    rows
      .filter(row => /^\| \w/.test(row))
      .slice(1)
      .map(row => row.split('|').map(cell => cell.replaceAll('`', '').trim()))
      .map(cells => [cells[1], cells[3]])
  );
}

/** Not verbs: how the Jupyter server's gateway is, and its start. */
const OF_THE_JUPYTER_SERVER = ['constructor', '_look', 'gateway', 'start'];

const METHODS = Object.getOwnPropertyNames(Api.prototype).filter(
  name => !OF_THE_JUPYTER_SERVER.includes(name)
) as (keyof Api)[];

for (const verb of METHODS) {
  test(`${verb} is a verb of the table, with its route`, async () => {
    const route = table().get(verb);
    assert.ok(route, `docs/architecture.md has no verb ${verb}`);
    const door = new FakeDoor();
    const api = new Api(door);
    if (verb === 'events') {
      await api.events([]);
    } else if (verb === 'route') {
      await api.route('NAME', new Map([['VERSION', 100]]));
    } else {
      const call = api[verb] as (name: string, v: string) => Promise<unknown>;
      await call.call(api, 'NAME', 'VERSION');
    }
    const wanted = route
      .replace(/\{(name|model)\}/, 'NAME')
      .replace('{v}', 'VERSION');
    assert.deepEqual(door.asked, [wanted]);
  });
}

test('every verb that the notebook panel has a button for is here', () => {
  for (const verb of ['load', 'unload', 'activate']) {
    assert.ok(METHODS.includes(verb as keyof Api));
  }
});

test('names are escaped in paths', async () => {
  const door = new FakeDoor();
  await new Api(door).load('a/b', 'v?1');
  assert.deepEqual(door.asked, ['POST /api/deployments/a%2Fb/versions/v%3F1/load']);
});

test('a deployment is deleted with all that it has', async () => {
  const door = new FakeDoor();
  await new Api(door).delete('demo', '');
  assert.deepEqual(door.asked, ['DELETE /api/deployments/demo']);
});

test('a new version is loaded with what was said of it', async () => {
  const door = new FakeDoor();
  const body = { name: 'demo', version: 'v2', model: 'toy:' };
  await new Api(door).load('demo', 'v2', body);
  assert.deepEqual(door.asked, ['POST /api/deployments']);
  assert.deepEqual(door.bodies, [body]);
});

test('route sends the shares, and which route they are meant for', async () => {
  const door = new FakeDoor();
  await new Api(door).route('demo', new Map([['v1', 90], ['v2', 10]]), 3);
  assert.deepEqual(door.bodies, [{ weights: { v1: 90, v2: 10 }, revision: 3 }]);
});

test('activate says which version', async () => {
  const door = new FakeDoor();
  await new Api(door).activate('demo', 'v2');
  assert.deepEqual(door.bodies, [{ version: 'v2' }]);
});

function framed(version: string): string[] {
  const stats = { deployment: 'demo', version, at: 1, requests: 0, p95_s: null };
  return ['event: stats', `data: ${JSON.stringify(stats)}`, ''];
}

const EVENT = ['event: event', 'id: 7', 'data: {"kind": "route"}', ''];

test('events are the next numbers of all versions, and the stream is left', async () => {
  const door = new FakeDoor([
    ': still here',
    ...framed('v1'),
    ...EVENT,
    ...framed('v2'),
    ...framed('v3')
  ]);
  const found = await new Api(door).events(['demo@v1', 'demo@v2']);
  assert.deepEqual(found.map(s => s.version), ['v1', 'v2']);
});

test('events of a version that does not come are not waited for long', async () => {
  const door = new FakeDoor(framed('v1'));
  const began = Date.now();
  const found = await new Api(door).events(['demo@v1', 'demo@gone']);
  assert.deepEqual(found.map(s => s.version), ['v1']);
  assert.ok(Date.now() - began < 3000);
  assert.ok(door.hasLeft);
});

test('events of a stream that ends are what came', async () => {
  const door = new FakeDoor(framed('v1'), true);
  const found = await new Api(door).events(['demo@v1', 'demo@v2']);
  assert.equal(found.length, 1);
});

test('a look that hangs is given up, a change is waited for', async () => {
  const door = new FakeDoor();
  const api = new Api(door);
  await api.status();
  await api.ledger();
  await api.logs('demo', 'v1');
  await api.load('demo', 'v1');
  assert.deepEqual(door.patience, [5000, 5000, 5000, undefined]);
});
