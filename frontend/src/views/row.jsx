import { useEffect } from 'preact/hooks';
import { get, Missing, unpack } from '../api.js';
import { typing } from '../app.jsx';
import { count, plural, short } from '../format.js';
import { Empty, Failed, useAsked } from '../parts/asked.jsx';
import { Hint } from '../parts/hint.jsx';
import { lookOf, rendererOf } from '../renderers/index.js';
import { go } from '../route.js';

export function RowView({ meta, number }) {
  const { value: row, error } = useAsked(() => get(`rows/${number}.json`), [number]);
  useEffect(() => {
    const listen = (event) => {
      if (!typing(event) && event.key === 'Escape') history.length > 1 ? history.back() : go('rows');
    };
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  }, []);
  if (error instanceof Missing) {
    return (
      <Empty title={`Row ${number} is not here`}>
        The bundle keeps the rows that are examples of a feature, and some spread evenly over the data. <a href="#/rows">Those rows</a>
      </Empty>
    );
  }
  if (error) return <Failed error={error} />;
  if (!row) return null;
  const { Whole } = rendererOf(meta);
  return (
    <article class="row">
      <div class="title">
        <div>
          <p class="crumb">
            <a href="#/rows">Data</a> / {row.row}
          </p>
          <h1>
            {meta.noun[0].toUpperCase() + meta.noun.slice(1)} {count(row.row)}
            {row.label && <small> labelled {row.label}</small>}
          </h1>
          <p class="facts">
            {meta.kind !== 'normal' && (
              <span>
                <b>{count(row.n_active)}</b> <Hint of="active">{row.n_active === 1 ? 'feature fires' : 'features fire'}</Hint>
              </span>
            )}
            <span>
              <b>{short(row.score)}</b> <Hint of="error">error</Hint>
            </span>
            {row.anomaly ? (
              <span class="mark">
                <Hint of="anomaly">anomaly</Hint>
              </span>
            ) : null}
          </p>
        </div>
      </div>
      <Whole row={row} meta={meta} />
      <Active row={row} meta={meta} />
    </article>
  );
}

function Active({ row, meta }) {
  const values = unpack(row.codes.values).values;
  const most = Math.max(...[...values].map(Math.abs), 1e-30);
  if (!values.length) return <Empty title="Nothing fires here">The reconstruction is the decoder’s bias alone.</Empty>;
  return (
    <section class="active">
      <h2>{row.n_active > values.length ? `The strongest ${values.length} of ${plural(row.n_active, 'active feature')}` : 'Active features, strongest first'}</h2>
      <ul class="near">
        {row.codes.features.map((id, i) => {
          const feature = row.named[id];
          return (
            <li key={id}>
              <a href={`#/feature/${id}`}>
                <span class="look">{lookOf(meta, feature, 30)}</span>
                <span class="id number">{id}</span>
                <span class="label">{feature.label || <i>unnamed</i>}</span>
                <span class="track">
                  <i style={{ width: `${(100 * Math.abs(values[i])) / most}%` }} />
                </span>
                <span class="number">{short(values[i])}</span>
              </a>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
