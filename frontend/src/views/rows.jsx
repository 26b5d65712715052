import { useEffect, useState } from 'preact/hooks';
import { rows } from '../api.js';
import { count, plural, short } from '../format.js';
import { Empty, Failed, useAsked } from '../parts/asked.jsx';
import { Hint } from '../parts/hint.jsx';
import { rendererOf } from '../renderers/index.js';
import { adjust, go } from '../route.js';
import { useListKeys } from './features.jsx';

const LIMIT = 24;
const SORTS = [
  ['id', 'in their order', 'asc'],
  ['score', 'worst first', 'desc'],
  ['n_active', 'most features first', 'desc'],
  ['label', 'by label', 'asc'],
];

export function RowsView({ meta, query }) {
  const sort = query.get('sort') || 'id';
  const only = query.get('only') || '';
  const page = Math.max(0, Number(query.get('page') || 0) || 0);
  const order = (SORTS.find(([key]) => key === sort) || SORTS[0])[2];
  const asked = useAsked(() => rows(meta, { sort, order, only, offset: page * LIMIT, limit: LIMIT }), [sort, only, page]);
  const [at, setAt] = useState(-1);
  useEffect(() => setAt(-1), [sort, only, page]);
  const change = (more) => adjust('rows', { sort: sort === 'id' ? '' : sort, only, page: page || '', ...more });
  const shown = asked.value ? asked.value.rows : [];
  useListKeys(at, setAt, shown.length, (i) => go(`row/${shown[i].id}`));
  const { Whole } = rendererOf(meta);
  const last = asked.value ? Math.max(0, Math.ceil(asked.value.total / LIMIT) - 1) : 0;
  return (
    <div class="rows">
      <section class="lead">
        <div>
          <h1>{meta.noun[0].toUpperCase() + meta.noun.slice(1)}s of {meta.data}</h1>
          <p>
            Each beside what the model makes of it. Open one to see which features fire on it, and how it is rebuilt from them.
            {asked.value && asked.value.total < meta.n_rows && !only ? ` Of ${count(meta.n_rows)} read, ${count(asked.value.total)} are kept here: those that are examples, and some spread evenly.` : ''}
          </p>
        </div>
      </section>
      <div class="controls">
        <select aria-label="Sort by" value={sort} onChange={(e) => change({ sort: e.target.value === 'id' ? '' : e.target.value, page: '' })}>
          {SORTS.filter(([key]) => key !== 'label' || meta.classes.length).map(([key, title]) => (
            <option key={key} value={key}>
              {title}
            </option>
          ))}
        </select>
        <div class="chips" role="group" aria-label="Show">
          <button class={only ? '' : 'on'} aria-pressed={!only} onClick={() => change({ only: '', page: '' })}>
            All
          </button>
          <button class={only ? 'on' : ''} aria-pressed={!!only} onClick={() => change({ only: 'anomalies', page: '' })}>
            Anomalies
          </button>
        </div>
        <Hint of="anomaly">What is an anomaly?</Hint>
        <span class="total">{asked.value && plural(asked.value.total, meta.noun)}</span>
      </div>
      {asked.error && <Failed error={asked.error} />}
      {asked.value && !asked.value.total && (
        <Empty title={`No ${meta.noun} stands out`}>
          {meta.threshold === null
            ? 'Nothing says which reconstruction errors are usual here: a run knows it, a bare model does not.'
            : `None of the rows read has an error above ${short(meta.threshold)}, which 99 % of the training rows stay below.`}
        </Empty>
      )}
      <div class={`cards ${meta.renderer}`}>
        {shown.map((row, i) => (
          <a key={row.id} class={`card ${i === at ? 'on' : ''}`} href={`#/row/${row.id}`}>
            <Whole row={row} meta={meta} brief />
            <span class="value">
              <b>{count(row.row)}</b>
              {row.label && <small>{row.label}</small>}
              {row.anomaly ? <em class="mark">anomaly</em> : null}
              <small class="end" title={meta.kind === 'normal' ? undefined : plural(row.n_active, 'active feature')}>
                error {short(row.score)}
              </small>
            </span>
          </a>
        ))}
      </div>
      {last > 0 && (
        <nav class="pages" aria-label="Pages">
          <button disabled={page === 0} onClick={() => change({ page: page - 1 || '' })}>
            ← Before
          </button>
          <span>
            page {count(page + 1)} of {count(last + 1)}
          </span>
          <button disabled={page >= last} onClick={() => change({ page: page + 1 })}>
            After →
          </button>
        </nav>
      )}
    </div>
  );
}
