/**
 * The one door to the server: a method for each verb, named as in the table of
 * docs/architecture.md. No I/O of its own: `IDoor` sends.
 */

import {
  ICreatedKey,
  IGatewayStatus,
  ILedger,
  IStatus,
  IVersionStats
} from './records';

/** Sends to the Jupyter server, below its `/dsserve/`. */
export interface IDoor {
  /**
   * The answer's JSON. Rejects with an Error whose message is the server's, or
   * says that nothing came within `patienceMs` (no limit unless told).
   */
  send(
    method: string,
    path: string,
    body?: object,
    patienceMs?: number
  ): Promise<unknown>;
  /** The answer's lines as they come, until it ends or `signal` aborts. */
  lines(path: string, signal: AbortSignal): AsyncIterable<string>;
}

/** A look that takes longer is given up: one that hangs would show what is old for ever. */
const LOOK_MS = 5000;
/** How long the next second of numbers may take. */
const EVENTS_MS = 1500;

export class Api {
  constructor(private readonly _door: IDoor) {}

  // ---- looking: starts nothing

  async gateway(): Promise<IGatewayStatus> {
    return (await this._look('gateway')) as IGatewayStatus;
  }

  async status(): Promise<IStatus> {
    return (await this._look('api/status')) as IStatus;
  }

  /**
   * The next numbers of each of the versions `ids` (`demo@v1`): one second of
   * the event stream, which is left again, because a browser has only six
   * connections to a server, for all of its tabs. Fewer, if they do not come.
   */
  async events(ids: readonly string[]): Promise<IVersionStats[]> {
    const leave = new AbortController();
    const timer = setTimeout(() => leave.abort(), EVENTS_MS);
    const missing = new Set(ids);
    const found: IVersionStats[] = [];
    try {
      let kind = '';
      for await (const line of this._door.lines('api/events', leave.signal)) {
        if (line.startsWith('event: ')) {
          kind = line.slice(7);
        } else if (line.startsWith('data: ') && kind === 'stats') {
          const stats = JSON.parse(line.slice(6)) as IVersionStats;
          found.push(stats);
          missing.delete(`${stats.deployment}@${stats.version}`);
        }
        if (missing.size === 0) {
          break;
        }
      }
    } catch (fault) {
      if (!leave.signal.aborted) {
        throw fault;
      }
    } finally {
      clearTimeout(timer);
      leave.abort();
    }
    return found;
  }

  async ledger(): Promise<ILedger> {
    return (await this._look('api/ledger')) as ILedger;
  }

  /** The last lines of each worker's output, by its id. */
  async logs(
    name: string,
    version: string,
    lines = 200
  ): Promise<Record<string, string[]>> {
    const path = `${versionPath(name, version)}/logs?lines=${lines}`;
    return (await this._look(path)) as Record<string, string[]>;
  }

  private _look(path: string): Promise<unknown> {
    return this._door.send('GET', path, undefined, LOOK_MS);
  }

  // ---- changing: starts the gateway if need be

  /** Start the gateway and wait until it answers. */
  async start(): Promise<void> {
    await this._door.send('POST', 'gateway');
  }

  /**
   * Load a version that is registered; with a `body` (name, version, model, …)
   * one that is new. It is not READY yet when this ends.
   */
  async load(name: string, version: string, body?: object): Promise<void> {
    await (body
      ? this._door.send('POST', 'api/deployments', body)
      : this._door.send('POST', `${versionPath(name, version)}/load`));
  }

  async unload(name: string, version: string): Promise<void> {
    await this._door.send('POST', `${versionPath(name, version)}/unload`);
  }

  /** Without a `version` the deployment, with all that it has. */
  async delete(name: string, version: string): Promise<void> {
    const what = version ? versionPath(name, version) : path(name);
    await this._door.send('DELETE', what);
  }

  async activate(name: string, version: string): Promise<void> {
    await this._door.send('POST', `${path(name)}/activate`, { version });
  }

  /** Shares in percent that sum to 100; refused if another changed them since `revision`. */
  async route(
    name: string,
    weights: ReadonlyMap<string, number>,
    revision?: number
  ): Promise<void> {
    const body = { weights: Object.fromEntries(weights), revision };
    await this._door.send('PUT', `${path(name)}/route`, body);
  }

  /** `spec` says the candidate, its steps, and how long each takes at least. */
  async rollout(name: string, spec: object): Promise<void> {
    await this._door.send('POST', `${path(name)}/rollout`, spec);
  }

  async scale(name: string, version: string, replicas: number): Promise<void> {
    const body = { replicas };
    await this._door.send('POST', `${versionPath(name, version)}/scale`, body);
  }

  async key(spec: object): Promise<ICreatedKey> {
    return (await this._door.send('POST', 'api/keys', spec)) as ICreatedKey;
  }

  /** Back to the weights before the last change; ends a rollout. */
  async rollback(name: string): Promise<void> {
    await this._door.send('POST', `${path(name)}/rollback`);
  }

  async pause(name: string): Promise<void> {
    await this._door.send('POST', `${path(name)}/rollout/pause`);
  }

  async resume(name: string): Promise<void> {
    await this._door.send('POST', `${path(name)}/rollout/resume`);
  }

  async promote(name: string): Promise<void> {
    await this._door.send('POST', `${path(name)}/rollout/promote`);
  }
}

function path(name: string): string {
  return `api/deployments/${encodeURIComponent(name)}`;
}

function versionPath(name: string, version: string): string {
  return `${path(name)}/versions/${encodeURIComponent(version)}`;
}
