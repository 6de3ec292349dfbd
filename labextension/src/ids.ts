/** Names that the pieces know each other by. */

export const SIDEBAR = 'jupyter-dsserve-sidebar';

/** Of the commands; the verbs are those of the table in docs/architecture.md. */
export const ID = {
  show: 'dsserve:show',
  open: 'dsserve:open',
  start: 'dsserve:start',
  newNotebook: 'dsserve:new-notebook',
  load: 'dsserve:load',
  unload: 'dsserve:unload',
  loadNew: 'dsserve:load-new',
  activate: 'dsserve:activate',
  route: 'dsserve:route',
  rollout: 'dsserve:rollout',
  scale: 'dsserve:scale',
  key: 'dsserve:key',
  delete: 'dsserve:delete',
  logs: 'dsserve:logs',
  pause: 'dsserve:pause',
  resume: 'dsserve:resume',
  promote: 'dsserve:promote',
  rollback: 'dsserve:rollback',
  copyUrl: 'dsserve:copy-url',
  copyCurl: 'dsserve:copy-curl',
  copyPython: 'dsserve:copy-python',
  insertCell: 'dsserve:insert-cell'
} as const;

/** In the menu of a version, and of a deployment. */
export const VERSION_MENU: readonly string[] = [
  ...[ID.activate, ID.load, ID.unload, ID.rollout, ID.scale, ''],
  ...[ID.logs, ID.delete, ''],
  ...[ID.copyUrl, ID.copyCurl, ID.copyPython, ID.insertCell]
];
export const DEPLOYMENT_MENU: readonly string[] = [
  ...[ID.loadNew, ID.route, ''],
  ...[ID.pause, ID.resume, ID.promote, ID.rollback, ''],
  ...[ID.delete, ''],
  ...[ID.copyUrl, ID.copyCurl, ID.copyPython, ID.insertCell]
];
