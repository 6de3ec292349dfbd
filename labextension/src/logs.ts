/** `LogView`: the output of a version's workers, as it grows. */

import { Poll } from '@lumino/polling';
import { Widget } from '@lumino/widgets';

import { Api } from './api';

const INTERVAL_MS = 2000;
const NUM_LINES = 500;

export class LogView extends Widget {
  constructor(api: Api, name: string, version: string) {
    super();
    this.addClass('jp-DSServe-log');
    this._lines.tabIndex = 0; // to scroll with the keyboard
    this._lines.setAttribute('role', 'log');
    this._lines.setAttribute('aria-live', 'off'); // it would never be quiet
    this._lines.setAttribute('aria-label', `Logs of ${name}@${version}`);
    this.node.append(this._lines); // the node itself is JupyterLab's to name
    this._poll = new Poll({
      name: 'jupyter-dsserve:logs',
      factory: async () => {
        try {
          this._show(shown(await api.logs(name, version, NUM_LINES)));
        } catch (fault) {
          this._show(`✕ ${(fault as Error).message}`);
          throw fault; // the poll backs off
        }
      },
      frequency: { interval: INTERVAL_MS, backoff: true, max: 30_000 },
      standby: () => !this.isVisible || document.hidden
    });
  }

  dispose(): void {
    this._poll.dispose();
    super.dispose();
  }

  protected onAfterShow(): void {
    void this._poll.refresh();
  }

  /** Whoever has scrolled up reads on there. */
  private _show(text: string): void {
    const { node } = this;
    if (this.isDisposed || this._lines.textContent === text) {
      return;
    }
    const isAtEnd =
      node.scrollHeight - node.scrollTop - node.clientHeight < 8;
    this._lines.textContent = text;
    if (isAtEnd) {
      node.scrollTop = node.scrollHeight;
    }
  }

  private readonly _lines = document.createElement('pre');
  private readonly _poll: Poll;
}

function shown(logs: Record<string, string[]>): string {
  return Object.entries(logs)
    .map(([worker, lines]) => `${worker}\n${lines.join('\n')}`)
    .join('\n\n');
}
