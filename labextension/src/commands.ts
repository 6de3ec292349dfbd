/** The commands: verbs on a deployment or a version, snippets, notebooks. */

import { JupyterFrontEnd } from '@jupyterlab/application';
import {
  Clipboard,
  Dialog,
  InputDialog,
  MainAreaWidget,
  Notification,
  showDialog,
  WidgetTracker
} from '@jupyterlab/apputils';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import { Board } from './board';
import {
  KEY_FIELDS,
  keyBody,
  loadBody,
  loadFields,
  ROLLOUT_FIELDS,
  rolloutBody,
  sharesOf,
  Values
} from './fields';
import { askFor, Form, Shares } from './forms';
import { serveIcon } from './icons';
import { ID, SIDEBAR } from './ids';
import { LogView } from './logs';
import { Model } from './model';
import { Task } from './records';
import {
  addressOf,
  askCells,
  curlSnippet,
  pythonSnippet,
  servingNotebook
} from './snippets';

interface ICellModel {
  sharedModel: { getSource(): string; setSource(source: string): void };
}

/** As much of JupyterLab's NotebookPanel as is used: its package would bring 300 MB to the build. */
interface INotebookLike extends Widget {
  content: {
    model: { cells: Iterable<ICellModel> };
    activeCell: { model: ICellModel };
  };
}

/** What a command is about: `demo`, or `demo@v1` with a version. */
interface ITarget {
  name: string;
  version: string;
  model: string;
  task: Task;
}

export function addCommands(
  app: JupyterFrontEnd,
  model: Model,
  sidebar: Board,
  boards: WidgetTracker<MainAreaWidget<Board>>
): void {
  const { commands, serviceManager, shell } = app;
  const { api } = model;

  const target = (args: ReadonlyPartialJSONObject): ITarget => {
    const name = String(args.name ?? '');
    const version = String(args.version ?? '');
    const id = version ? `${name}@${version}` : name;
    const found = version ? model.version(id) : model.deployment(name);
    return { name, version, model: id, task: found?.task ?? 'generate' };
  };

  /** Asks the server; what it refuses is shown in its own words. */
  const tell = async (asked: Promise<void>): Promise<void> => {
    try {
      await asked;
    } catch (fault) {
      Notification.error((fault as Error).message, { autoClose: 8000 });
    }
    model.refresh();
  };

  const onVersion = (
    id: string,
    label: string,
    can: 'canLoad' | 'canUnload' | 'canActivate',
    act: (name: string, version: string) => Promise<void>
  ): void => {
    commands.addCommand(id, {
      label,
      isEnabled: args => !!model.version(target(args).model)?.[can],
      execute: args => {
        const { name, version } = target(args);
        return tell(act(name, version));
      }
    });
  };
  onVersion(ID.load, 'Load', 'canLoad', (n, v) => api.load(n, v));
  onVersion(ID.unload, 'Unload', 'canUnload', (n, v) => api.unload(n, v));
  onVersion(ID.activate, 'Activate (all traffic)', 'canActivate', (n, v) =>
    api.activate(n, v)
  );

  const onDeployment = (
    id: string,
    label: string,
    can: 'canPause' | 'canResume' | 'canPromote' | 'canRollback',
    act: (name: string) => Promise<void>
  ): void => {
    const isPossible = (args: ReadonlyPartialJSONObject): boolean =>
      !!model.deployment(target(args).name)?.[can];
    commands.addCommand(id, {
      label,
      isVisible: isPossible,
      isEnabled: isPossible,
      execute: args => tell(act(target(args).name))
    });
  };
  onDeployment(ID.pause, 'Pause Rollout', 'canPause', n => api.pause(n));
  onDeployment(ID.resume, 'Resume Rollout', 'canResume', n => api.resume(n));
  onDeployment(ID.promote, 'Promote Candidate', 'canPromote', n =>
    api.promote(n)
  );
  onDeployment(ID.rollback, 'Roll Back', 'canRollback', n => api.rollback(n));

  commands.addCommand(ID.delete, {
    label: args => (args.version ? 'Delete…' : 'Delete Deployment…'),
    execute: async args => {
      const { name, version, model: id } = target(args);
      const answer = await showDialog({
        title: `Delete ${id}?`,
        body: version
          ? 'It is unloaded and forgotten. Its model stays where it is.'
          : 'All its versions are unloaded and forgotten. Their models stay where they are.',
        buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Delete' })]
      });
      if (answer.button.accept) {
        await tell(api.delete(name, version));
      }
    }
  });

  commands.addCommand(ID.loadNew, {
    label: args =>
      args.name ? 'Load Another Version…' : 'Load a Model…',
    execute: async args => {
      const { name } = target(args);
      const isLoading = await askFor<Values>({
        title: 'Load a model',
        accept: 'Load',
        body: (given, refusal) => new Form(loadFields(name), given, refusal),
        act: values => {
          const known = model.deployment(values.name.trim())?.versions ?? [];
          const body = loadBody(values, known);
          return api.load(body.name, body.version, body);
        }
      });
      if (isLoading) {
        void commands.execute(ID.show); // where it is seen
      }
      model.refresh();
    }
  });

  commands.addCommand(ID.route, {
    label: 'Set Traffic…',
    isEnabled: args => !!model.deployment(target(args).name)?.canRoute,
    execute: async args => {
      const { name } = target(args);
      const deployment = model.deployment(name);
      if (!deployment) {
        return;
      }
      await askFor<ReadonlyMap<string, number>>({
        title: `Traffic of ${name}`,
        accept: 'Set',
        body: (given, refusal) =>
          new Shares(given ?? sharesOf(deployment), refusal),
        act: shares => api.route(name, shares, deployment.revision)
      });
      model.refresh();
    }
  });

  commands.addCommand(ID.rollout, {
    label: 'Roll Out Step by Step…',
    isEnabled: args => !!model.version(target(args).model)?.canRollOut,
    execute: async args => {
      const { name, version, model: id } = target(args);
      await askFor<Values>({
        title: `Roll out ${id}`,
        accept: 'Roll Out',
        body: (given, refusal) => new Form(ROLLOUT_FIELDS, given, refusal),
        act: values => api.rollout(name, rolloutBody(version, values))
      });
      model.refresh();
    }
  });

  commands.addCommand(ID.scale, {
    label: 'Number of Workers…',
    isEnabled: args => !!model.version(target(args).model)?.canUnload,
    execute: async args => {
      const { name, version, model: id } = target(args);
      const answer = await InputDialog.getNumber({
        title: `Workers of ${id}`,
        value: model.version(id)?.numReplicas ?? 1
      });
      if (answer.button.accept && answer.value !== null) {
        await tell(api.scale(name, version, answer.value));
      }
    }
  });

  commands.addCommand(ID.key, {
    label: 'Create an API Key for Model Serving…',
    execute: async () => {
      let key = '';
      const isMade = await askFor<Values>({
        title: 'Create an API key',
        accept: 'Create',
        body: (given, refusal) => new Form(KEY_FIELDS, given, refusal),
        act: async values => {
          key = (await api.key(keyBody(values))).key;
        }
      });
      if (isMade) {
        const answer = await showDialog({
          title: 'The key is shown only now',
          body: key,
          buttons: [
            Dialog.cancelButton({ label: 'Close' }),
            Dialog.okButton({ label: 'Copy' })
          ]
        });
        if (answer.button.accept) {
          Clipboard.copyToSystem(key);
        }
      }
    }
  });

  commands.addCommand(ID.logs, {
    label: 'Show Logs',
    execute: args => {
      const { name, version, model: id } = target(args);
      const widgetId = `jupyter-dsserve-logs-${id}`;
      if (![...shell.widgets('main')].some(each => each.id === widgetId)) {
        const content = new LogView(api, name, version);
        const panel = new MainAreaWidget({ content });
        panel.id = widgetId;
        panel.title.label = `Logs of ${id}`;
        panel.title.icon = serveIcon;
        panel.title.closable = true;
        shell.add(panel, 'main');
      }
      shell.activateById(widgetId);
    }
  });

  // ---- snippets

  const address = () =>
    addressOf(serviceManager.serverSettings.baseUrl, model.view.gateway.url);
  const copy = (
    id: string,
    label: string,
    text: (target: ITarget) => string
  ): void => {
    commands.addCommand(id, {
      label,
      execute: args => {
        Clipboard.copyToSystem(text(target(args)));
        Notification.info('Copied', { autoClose: 1500 });
      }
    });
  };
  copy(ID.copyUrl, 'Copy URL', () => `${address().url}/v1`);
  copy(ID.copyCurl, 'Copy curl Line', t =>
    curlSnippet(address(), t.model, t.task)
  );
  copy(ID.copyPython, 'Copy Python Snippet', t =>
    pythonSnippet(t.model, t.task)
  );

  const insertBelow = 'notebook:insert-cell-below';
  commands.addCommand(ID.insertCell, {
    label: 'Insert Cell into Notebook',
    isEnabled: () => commands.isEnabled(insertBelow), // a notebook is in front
    execute: async args => {
      const { content, id } = shell.currentWidget as INotebookLike;
      const { model, task } = target(args);
      const sources = [...content.model.cells].map(cell =>
        cell.sharedModel.getSource()
      );
      for (const source of askCells(sources, model, task)) {
        await commands.execute(insertBelow);
        content.activeCell.model.sharedModel.setSource(source);
      }
      shell.activateById(id);
    }
  });

  // ---- places

  commands.addCommand(ID.show, {
    label: 'Show Model Serving in the Sidebar',
    execute: () => {
      shell.activateById(SIDEBAR);
      // The command palette, as it closes, moves the keyboard to the main area.
      setTimeout(() => sidebar.activate());
    }
  });

  commands.addCommand(ID.open, {
    label: args => (args.isLauncher ? 'Model Serving' : 'Open Model Serving'),
    caption: 'Deployments, their versions and traffic',
    icon: serveIcon,
    execute: () => {
      let panel = boards.find(() => true);
      if (!panel) {
        panel = new MainAreaWidget({ content: new Board(model, commands) });
        panel.id = 'jupyter-dsserve-main';
        panel.title.label = 'Model Serving';
        panel.title.icon = serveIcon;
        panel.title.closable = true;
        void boards.add(panel);
        shell.add(panel, 'main');
      }
      shell.activateById(panel.id);
    }
  });

  commands.addCommand(ID.start, {
    label: 'Start the Model Serving Gateway',
    isEnabled: () => model.view.gateway.state !== 'RUNNING',
    execute: () => tell(api.start())
  });

  commands.addCommand(ID.newNotebook, {
    label: args =>
      args.isLauncher ? 'Serving Notebook' : 'New Serving Notebook',
    caption: 'A notebook that loads a model, asks it and shows the panel',
    icon: serveIcon,
    execute: async args => {
      const { contents, kernelspecs } = serviceManager;
      const path = String(args.cwd ?? '');
      await kernelspecs.ready;
      const kernel = kernelspecs.specs?.default ?? 'python3';
      const made = await contents.newUntitled({ path, type: 'notebook' });
      await contents.save(made.path, {
        type: 'notebook',
        format: 'json',
        content: servingNotebook(kernel)
      });
      await commands.execute('docmanager:open', { path: made.path });
    }
  });
}
