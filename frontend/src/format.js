// Numbers as people read them.

export const count = (n) => n.toLocaleString('en-US');
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  const whole = Number.isInteger(value) && size < 1e5;
  const text = whole ? String(value) : size >= 1e5 || size < 1e-3 ? value.toExponential(1) : size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return text.replace('-', '−').replace('e+', 'e');
}

export function percent(share) {
  if (share === 0) return '0%';
  const value = 100 * share;
  if (value < 0.001) return '<0.001%';
  return `${value >= 99.95 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(2)}%`;
}

export const signed = (value) => (value > 0 ? `+${short(value)}` : short(value));
