import { unpack } from '../api.js';
import { Hint } from '../parts/hint.jsx';
import { short, signed } from '../format.js';

export const layout = 'lines';
export const hint = 'columns';
export const Look = null;

const nameOf = (meta, i) => meta.about.columns[i] ?? `column ${i}`;

/** A bar from the middle: to the right what adds, to the left what takes away. */
function Bar({ share }) {
  const width = Math.min(1, Math.abs(share)) * 50;
  return (
    <span class="bar" aria-hidden="true">
      <span class={share < 0 ? 'less' : 'more'} style={{ width: `${width}%`, left: `${share < 0 ? 50 - width : 50}%` }} />
    </span>
  );
}

export function Example({ row, marks, meta }) {
  const shown = unpack(row.look.columns).values;
  const x = unpack(row.look.x).values;
  const value = new Map([...shown].map((column, i) => [column, x[i]]));
  return (
    <ul class="parts">
      {[...marks.columns.values].slice(0, 5).map((column, i) => (
        <li key={column}>
          <span class="name" title={nameOf(meta, column)}>
            {nameOf(meta, column)}
          </span>
          <Bar share={marks.by.values[i] / 127} />
          <span class="number">{value.has(column) ? short(value.get(column)) : ''}</span>
        </li>
      ))}
    </ul>
  );
}

export function Drawing({ drawing, meta }) {
  if (!drawing.columns) return null;
  const columns = unpack(drawing.columns).values;
  const weights = unpack(drawing.weights).values;
  const most = Math.max(...weights.map(Math.abs), 1e-30);
  return (
    <div class="weights">
      <h3>
        <Hint of="writes">What it writes</Hint>
      </h3>
      <ul class="parts wide">
        {[...columns].map((column, i) => (
          <li key={column}>
            <span class="name" title={nameOf(meta, column)}>
              {nameOf(meta, column)}
            </span>
            <Bar share={weights[i] / most} />
            <span class="number">{signed(weights[i])}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

export function Whole({ row, meta, brief }) {
  const columns = unpack(row.look.columns).values;
  const [x, z] = [row.look.x, row.look.z].map((p) => unpack(p).values);
  const recon = row.look.recon && unpack(row.look.recon).values;
  const order = [...columns.keys()].sort((a, b) => Math.abs(z[b]) - Math.abs(z[a]));
  if (brief) {
    return (
      <ul class="parts">
        {order.slice(0, 4).map((i) => (
          <li key={i}>
            <span class="name">{nameOf(meta, columns[i])}</span>
            <Bar share={z[i] / 3} />
            <span class="number">{short(x[i])}</span>
          </li>
        ))}
      </ul>
    );
  }
  const worst = new Map((row.why.columns || []).map(([name, share]) => [name, share]));
  return (
    <div class="scroll">
      <table class="values">
        <thead>
          <tr>
            <th>column</th>
            <th class="number">value</th>
            {recon && <th class="number">reconstruction</th>}
            <th>
              <span title="in the model's own units: after standardize, standard deviations from the mean">unusual</span>
            </th>
            <th class="number">
              <Hint of="error">share of the error</Hint>
            </th>
          </tr>
        </thead>
        <tbody>
          {order.map((i) => {
            const name = nameOf(meta, columns[i]);
            return (
              <tr key={i}>
                <td>{name}</td>
                <td class="number">{short(x[i])}</td>
                {recon && <td class="number">{short(recon[i])}</td>}
                <td>
                  <Bar share={z[i] / 3} />
                </td>
                <td class="number">{worst.has(name) ? `${Math.round(100 * worst.get(name))}%` : ''}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
