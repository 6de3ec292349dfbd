/** The last two minutes of each version's numbers. Time is the gateway's. */

import { IVersionStats } from './records';

export const WINDOW_S = 120;
/** Over which requests per second are counted. */
const RATE_S = 10;
/** Longer without a number is a gap: the page was hidden. */
const GAP_S = 12;

export interface IPoint {
  /** At most 0. */
  agoS: number;
  /** Null where nothing was answered, or nobody looked. */
  ms: number | null;
}

export class Series {
  add(stats: IVersionStats): void {
    const id = `${stats.deployment}@${stats.version}`;
    let kept = this._kept.get(id) ?? [];
    const last = kept[kept.length - 1];
    if (last && stats.requests < last.requests) {
      kept = []; // another gateway, or another version of this name
    }
    this._now = isFinite(this._now) ? Math.max(this._now, stats.at) : stats.at;
    kept.push(stats);
    this._kept.set(
      id,
      kept.filter(each => each.at > stats.at - WINDOW_S)
    );
  }

  /** When the last number was taken; infinite before the first has come. */
  get now(): number {
    return this._now;
  }

  /** Forget all versions but these. */
  keepOnly(ids: readonly string[]): void {
    for (const id of [...this._kept.keys()]) {
      if (!ids.includes(id)) {
        this._kept.delete(id);
      }
    }
  }

  /** Null while nothing was answered. */
  p95Ms(id: string): number | null {
    const points = this.points(id);
    return points.length ? points[points.length - 1].ms : null;
  }

  /** Null before two numbers have come. */
  requestsPerS(id: string): number | null {
    const kept = this._kept.get(id) ?? [];
    const last = kept[kept.length - 1];
    const first = kept.find(each => each.at >= last.at - RATE_S);
    if (!first || first.at === last.at) {
      return null;
    }
    return (last.requests - first.requests) / (last.at - first.at);
  }

  /** The p95 as a line, oldest first. */
  points(id: string): IPoint[] {
    const kept = this._kept.get(id) ?? [];
    const points: IPoint[] = [];
    kept.forEach((each, i) => {
      const agoS = each.at - kept[kept.length - 1].at;
      if (i && each.at - kept[i - 1].at > GAP_S) {
        points.push({ agoS, ms: null });
      }
      points.push({
        agoS,
        ms: each.p95_s === null ? null : 1000 * each.p95_s
      });
    });
    return points;
  }

  private _now = Infinity;
  private readonly _kept = new Map<string, IVersionStats[]>();
}

/**
 * An SVG path through `points` in a box of `width` by `height`: the window from
 * left to right, 0 ms at the bottom. Empty if there is nothing to draw.
 */
export function sparkPath(
  points: readonly IPoint[],
  width: number,
  height: number
): string {
  const max = Math.max(0, ...points.map(point => point.ms ?? 0));
  if (!max) {
    return '';
  }
  const pieces: string[] = [];
  let isDrawing = false;
  for (const { agoS, ms } of points) {
    if (ms !== null) {
      const x = (1 + agoS / WINDOW_S) * width;
      const y = (1 - ms / max) * (height - 2) + 1;
      pieces.push(`${isDrawing ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`);
    }
    isDrawing = ms !== null;
  }
  return pieces.join('');
}
