import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Api, IDoor } from '../src/api';
import { Model } from '../src/model';

import { gateway } from './support';

/** A gateway that runs and serves nothing; notes what is asked. */
class FakeDoor implements IDoor {
  asked: string[] = [];
  onAsked: (path: string) => void = () => {};

  async send(_method: string, path: string): Promise<unknown> {
    this.asked.push(path);
    this.onAsked(path);
    switch (path) {
      case 'gateway':
        return gateway();
      case 'api/ledger':
        return { devices: [], waiting: [] };
      default:
        return { deployments: [] };
    }
  }

  async *lines(): AsyncIterable<string> {}
}

/** After the model has said that it saw something. */
function changed(model: Model): Promise<void> {
  return new Promise(resolve => {
    const done = (): void => {
      model.changed.disconnect(done);
      resolve();
    };
    model.changed.connect(done);
  });
}

/** The paths of the next look. */
async function looked(model: Model, door: FakeDoor): Promise<string[]> {
  door.asked = [];
  const seen = changed(model);
  model.refresh();
  await seen;
  return door.asked;
}

// A Poll cannot be ended for sure: the tests' process is, with --test-force-exit.

test('it looks as seldom as the settings allow, and at once when told', async () => {
  const door = new FakeDoor();
  const model = new Model(new Api(door));
  model.start(3600);
  assert.deepEqual(await looked(model, door), ['gateway', 'api/status']);
});

test('what is changed while it looks is looked at anew', async () => {
  const door = new FakeDoor();
  const model = new Model(new Api(door));
  model.start(3600);
  let again: Promise<void> | null = null;
  door.onAsked = path => {
    if (path === 'api/status' && !again) {
      model.refresh(); // a person acts
      again = changed(model).then(() => changed(model));
    }
  };
  await looked(model, door);
  await again;
  assert.equal(door.asked.filter(path => path === 'api/status').length, 2);
});

test('the memory is asked for while one of those who watch it still does', async () => {
  const door = new FakeDoor();
  const model = new Model(new Api(door));
  model.start(3600);
  assert.ok(!(await looked(model, door)).includes('api/ledger'));
  const leaveSidebar = model.watchMemory();
  const leaveMain = model.watchMemory();
  assert.ok((await looked(model, door)).includes('api/ledger'));
  leaveMain();
  assert.ok((await looked(model, door)).includes('api/ledger'));
  assert.ok(model.memory);
  leaveSidebar();
  assert.ok(!(await looked(model, door)).includes('api/ledger'));
  assert.equal(model.memory, null);
});
