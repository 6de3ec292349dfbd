/** Dialogs that ask for values, and come back with what the server refused. */

import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

import { balanced, IField, Values } from './fields';

/** Later than this, a person is told that the server is still at it. */
const PATIENT_MS = 800;

interface IAsked<T> {
  title: string;
  /** Of the button that accepts. */
  accept: string;
  /** Asks again with what was given, and with why that was refused. */
  body: (given: T | null, refusal: string) => Widget & Dialog.IBodyWidget<T>;
  /** Rejects with an Error whose message a person understands. */
  act: (given: T) => Promise<unknown>;
}

/** Show a form until its values are taken or it is left. Says whether they were taken. */
export async function askFor<T>(asked: IAsked<T>): Promise<boolean> {
  let given: T | null = null;
  let refusal = '';
  for (;;) {
    const answer: Dialog.IResult<T> = await showDialog<T>({
      title: asked.title,
      body: asked.body(given, refusal),
      buttons: [
        Dialog.cancelButton(),
        Dialog.okButton({ label: asked.accept })
      ],
      focusNodeSelector: 'input:placeholder-shown, input[type=range]'
    });
    if (!answer.button.accept || answer.value === null) {
      return false;
    }
    given = answer.value;
    try {
      await patiently(asked.title, asked.act(given));
      return true;
    } catch (fault) {
      refusal = (fault as Error).message;
    }
  }
}

/** A load may first read much of a model's directory: whoever waits is told. */
async function patiently<T>(title: string, asked: Promise<T>): Promise<T> {
  let told = '';
  const timer = setTimeout(() => {
    told = Notification.emit(`${title}: the server is at it`, 'in-progress', {
      autoClose: false
    });
  }, PATIENT_MS);
  try {
    return await asked;
  } finally {
    clearTimeout(timer);
    if (told) {
      Notification.dismiss(told);
    }
  }
}

/** What every form has: a refusal on top, and lines below. */
class Body extends Widget {
  constructor(refusal: string) {
    super();
    this.addClass('jp-DSServe-form');
    if (refusal) {
      const said = document.createElement('p');
      said.setAttribute('role', 'alert');
      said.textContent = `✕ ${refusal}`;
      this.node.append(said);
    }
  }

  protected onAfterAttach(): void {
    // The dialog looks at what is valid when something is typed, and is attached after us: not at what is missing
    // from the start.
    const typed = new Event('input', { bubbles: true });
    queueMicrotask(() => this.node.dispatchEvent(typed));
  }

  /** A line: its label, and what stands beside it. */
  protected addLine(label: string, ...controls: HTMLElement[]): void {
    const line = document.createElement('label');
    const name = document.createElement('span');
    name.textContent = label;
    line.append(name, ...controls);
    this.node.append(line);
  }
}

/** A form of `fields`; `given` are the values that it had when it was shown before. */
export class Form extends Body implements Dialog.IBodyWidget<Values> {
  constructor(
    fields: readonly IField[],
    given: Values | null,
    refusal: string
  ) {
    super(refusal);
    for (const field of fields) {
      const value = given?.[field.name] ?? field.value;
      const control = controlOf(field, value);
      this._controls.set(field.name, control);
      this.addLine(field.label, control);
      if (field.kind === 'text' && field.options) {
        const list = document.createElement('datalist');
        list.id = `jp-DSServe-${field.name}`;
        list.append(...field.options.map(each => new Option(each, each)));
        control.setAttribute('list', list.id);
        this.node.append(list);
      }
    }
  }

  getValue(): Values {
    return Object.fromEntries(
      [...this._controls].map(([name, control]) => [name, control.value])
    );
  }

  private readonly _controls = new Map<
    string,
    HTMLInputElement | HTMLSelectElement
  >();
}

function controlOf(
  field: IField,
  value: string
): HTMLInputElement | HTMLSelectElement {
  if (field.kind === 'choice') {
    const select = document.createElement('select');
    select.append(
      ...(field.options ?? []).map(
        each => new Option(each, each, false, each === value)
      )
    );
    return select;
  }
  const input = document.createElement('input');
  input.type = field.kind;
  input.value = value;
  input.placeholder = field.hint ?? '';
  input.required = !!field.isRequired;
  input.autocomplete = 'off';
  input.spellcheck = false;
  if (field.kind === 'number') {
    input.min = String(field.min ?? '');
    input.step = String(field.step ?? 'any');
  } else if (field.pattern) {
    input.pattern = field.pattern;
  }
  return input;
}

/** Sliders that together always make 100. */
export class Shares
  extends Body
  implements Dialog.IBodyWidget<ReadonlyMap<string, number>>
{
  constructor(
    private _shares: ReadonlyMap<string, number>,
    refusal: string
  ) {
    super(refusal);
    for (const name of _shares.keys()) {
      const slider = document.createElement('input');
      slider.type = 'range';
      slider.max = '100';
      slider.setAttribute('aria-label', `Percent of the traffic for ${name}`);
      const shown = document.createElement('output');
      slider.addEventListener('input', () => {
        this._shares = balanced(this._shares, name, slider.valueAsNumber);
        this._show();
      });
      this._sliders.set(name, [slider, shown]);
      this.addLine(name, slider, shown);
    }
    this._show();
  }

  getValue(): ReadonlyMap<string, number> {
    return this._shares;
  }

  private _show(): void {
    for (const [name, [slider, shown]] of this._sliders) {
      const share = this._shares.get(name) ?? 0;
      slider.value = String(share);
      shown.textContent = `${share} %`;
    }
  }

  private readonly _sliders = new Map<
    string,
    [HTMLInputElement, HTMLOutputElement]
  >();
}
