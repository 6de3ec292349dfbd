/** The plugin: puts the pieces into JupyterLab. */

import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import {
  ICommandPalette,
  MainAreaWidget,
  Notification,
  WidgetTracker
} from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ISignal } from '@lumino/signaling';

import { Api } from './api';
import { Board } from './board';
import { addCommands } from './commands';
import { serveIcon } from './icons';
import { ID, SIDEBAR } from './ids';
import { Model } from './model';
import { JupyterDoor } from './server';
import { StatusItem } from './statusbar';

const PALETTE = [
  ID.open,
  ID.show,
  ID.loadNew,
  ID.newNotebook,
  ID.start,
  ID.key
];
const PLUGIN = 'jupyter-dsserve:plugin';

interface ISettings {
  pollInterval: number;
  notifications: boolean;
  statusItem: boolean;
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Deployments of the DeepSpeed gateway beside the notebook.',
  autoStart: true,
  requires: [ISettingRegistry],
  optional: [ICommandPalette, ILauncher, IStatusBar, ILayoutRestorer],
  activate: async (
    app: JupyterFrontEnd,
    registry: ISettingRegistry,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    statusBar: IStatusBar | null,
    restorer: ILayoutRestorer | null
  ) => {
    const model = new Model(
      new Api(new JupyterDoor(app.serviceManager.serverSettings))
    );
    const boards = new WidgetTracker<MainAreaWidget<Board>>({
      namespace: 'jupyter-dsserve'
    });
    const sidebar = new Board(model, app.commands);
    addCommands(app, model, sidebar, boards);

    sidebar.id = SIDEBAR;
    sidebar.title.icon = serveIcon;
    sidebar.title.caption = 'Model Serving';
    app.shell.add(sidebar, 'left', { rank: 600 });

    restorer?.add(sidebar, SIDEBAR);
    void restorer?.restore(boards, { command: ID.open, name: () => 'main' });

    for (const command of PALETTE) {
      palette?.addItem({ command, category: 'Model Serving' });
    }
    const args = { isLauncher: true };
    const picture = encodeURIComponent(serveIcon.svgstr);
    launcher?.add({
      command: ID.newNotebook,
      category: 'Notebook',
      args,
      kernelIconUrl: `data:image/svg+xml,${picture}` // there it takes no icon
    });
    launcher?.add({ command: ID.open, category: 'Other', args });

    const settings = await registry.load(PLUGIN);
    const chosen = () => settings.composite as unknown as ISettings;

    statusBar?.registerStatusItem(PLUGIN, {
      item: new StatusItem(model, () => {
        model.markSeen();
        void app.commands.execute(ID.show);
      }),
      align: 'left',
      rank: 10,
      isActive: () => chosen().statusItem,
      activeStateChanged: settings.changed as unknown as ISignal<object, void>
    });

    const apply = () => model.start(chosen().pollInterval);
    settings.changed.connect(apply);
    model.noticed.connect((_, notice) => {
      if (chosen().notifications) {
        const tell = notice.isBad ? Notification.error : Notification.success;
        tell(notice.text, { autoClose: notice.isBad ? false : 5000 });
      }
    });
    apply();
  }
};

export default plugin;
