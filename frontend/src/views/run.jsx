import { get } from '../api.js';
import { count, plural, short } from '../format.js';
import { Failed, useAsked } from '../parts/asked.jsx';
import { Hint } from '../parts/hint.jsx';
import { Curve, Histogram } from '../parts/plot.jsx';
import { VirtualList } from '../parts/virtual.jsx';

export function RunView({ meta }) {
  const { value: run, error } = useAsked(() => get('run.json'), []);
  if (error) return <Failed error={error} />;
  if (!run) return null;
  const curves = run.curves.filter(({ line, held_out }) => new Set([...line.values, ...held_out.values]).size > 1);
  const shape = (s) => s.join(' × ');
  return (
    <article class="run">
      <section class="lead">
        <div>
          <h1>{meta.name}</h1>
          <p>
            {plural(meta.n_features, 'feature')} with {meta.activation} activations, from rows of {shape(meta.input_shape)} values
            {shape(meta.input_shape) === shape(meta.target_shape) ? '' : ` to targets of ${shape(meta.target_shape)}`}
            {run.steps ? `, trained for ${plural(run.steps, 'step')}` : ''}.
          </p>
        </div>
      </section>
      {curves.length > 0 && (
        <section>
          <h2>Training</h2>
          <div class="charts">
            {curves.map((curve) => (
              <figure key={curve.name}>
                <figcaption>
                  {curve.title} <small>ends at {short(curve.line.values.at(-1))}{curve.held_out.values.length ? ', dots are held-out rows' : ''}</small>
                </figcaption>
                <Curve curve={curve} />
              </figure>
            ))}
          </div>
        </section>
      )}
      <section>
        <h2>Numbers</h2>
        <table class="values meanings">
          <tbody>
            {run.metrics.map(({ name, value, meaning }) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                <td class="number">{Number.isInteger(value) ? count(value) : short(value)}</td>
                <td>{meaning}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      {meta.compared ? (
        <Comparison />
      ) : (
        <section>
          <h2>Beside another run</h2>
          <p class="note">
            Which features did another seed or another setting find as well? <code>fewfire explore {meta.name} --compare OTHER</code> matches them here.
          </p>
        </section>
      )}
      {run.config && (
        <details>
          <summary>Configuration</summary>
          <pre>{run.config}</pre>
        </details>
      )}
    </article>
  );
}

function Comparison() {
  const { value: found, error } = useAsked(() => get('comparison.json'), []);
  if (error) return <Failed error={error} />;
  if (!found) return null;
  const size = found.cosine.map(Math.abs);
  const bins = Array(25).fill(0);
  for (const s of size) bins[Math.min(24, Math.floor(s * 25))]++;
  const pair = (p, i) => (
    <a key={i} class="line pair" role="row" href={p ? `#/feature/${p.own}` : undefined}>
      {p && (
        <>
          <span class="number">{p.own}</span>
          <span class="share">
            <i style={{ width: `${100 * Math.abs(p.cosine)}%` }} />
            <b class="number">{p.cosine.toFixed(2)}</b>
          </span>
          <span class="number">{p.other}</span>
        </>
      )}
    </a>
  );
  const load = async (offset, limit) =>
    found.own.slice(offset, offset + limit).map((own, i) => ({ own, other: found.other[offset + i], cosine: found.cosine[offset + i] }));
  return (
    <section>
      <h2>Beside {found.name}</h2>
      <p class="note">
        <Hint of="matched">{found.one_to_one ? 'Each feature with a partner of its own' : 'Each feature with the nearest of the other run'}</Hint>: {count(size.filter((s) => s > 0.9).length)} of{' '}
        {count(size.length)} agree to a cosine above 0.9.
      </p>
      <div class="two-even">
        <div>
          <Histogram low={0} high={1} counts={bins} height={150} label="cosines of the pairs" />
          <table class="values meanings">
            <tbody>
              {found.metrics.map(({ name, value, meaning }) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  <td class="number">{short(value)}</td>
                  <td>{meaning}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        <div class="pairs">
          <div class="line pair head">
            <span>here</span>
            <span>cosine</span>
            <span>there</span>
          </div>
          <VirtualList total={found.own.length} height={36} load={load} item={pair} keys={[found, 0]} label="Pairs" />
        </div>
      </div>
    </section>
  );
}
