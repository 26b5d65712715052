// The JSON of src/fewfire/explorer/server.py. An export has the same addresses without what follows the "?":
// then `Features` and `Rows` hold everything, and are sorted and searched here.

const kept = new Map();
const MOST_KEPT = 400;

export class Missing extends Error {}

async function fetchJson(address) {
  const answer = await fetch(`./api/${address}`, { credentials: 'same-origin' });
  if (answer.status === 404) throw new Missing(`there is no ${address}`);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
  return body;
}

/** JSON of an address, fetched once; the least recently used are forgotten. */
export function get(address) {
  let promise = kept.get(address);
  if (promise) {
    kept.delete(address);
  } else {
    promise = fetchJson(address);
    promise.catch(() => kept.delete(address));
  }
  kept.set(address, promise);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return promise;
}

const query = (options) => {
  const given = Object.entries(options).filter(([, value]) => value !== '' && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : '';
};

export async function features(meta, { sort = 'density', order = 'desc', show = 'all', q = '', offset = 0, limit = 100 }) {
  if (!meta.static) return get(`features.json${query({ sort, order, show, q, offset, limit })}`);
  const all = await sortedFeatures(sort, order, show, q);
  return { total: all.length, offset, features: all.slice(offset, offset + limit) };
}

export async function rows(meta, { sort = 'id', order = 'asc', only = '', offset = 0, limit = 24 }) {
  if (!meta.static) return get(`rows.json${query({ sort, order, only, offset, limit })}`);
  const all = (await get('rows.json')).rows.filter((row) => !only || row.anomaly);
  const sorted = [...all].sort(by(sort, order));
  return { total: sorted.length, offset, rows: sorted.slice(offset, offset + limit) };
}

const KEEP = {
  all: () => true,
  alive: (f) => !f.dead,
  dead: (f) => f.dead,
  dense: (f) => f.dense,
  labelled: (f) => f.label !== '',
};

let last = { key: null, list: [] };

async function sortedFeatures(sort, order, show, q) {
  const key = [sort, order, show, q].join('\n');
  if (last.key === key) return last.list;
  const all = (await get('features.json')).features;
  const words = q.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const matches = (f) => words.every((word) => f.label.toLowerCase().includes(word));
  last = { key, list: all.filter((f) => KEEP[show](f) && matches(f)).sort(by(sort, order)) };
  return last.list;
}

// Ties as the server has them: by number, upwards where the order is downwards.
const by = (name, order) => {
  const sign = order === 'desc' ? -1 : 1;
  return (a, b) => (a[name] < b[name] ? -sign : a[name] > b[name] ? sign : -sign * (a.id - b.id));
};

const TYPES = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };

/** {"dtype", "shape", "data"} -> {shape, values}. */
export function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  return { shape: packed.shape, values: new TYPES[packed.dtype](bytes.buffer) };
}

/** The i-th part along the first axis. */
export function part({ shape, values }, i) {
  const size = shape.slice(1).reduce((a, b) => a * b, 1);
  return { shape: shape.slice(1), values: values.subarray(i * size, (i + 1) * size) };
}
