/** What is copied, and what is put into notebooks. */

import { Task } from './records';

/** Where callers reach the server, and a shell word that is their key. */
export interface IAddress {
  /** Of the OpenAI routes' root: `…/v1` stands below it. */
  url: string;
  /** Shell commands that set KEY. Never the key itself: what is copied is passed on. */
  setKey: string;
}

/**
 * On the machine itself straight to the gateway; from elsewhere through the
 * Jupyter server, whose token is the key. `jupyterUrl` is the Jupyter server's.
 */
export function addressOf(jupyterUrl: string, gatewayUrl: string): IAddress {
  const host = new URL(jupyterUrl).hostname;
  const isHere = ['localhost', '127.0.0.1', '[::1]'].includes(host);
  return isHere && gatewayUrl
    ? {
        url: gatewayUrl,
        setKey:
          "KEY=$(python -c 'from jupyter_dsserve import Client; print(Client().address().key)')"
      }
    : {
        url: `${jupyterUrl.replace(/\/+$/, '')}/dsserve`,
        setKey: 'KEY=...  # an API key (%dsserve key), or the token of your Jupyter server'
      };
}

const PROMPT = 'def fibonacci(n):';

/** Lines for a shell that ask `model`, a deployment or one of its versions. */
export function curlSnippet(
  address: IAddress,
  model: string,
  task: Task
): string {
  const [path, body] = asked(model, task);
  const lines = [
    address.setKey,
    `curl -s ${address.url}${path} -H "Authorization: Bearer $KEY"`
  ];
  if (body) {
    lines[1] += ` \\\n  -d '${JSON.stringify(body)}'`;
  }
  return lines.join('\n') + '\n';
}

function asked(model: string, task: Task): [string, object | null] {
  switch (task) {
    case 'embed':
      return ['/v1/embeddings', { model, input: ['first text', 'second text'] }];
    case 'classify':
      return ['/v1/classify', { model, input: ['first text', 'second text'] }];
    case 'tensor': // what it takes: only the program knows
      return [`/v2/models/${model}`, null];
    default:
      return ['/v1/completions', { model, prompt: PROMPT, max_tokens: 60 }];
  }
}

/** Python for a kernel or a script of the same user on the same machine. */
export function pythonSnippet(model: string, task: Task): string {
  const name = JSON.stringify(model);
  const ours = 'from jupyter_dsserve import Client';
  if (task === 'classify') {
    return `${ours}\n\nprint(Client().classify(${name}, ["first text", "second text"]))\n`;
  }
  if (task === 'tensor') {
    return `${ours}\n\nprint(Client().infer(${name}, {"x": [[0.5, 1.0, 2.0, 0.25]]}))\n`;
  }
  const call =
    task === 'embed'
      ? [
          `answer = client.embeddings.create(model=${name}, input=["first text", "second text"])`,
          'print(len(answer.data), "vectors")'
        ]
      : [
          `answer = client.completions.create(model=${name}, prompt=${JSON.stringify(PROMPT)}, max_tokens=60)`,
          'print(answer.choices[0].text)'
        ];
  return [
    ours,
    'from openai import OpenAI',
    '',
    'server = Client().address()',
    'client = OpenAI(base_url=f"{server.url}/v1", api_key=server.key)',
    ...call,
    ''
  ].join('\n');
}

const LOAD_EXT = '%load_ext jupyter_dsserve';

/**
 * The sources of the cells that ask `model`, for a notebook that has these
 * `sources`: the extension is loaded once.
 */
export function askCells(
  sources: readonly string[],
  model: string,
  task: Task
): string[] {
  if (task !== 'generate') {
    return [pythonSnippet(model, task).trimEnd()];
  }
  const ask = `%%dsserve ${model} --max-tokens 60\n${PROMPT}`;
  const isLoaded = sources.some(source => source.includes(LOAD_EXT));
  return isLoaded ? [ask] : [LOAD_EXT, ask];
}

/** A notebook's content (nbformat 4.5): load, ask, watch. */
export function servingNotebook(kernel: string): object {
  const cells: [string, string][] = [
    [
      'markdown',
      '# Serve a model\n\nThe model is a directory that `save_pretrained` wrote, a hub name such as `org/name`, or a built-in one. It runs in a process of its own and serves on when the kernel is restarted.'
    ],
    ['code', LOAD_EXT],
    ['code', '%dsserve load demo --model builtin:demo-v1'],
    ['code', `%%dsserve demo --max-tokens 60\n${PROMPT}`],
    ['code', '%dsserve panel demo']
  ];
  return {
    cells: cells.map(([cell_type, source], i) => ({
      cell_type,
      id: `cell-${i}`,
      metadata: {},
      source,
      ...(cell_type === 'code' ? { execution_count: null, outputs: [] } : {})
    })),
    metadata: { kernelspec: { name: kernel, display_name: kernel } },
    nbformat: 4,
    nbformat_minor: 5
  };
}
