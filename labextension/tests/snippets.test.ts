import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  addressOf,
  askCells,
  curlSnippet,
  pythonSnippet,
  servingNotebook
} from '../src/snippets';

const HERE = addressOf('http://localhost:8888/', 'http://127.0.0.1:8001');
const THERE = addressOf('https://hub.example.org/user/me/', 'http://127.0.0.1:8001');

test('on the machine itself callers go straight to the gateway', () => {
  assert.equal(HERE.url, 'http://127.0.0.1:8001');
});

test("from elsewhere they go through the Jupyter server's address", () => {
  assert.equal(THERE.url, 'https://hub.example.org/user/me/dsserve');
  assert.match(curlSnippet(THERE, 'demo', 'generate'), /^KEY=\.\.\. {2}# an API key/);
});

test('a curl line asks the model, and holds no key', () => {
  const lines = curlSnippet(HERE, 'demo@v1', 'generate');
  assert.match(lines, /^KEY=\$\(python -c .*\)\ncurl -s http:\/\/127.0.0.1:8001\/v1\/completions /);
  assert.match(lines, /Bearer \$KEY/);
  assert.match(lines, /"model":"demo@v1"/);
});

test('each task is asked on its own route', () => {
  const paths = (['embed', 'classify', 'tensor'] as const).map(
    task => /8001(\S+)/.exec(curlSnippet(HERE, 'm', task))![1]
  );
  assert.deepEqual(paths, ['/v1/embeddings', '/v1/classify', '/v2/models/m']);
  assert.match(pythonSnippet('m', 'generate'), /client\.completions\.create\(model="m"/);
  assert.match(pythonSnippet('m', 'embed'), /client\.embeddings\.create\(model="m"/);
  assert.match(pythonSnippet('m', 'classify'), /Client\(\)\.classify\("m"/);
  assert.match(pythonSnippet('m', 'tensor'), /Client\(\)\.infer\("m"/);
});

test('cells that ask load the extension once', () => {
  const [load, ask] = askCells(['import os'], 'demo', 'generate');
  assert.equal(load, '%load_ext jupyter_dsserve');
  assert.match(ask, /^%%dsserve demo /);
  assert.deepEqual(askCells(['x = 1\n%load_ext jupyter_dsserve'], 'demo', 'generate'), [ask]);
});

test('a model that does not write is asked in Python', () => {
  assert.deepEqual(askCells([], 'e', 'embed'), [pythonSnippet('e', 'embed').trimEnd()]);
});

test('a serving notebook loads, asks and watches', () => {
  const { cells } = servingNotebook('python3') as { cells: { source: string; id: string }[] };
  const text = cells.map(cell => cell.source).join('\n');
  for (const line of ['%load_ext jupyter_dsserve', '%dsserve load ', '%%dsserve ', '%dsserve panel']) {
    assert.ok(text.includes(line), line);
  }
  assert.equal(new Set(cells.map(cell => cell.id)).size, cells.length);
});
