/** The door through the Jupyter server, with its token or cookie and XSRF. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { IDoor } from './api';

export class JupyterDoor implements IDoor {
  constructor(private readonly _settings: ServerConnection.ISettings) {}

  async send(
    method: string,
    path: string,
    body?: object,
    patienceMs?: number
  ): Promise<unknown> {
    const signal = patienceMs ? AbortSignal.timeout(patienceMs) : null;
    try {
      const response = await this._request(path, {
        method,
        body: body && JSON.stringify(body),
        signal
      });
      return await response.json();
    } catch (fault) {
      if (signal?.aborted) {
        const s = (patienceMs ?? 0) / 1000;
        throw new Error(
          `no answer within ${s} s: what is shown is what was said last`
        );
      }
      throw fault;
    }
  }

  async *lines(path: string, signal: AbortSignal): AsyncIterable<string> {
    const response = await this._request(path, { signal });
    if (!response.body) {
      return;
    }
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      const lines = (rest + decoder.decode(value, { stream: !done })).split(
        '\n'
      );
      rest = lines.pop() ?? '';
      yield* lines;
      if (done) {
        return;
      }
    }
  }

  private async _request(path: string, init: RequestInit): Promise<Response> {
    const url = URLExt.join(this._settings.baseUrl, 'dsserve', path);
    const response = await ServerConnection.makeRequest(
      url,
      init,
      this._settings
    ).catch(fault => {
      throw init.signal?.aborted
        ? fault
        : new Error('the Jupyter server does not answer: is it running?');
    });
    if (!response.ok) {
      throw new Error(await said(response));
    }
    return response;
  }
}

/** The words of an error in the gateway's shape, OpenAI's or Jupyter's. */
async function said(response: Response): Promise<string> {
  if (response.status === 404 && response.url.includes('/dsserve/gateway')) {
    return 'this Jupyter server does not have the extension jupyter_dsserve';
  }
  try {
    const raw = await response.json();
    const found = raw.error ?? raw;
    return String(found.message ?? found);
  } catch {
    return `HTTP ${response.status} ${response.statusText}`;
  }
}
