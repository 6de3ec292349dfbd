/** `Board`: everything that is served, in the sidebar or in the main area. */

import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import { CommandRegistry } from '@lumino/commands';
import { Menu } from '@lumino/widgets';
import * as React from 'react';

import { DEPLOYMENT_MENU, ID, VERSION_MENU } from './ids';
import { IMemoryView } from './memory';
import { Model } from './model';
import { sparkPath } from './series';
import {
  IDeploymentView,
  IVersionView,
  milliseconds,
  percent,
  rate
} from './view';

export class Board extends ReactWidget {
  constructor(
    private readonly _model: Model,
    private readonly _commands: CommandRegistry
  ) {
    super();
    this.addClass('jp-DSServe');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Model serving');
    this.node.tabIndex = -1;
  }

  /** Whoever came by a command goes on with the keyboard from here. */
  protected onActivateRequest(): void {
    if (!this.node.contains(document.activeElement)) {
      this.node.focus();
    }
  }

  protected onAfterShow(): void {
    this._model.markSeen();
  }

  protected render(): JSX.Element {
    return (
      <UseSignal signal={this._model.changed}>
        {() => <Content model={this._model} commands={this._commands} />}
      </UseSignal>
    );
  }
}

interface IProps {
  model: Model;
  commands: CommandRegistry;
}

function Content({ model, commands }: IProps): JSX.Element {
  const { gateway, gatewayText, deployments } = model.view;
  const isRunning = gateway.state === 'RUNNING';
  const run = (id: string) => () => void commands.execute(id);
  return (
    <>
      <h2>Model serving</h2>
      {model.fault && <p role="alert">✕ {model.fault}</p>}
      {gatewayText && <p>{gatewayText}</p>}
      {isRunning && !deployments.length && (
        <p>
          Nothing is served yet. Load a model here, or in a notebook:{' '}
          <code>%dsserve load NAME --model MODEL</code>
        </p>
      )}
      {deployments.map(deployment => (
        <Deployment
          key={deployment.name}
          deployment={deployment}
          commands={commands}
        />
      ))}
      <div className="jp-DSServe-buttons">
        {!isRunning && gateway.state !== 'STARTING' && (
          <button onClick={run(ID.start)}>Start the gateway</button>
        )}
        <button onClick={run(ID.loadNew)}>Load a model…</button>
        <button onClick={run(ID.newNotebook)}>New serving notebook</button>
      </div>
      {isRunning && <Memory model={model} />}
      <Notices model={model} />
    </>
  );
}

interface IDeploymentProps {
  deployment: IDeploymentView;
  commands: CommandRegistry;
}

function Deployment({ deployment, commands }: IDeploymentProps): JSX.Element {
  const { name, traffic, change, isRolledBack, versions } = deployment;
  return (
    <section className="jp-DSServe-deployment" aria-label={`Deployment ${name}`}>
      <header>
        <h3>{name}</h3>
        <MenuButton
          commands={commands}
          items={DEPLOYMENT_MENU}
          args={{ name, version: '' }}
        />
      </header>
      <div
        className="jp-DSServe-traffic"
        role="img"
        aria-label={`Traffic: ${traffic}`}
        title={`Traffic: ${traffic}`}
      >
        {versions
          .filter(v => v.weight > 0)
          .map(v => (
            <div
              key={v.id}
              style={{ width: `${v.weight}%`, background: v.colour }}
            />
          ))}
      </div>
      {change && (
        <p className="jp-DSServe-change">
          {isRolledBack ? '✕ ' : ''}
          {change}
        </p>
      )}
      <ul role="list">
        {versions.map(version => (
          <Version key={version.id} version={version} commands={commands} />
        ))}
      </ul>
    </section>
  );
}

interface IVersionProps {
  version: IVersionView;
  commands: CommandRegistry;
}

function Version({ version: v, commands }: IVersionProps): JSX.Element {
  const figures = [
    v.requestsPerS === null ? '' : rate(v.requestsPerS),
    v.p95Ms === null ? '' : `p95 ${milliseconds(v.p95Ms)}`
  ].filter(Boolean);
  const made = v.note ? `${v.model} · ${v.note}` : v.model;
  return (
    <li className="jp-DSServe-version" data-state={v.state} aria-label={v.id}>
      <div className="jp-DSServe-line">
        <span
          className="jp-DSServe-swatch"
          style={{ background: v.colour }}
          aria-hidden
        />
        <strong>{v.version}</strong>
        <span className="jp-DSServe-share">{percent(v.weight)}</span>
        <MenuButton
          commands={commands}
          items={VERSION_MENU}
          args={{ name: v.deployment, version: v.version }}
        />
      </div>
      <div className="jp-DSServe-state">
        <span aria-hidden className="jp-DSServe-sign">
          {v.sign}
        </span>{' '}
        {v.stateText}
      </div>
      {v.progress !== null && (
        <progress value={v.progress} aria-label={`${v.id} loads`} />
      )}
      <div className="jp-DSServe-line">
        <span className="jp-DSServe-model" title={made}>
          {made}
        </span>
      </div>
      {v.state === 'READY' && (
        <div className="jp-DSServe-line jp-mod-wrap">
          <span className="jp-DSServe-figures">
            {figures.join(' · ') || 'no requests yet'}
          </span>
          <Sparkline version={v} />
        </div>
      )}
    </li>
  );
}

const SPARK = { width: 80, height: 20 };

function Sparkline({ version: v }: { version: IVersionView }): JSX.Element {
  const path = sparkPath(v.points, SPARK.width, SPARK.height);
  const seen = v.points.map(p => p.ms).filter(ms => ms !== null) as number[];
  const label = seen.length
    ? `p95 of ${v.id} over two minutes: ${milliseconds(Math.min(...seen))} to ${milliseconds(Math.max(...seen))}`
    : `p95 of ${v.id}: nothing was answered yet`;
  return (
    <svg
      className="jp-DSServe-spark"
      role="img"
      aria-label={label}
      viewBox={`0 0 ${SPARK.width} ${SPARK.height}`}
      {...SPARK}
    >
      <title>{label}</title>
      <path d={path} stroke={v.colour} />
    </svg>
  );
}

/** Folded, until somebody wants to see it: then it is asked for. */
function Memory({ model }: { model: Model }): JSX.Element {
  const [isOpen, setOpen] = React.useState(false);
  React.useEffect(
    () => (isOpen ? model.watchMemory() : undefined),
    [isOpen, model]
  );
  return (
    <details
      className="jp-DSServe-memory"
      onToggle={event => setOpen(event.currentTarget.open)}
    >
      <summary>Memory</summary>
      {model.memory && <Devices {...model.memory} />}
    </details>
  );
}

function Devices({ devices, waits }: IMemoryView): JSX.Element {
  return (
    <>
      {devices.map(({ id, text, pieces }) => (
        <section key={id} aria-label={`Memory of ${id}`}>
          <div>
            <strong>{id}</strong> {text}
          </div>
          <div
            className="jp-DSServe-traffic jp-mod-memory"
            role="img"
            aria-label={pieces.map(piece => piece.text).join(', ') || 'free'}
          >
            {pieces.map(piece => (
              <div
                key={piece.text}
                title={piece.text}
                style={{
                  width: `${piece.share}%`,
                  background: piece.colour || 'var(--jp-border-color0)'
                }}
              />
            ))}
          </div>
          <ul>
            {pieces.map(piece => (
              <li key={piece.text}>
                <span
                  className="jp-DSServe-swatch"
                  style={{
                    background: piece.colour || 'var(--jp-border-color0)'
                  }}
                  aria-hidden
                />
                <span>{piece.text}</span>
              </li>
            ))}
          </ul>
        </section>
      ))}
      {waits.map(wait => (
        <p key={wait}>◐ {wait}</p>
      ))}
    </>
  );
}

interface IMenuButtonProps {
  commands: CommandRegistry;
  items: readonly string[];
  args: { name: string; version: string };
}

/** Opens the commands on `args`; the keyboard comes back here afterwards. */
function MenuButton({ commands, items, args }: IMenuButtonProps): JSX.Element {
  const open = (button: HTMLButtonElement): void => {
    const menu = new Menu({ commands });
    for (const command of items) {
      menu.addItem(command ? { command, args } : { type: 'separator' });
    }
    menu.aboutToClose.connect(() => {
      button.focus();
      setTimeout(() => menu.dispose(), 1000); // not before its command is run
    });
    const box = button.getBoundingClientRect();
    menu.open(box.left, box.bottom);
  };
  const id = args.version ? `${args.name}@${args.version}` : args.name;
  return (
    <button
      className="jp-DSServe-menu"
      aria-haspopup="menu"
      aria-label={`Actions for ${id}`}
      title={`Actions for ${id}`}
      onClick={event => open(event.currentTarget)}
    >
      ⋯
    </button>
  );
}

/** The last notice, for screen readers: the numbers would never be quiet. */
function Notices({ model }: { model: Model }): JSX.Element {
  return (
    <UseSignal signal={model.noticed}>
      {(_, notice) => (
        <div role="status" className="jp-DSServe-spoken">
          {notice?.text ?? ''}
        </div>
      )}
    </UseSignal>
  );
}
