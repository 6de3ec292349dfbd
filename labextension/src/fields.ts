/** What the dialogs ask, and the bodies that are made of the answers. */

import { IDeploymentView, IVersionView } from './view';

/** One line of a form. */
export interface IField {
  name: string;
  label: string;
  value: string;
  /** A choice has only its `options`; a text may have them as suggestions. */
  kind: 'text' | 'number' | 'choice';
  options?: readonly string[];
  isRequired?: boolean;
  /** What stands in it while it is empty. */
  hint?: string;
  /** A regular expression for all of it. */
  pattern?: string;
  min?: number;
  /** Left empty it is not a whole number. */
  step?: number;
}

/** By the fields' names. */
export type Values = Readonly<Record<string, string>>;

/** As the gateway has it. */
const NAME = '[A-Za-z0-9][A-Za-z0-9._\\-]{0,62}';
const PERCENTS = '\\s*[0-9.]+\\s*([, ]\\s*[0-9.]+\\s*)*';

/** `name` is empty for a deployment that is to be named. */
export function loadFields(name: string): IField[] {
  return [
    {
      name: 'name',
      label: 'Deployment',
      value: name,
      kind: 'text',
      isRequired: true,
      hint: 'what callers ask, such as demo',
      pattern: NAME
    },
    {
      name: 'model',
      label: 'Model',
      value: '',
      kind: 'text',
      isRequired: true,
      options: ['builtin:demo-v1', 'builtin:demo-v2'],
      hint: 'a directory, or org/name'
    },
    {
      name: 'version',
      label: 'Version',
      value: '',
      kind: 'text',
      hint: 'the next of v1, v2, …',
      pattern: NAME
    },
    {
      name: 'dtype',
      label: 'Weights as',
      value: 'auto',
      kind: 'choice',
      options: ['auto', 'fp32', 'bf16', 'fp16']
    },
    {
      name: 'priority',
      label: 'Priority',
      value: 'high',
      kind: 'choice',
      options: ['high', 'medium', 'low']
    },
    { name: 'note', label: 'Note', value: '', kind: 'text' }
  ];
}

/** `known` are the versions that the deployment has. What is the default is left out. */
export function loadBody(
  values: Values,
  known: readonly IVersionView[]
): Record<string, string> & { name: string; version: string } {
  const model = values.model.trim();
  const { dtype, priority, note } = values;
  return {
    name: values.name.trim(),
    model,
    version: values.version.trim() || versionFor(known, model),
    ...(dtype === 'auto' ? {} : { dtype }),
    ...(priority === 'high' ? {} : { priority }),
    ...(note.trim() ? { note: note.trim() } : {})
  };
}

/** As `version_for` in jupyter_dsserve/notebook/verbs.py: the one that has the model, or the next free of v1, v2, … */
export function versionFor(
  known: readonly IVersionView[],
  model: string
): string {
  const same = known.filter(each => each.model === model);
  if (same.length) {
    return same[same.length - 1].version;
  }
  const taken = known
    .map(each => /^v(\d{1,6})$/.exec(each.version))
    .map(found => Number(found?.[1] ?? 0));
  return `v${Math.max(0, ...taken) + 1}`;
}

export const ROLLOUT_FIELDS: readonly IField[] = [
  {
    name: 'steps',
    label: 'Steps, in percent',
    value: '5, 25, 50, 100',
    kind: 'text',
    isRequired: true,
    pattern: PERCENTS
  },
  {
    name: 'interval_s',
    label: 'Seconds at each, at least',
    value: '30',
    kind: 'number',
    isRequired: true,
    min: 0.1
  },
  {
    name: 'min_requests',
    label: 'Requests at each, at least',
    value: '50',
    kind: 'number',
    isRequired: true,
    min: 1,
    step: 1
  }
];

export function rolloutBody(candidate: string, values: Values): object {
  return {
    candidate,
    steps: values.steps.split(/[\s,]+/).filter(Boolean).map(Number),
    interval_s: Number(values.interval_s),
    min_requests: Number(values.min_requests)
  };
}

export const KEY_FIELDS: readonly IField[] = [
  {
    name: 'name',
    label: 'Name',
    value: '',
    kind: 'text',
    isRequired: true,
    hint: 'who will use it'
  },
  {
    name: 'deployments',
    label: 'Deployments',
    value: '',
    kind: 'text',
    hint: 'all; or demo, other',
    pattern: `\\s*${NAME}\\s*([, ]\\s*${NAME}\\s*)*`
  },
  {
    name: 'rate',
    label: 'Calls a second, at most',
    value: '',
    kind: 'number',
    hint: 'no limit',
    min: 0
  },
  {
    name: 'days',
    label: 'Good for so many days',
    value: '',
    kind: 'number',
    hint: 'until it is revoked',
    min: 0
  }
];

/** A key that asks models, and may do nothing else. */
export function keyBody(values: Values): object {
  const deployments = values.deployments.split(/[\s,]+/).filter(Boolean);
  const { rate, days } = values;
  return {
    name: values.name.trim(),
    ...(deployments.length ? { deployments } : {}),
    ...(Number(rate) ? { rate: Number(rate) } : {}),
    ...(Number(days) ? { ttl_s: 86_400 * Number(days) } : {})
  };
}

/** Those that can take traffic, with their shares in whole percents that sum to 100. */
export function sharesOf(deployment: IDeploymentView): Map<string, number> {
  const ready = deployment.versions.filter(each => each.state === 'READY');
  const total = ready.reduce((sum, each) => sum + each.weight, 0);
  return rounded(
    new Map(
      ready.map(each => [
        each.version,
        total ? (100 * each.weight) / total : 100 / ready.length
      ])
    ),
    100
  );
}

/**
 * As `balanced` in jupyter_dsserve/notebook/weights.py: the shares after `moved`
 * was set to `value`; the others share the rest as they did before.
 */
export function balanced(
  shares: ReadonlyMap<string, number>,
  moved: string,
  value: number
): Map<string, number> {
  const others = [...shares].filter(([name]) => name !== moved);
  if (!others.length) {
    return new Map([[moved, 100]]);
  }
  const own = Math.min(Math.max(Math.round(value), 0), 100);
  const total = others.reduce((sum, [, share]) => sum + share, 0);
  const exact = others.map(([name, share]): [string, number] => [
    name,
    (100 - own) * (total ? share / total : 1 / others.length)
  ]);
  const whole = rounded(new Map(exact), 100 - own);
  return new Map(
    [...shares.keys()].map(name => [name, whole.get(name) ?? own])
  );
}

/** In whole numbers that sum to `sum`, by the largest remainder. */
function rounded(
  exact: ReadonlyMap<string, number>,
  sum: number
): Map<string, number> {
  const whole = new Map([...exact].map(([name, x]) => [name, Math.floor(x)]));
  const left = sum - [...whole.values()].reduce((a, b) => a + b, 0);
  const rest = ([, x]: [string, number]) => x - Math.floor(x);
  [...exact]
    .sort((a, b) => rest(b) - rest(a))
    .slice(0, left)
    .forEach(([name]) => whole.set(name, (whole.get(name) ?? 0) + 1));
  return whole;
}
