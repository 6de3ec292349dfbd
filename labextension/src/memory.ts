/** The ledger as bars: who holds the memory of each device. */

import { colourOf } from './colours';
import { ILedger } from './records';

export interface IPieceView {
  /** `demo@v1#0 1.2 GiB`. */
  text: string;
  /** Of the device's memory, in percent. */
  share: number;
  /** Empty for other processes. */
  colour: string;
}

export interface IDeviceView {
  id: string;
  /** `0.9 GiB free of the 4.0 GiB that may be held`. */
  text: string;
  pieces: IPieceView[];
}

export interface IMemoryView {
  devices: IDeviceView[];
  /** What waits, the next first, a sentence each. */
  waits: string[];
}

export function memoryView(ledger: ILedger): IMemoryView {
  return {
    devices: ledger.devices.map(device => {
      const share = (num: number) => (100 * num) / (device.device_bytes || 1);
      return {
        id: device.id,
        text: `${bytes(device.free_bytes)} free of the ${bytes(device.capacity_bytes)} that may be held`,
        pieces: [
          ...device.held.map(each => ({
            text: `${each.replica} ${bytes(each.bytes)}`,
            share: share(each.bytes),
            colour: colourOf(each.owner.split('@')[1] ?? '')
          })),
          ...few(device.others).map(each => ({
            text: `${each.owner} ${bytes(each.bytes)}`,
            share: share(each.bytes),
            colour: ''
          }))
        ]
      };
    }),
    waits: ledger.waiting.map(
      each => `${each.replica} (${each.priority}) ${each.reason}`
    )
  };
}

/** The largest, and the others together. */
function few(others: IHolder[]): IHolder[] {
  const sorted = [...others].sort((a, b) => b.bytes - a.bytes);
  const rest = sorted.slice(MAX_OTHERS);
  const sum = rest.reduce((total, each) => total + each.bytes, 0);
  return rest.length < 2
    ? sorted
    : [
        ...sorted.slice(0, MAX_OTHERS),
        { owner: `${rest.length} other processes`, bytes: sum }
      ];
}

const MAX_OTHERS = 3;

interface IHolder {
  owner: string;
  bytes: number;
}

/** As `shown` in jupyter_dsserve/protocol/sizes.py. */
export function bytes(number: number): string {
  for (const [unit, size] of UNITS) {
    if (number >= size) {
      const value = number / size;
      return `${value.toFixed(value >= 100 ? 0 : 1)} ${unit}`;
    }
  }
  return `${number} B`;
}

const UNITS: readonly [string, number][] = [
  ['GiB', 2 ** 30],
  ['MiB', 2 ** 20],
  ['KiB', 2 ** 10]
];
