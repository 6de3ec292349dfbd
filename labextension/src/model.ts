/** `Model`: looks at the server again and again, and says when something changed. */

import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { Api } from './api';
import { IMemoryView, memoryView } from './memory';
import { INotice, ISeen, notices } from './notices';
import { IGatewayStatus } from './records';
import { Series } from './series';
import { IDeploymentView, IVersionView, IView, view } from './view';

const OFF: IGatewayStatus = { state: 'OFF', url: '', reason: '' };
/** After failures it looks less often, at most this seldom. */
const MAX_INTERVAL_MS = 30_000;

export class Model {
  constructor(readonly api: Api) {
    this._view = view(OFF, null, this._series);
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-dsserve:status',
      factory: () => this._look(),
      frequency: { interval: 2000, backoff: true, max: MAX_INTERVAL_MS },
      standby: 'when-hidden'
    });
  }

  /** The view, or `fault`, is another one. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Something happened that a person may want to know. */
  get noticed(): ISignal<this, INotice> {
    return this._noticed;
  }

  get view(): IView {
    return this._view;
  }

  /** Why the server could not be asked; empty if it could. */
  get fault(): string {
    return this._fault;
  }

  /** Who holds the memory; null while nobody wants to see it. */
  get memory(): IMemoryView | null {
    return this._memory;
  }

  /** Each look is at the memory too until what this returns is called; several may watch. */
  watchMemory(): () => void {
    this._numWatching++;
    this.refresh();
    return () => {
      this._numWatching--;
    };
  }

  deployment(name: string): IDeploymentView | undefined {
    return this._view.deployments.find(each => each.name === name);
  }

  version(id: string): IVersionView | undefined {
    return this._view.deployments
      .flatMap(each => each.versions)
      .find(each => each.id === id);
  }

  start(intervalS: number): void {
    const interval = 1000 * intervalS;
    const max = Math.max(interval, MAX_INTERVAL_MS); // a Poll refuses a longer interval
    this._poll.frequency = { ...this._poll.frequency, interval, max };
    void this._poll.start();
  }

  /** A person looks: rollouts that have ended are no news any more. */
  markSeen(): void {
    if (this._seen) {
      const deployments = this._seen.status?.deployments ?? [];
      const ends = deployments.map(each => each.rollout?.ended_at ?? 0);
      this._seenAt = Math.max(this._seenAt, ...ends);
      this._show(this._seen);
    }
  }

  /** Look now: something was just changed. */
  refresh(): void {
    // Not `refresh`: while it looks that does nothing, and the look may have begun before the change.
    void this._poll.schedule({ interval: Poll.IMMEDIATE, phase: 'refreshed' });
  }

  private async _look(): Promise<void> {
    // One that is overtaken by a later one must not show what is old.
    const turn = ++this._turn;
    const isLast = () => turn === this._turn;
    try {
      const gateway = await this.api.gateway();
      const isRunning = gateway.state === 'RUNNING';
      const status = isRunning ? await this.api.status() : null;
      const ledger =
        isRunning && this._numWatching ? await this.api.ledger() : null;
      if (!isLast()) {
        return;
      }
      this._fault = '';
      this._memory = ledger && memoryView(ledger);
      this._see({ gateway, status });
      const ids = this._view.deployments
        .flatMap(each => each.versions)
        .map(each => each.id);
      this._series.keepOnly(ids);
      if (ids.length) {
        for (const stats of await this.api.events(ids)) {
          this._series.add(stats);
        }
        if (isLast()) {
          this._see({ gateway, status });
        }
      }
    } catch (fault) {
      if (isLast()) {
        this._fault = (fault as Error).message;
        this._changed.emit();
      }
      throw fault; // the poll backs off
    }
  }

  private _see(seen: ISeen): void {
    const before = this._seen;
    this._seen = seen;
    this._show(seen);
    for (const notice of before ? notices(before, seen) : []) {
      this._noticed.emit(notice);
    }
  }

  private _show(seen: ISeen): void {
    const { gateway, status } = seen;
    this._view = view(gateway, status, this._series, this._seenAt);
    this._changed.emit();
  }

  private readonly _poll: Poll;
  private readonly _series = new Series();
  private readonly _changed = new Signal<this, void>(this);
  private readonly _noticed = new Signal<this, INotice>(this);
  private _seen: ISeen | null = null;
  private _view: IView;
  private _fault = '';
  private _memory: IMemoryView | null = null;
  private _numWatching = 0;
  private _seenAt = 0;
  private _turn = 0;
}
