/**
 * The colour of a version, the same as in the notebook's panel: `colour_of` in
 * jupyter_dsserve/notebook/views.py.
 */

/** Okabe and Ito (2008), without black and yellow. */
export const COLOURS = [
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#56B4E9',
  '#E69F00'
] as const;

/** v1, v2, … take the colours in turn, other names by their letters. */
export function colourOf(version: string): string {
  const number = /\d{1,6}$/.exec(version);
  const index = number ? Number(number[0]) - 1 : crc32(version);
  // v0 has the last one, as in Python, whose % is never negative.
  return COLOURS[(index + COLOURS.length) % COLOURS.length];
}

function crc32(text: string): number {
  let crc = ~0;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
  }
  return ~crc >>> 0;
}
