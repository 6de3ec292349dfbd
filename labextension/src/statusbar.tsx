/** `StatusItem`: one line in the status bar. */

import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import * as React from 'react';

import { Model } from './model';
import { statusLine } from './view';

export class StatusItem extends ReactWidget {
  constructor(
    private readonly _model: Model,
    private readonly _onClick: () => void
  ) {
    super();
    this.addClass('jp-DSServe-statusItem');
  }

  protected render(): JSX.Element {
    return (
      <UseSignal signal={this._model.changed}>
        {() => {
          const line = statusLine(this._model.view);
          return line ? (
            <button
              className={line.isBad ? 'jp-mod-bad' : ''}
              aria-label={line.title}
              title={line.title}
              onClick={this._onClick}
            >
              {line.text}
            </button>
          ) : (
            <></>
          );
        }}
      </UseSignal>
    );
  }
}
