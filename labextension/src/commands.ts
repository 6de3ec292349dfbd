/** The commands: verbs on a deployment or a version, snippets, notebooks. */

import { JupyterFrontEnd } from '@jupyterlab/application';
import {
  Clipboard,
  Dialog,
  MainAreaWidget,
  Notification,
  showDialog,
  WidgetTracker
} from '@jupyterlab/apputils';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import { Board } from './board';
import { serveIcon } from './icons';
import { ID, SIDEBAR } from './ids';
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
    label: 'Delete…',
    execute: async args => {
      const { name, version, model: id } = target(args);
      const answer = await showDialog({
        title: `Delete ${id}?`,
        body: 'It is unloaded and forgotten. Its model stays where it is.',
        buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Delete' })]
      });
      if (answer.button.accept) {
        await tell(api.delete(name, version));
      }
    }
  });

  commands.addCommand(ID.logs, {
    label: 'Show Logs',
    execute: async args => {
      const { name, version, model: id } = target(args);
      await tell(
        api.logs(name, version).then(logs => {
          void showDialog({
            title: `Logs of ${id}`,
            body: new Log(logs),
            buttons: [Dialog.okButton({ label: 'Close' })]
          });
        })
      );
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
    execute: () => shell.activateById(SIDEBAR)
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

/** Workers' output, in a dialog. */
class Log extends Widget {
  constructor(logs: Record<string, string[]>) {
    const node = document.createElement('pre');
    node.className = 'jp-DSServe-log';
    node.tabIndex = 0; // to scroll with the keyboard
    node.textContent = Object.entries(logs)
      .map(([worker, lines]) => `${worker}\n${lines.join('\n')}`)
      .join('\n\n');
    super({ node });
  }
}
