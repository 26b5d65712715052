import { useEffect, useState } from 'preact/hooks';
import { get, Missing, part, unpack } from '../api.js';
import { typing } from '../app.jsx';
import { count, percent, plural, short } from '../format.js';
import { Empty, Failed, useAsked } from '../parts/asked.jsx';
import { Hint } from '../parts/hint.jsx';
import { Histogram } from '../parts/plot.jsx';
import { lookOf, rendererOf } from '../renderers/index.js';
import { go } from '../route.js';
import { beside } from './features.jsx';

const TITLES = {
  top: ['Strongest', 'activation'],
  q90: ['At the 90 % quantile', 'quantile'],
  q75: ['75 %', 'quantile'],
  q50: ['Median', 'quantile'],
  q25: ['25 %', 'quantile'],
  q10: ['10 %', 'quantile'],
  miss: ['Near misses', 'miss'],
};

export function FeatureView({ meta, number }) {
  const { value: feature, error } = useAsked(() => get(`features/${number}.json`), [number]);
  const [heat, setHeat] = useState(true);
  const next = useAsked(() => beside(meta, Number(number)), [number]).value || [null, null];
  useEffect(() => {
    const listen = (event) => {
      if (typing(event)) return;
      if (event.key === 'ArrowLeft' && next[0] !== null) go(`feature/${next[0]}`);
      else if (event.key === 'ArrowRight' && next[1] !== null) go(`feature/${next[1]}`);
      else if (event.key === 'h') setHeat(!heat);
      else if (event.key === 'Escape') history.length > 1 ? history.back() : go('features');
    };
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  });
  if (error instanceof Missing) {
    return (
      <Empty title={`There is no feature ${number}`}>
        They are numbered from 0 to {count(meta.n_features - 1)}. <a href="#/">All features</a>
      </Empty>
    );
  }
  if (error) return <Failed error={error} />;
  if (!feature) return null;
  const { Drawing } = rendererOf(meta);
  return (
    <article class="feature">
      <Title feature={feature} next={next} />
      <div class="two">
        <aside>
          <Drawing drawing={feature.drawing} meta={meta} />
          <Facts feature={feature} meta={meta} />
          {feature.fired > 0 && <Activations feature={feature} />}
          {feature.by_class && feature.fired > 0 && <ByClass feature={feature} meta={meta} />}
        </aside>
        <Examples feature={feature} meta={meta} heat={heat} setHeat={setHeat} />
      </div>
      <Near feature={feature} meta={meta} />
    </article>
  );
}

function Title({ feature, next }) {
  const step = (to, sign, what) =>
    to === null ? (
      <span class="button off">{sign}</span>
    ) : (
      <a class="button" href={`#/feature/${to}`} title={`${what} feature (${sign})`} aria-label={`${what} feature`}>
        {sign}
      </a>
    );
  return (
    <div class="title">
      <div>
        <p class="crumb">
          <a href="#/">Features</a> / {feature.id}
        </p>
        <h1>{feature.label || `Feature ${feature.id}`}</h1>
        {feature.label && (
          <p class="note">
            <Hint of="label">automatic label</Hint>
          </p>
        )}
      </div>
      <div class="steps">
        {step(next[0], '←', 'previous')}
        {step(next[1], '→', 'next')}
      </div>
    </div>
  );
}

function Facts({ feature, meta }) {
  const facts = [
    ['fires', meta.kind === 'logistic' ? 'above ½ on' : 'fires on', percent(feature.density), plural(feature.fired, meta.noun)],
    ['max', 'max', short(feature.max)],
    ['mean', 'mean', short(feature.mean)],
    ['norm', 'norm', short(feature.norm)],
  ];
  return (
    <dl class="tiles-of-numbers">
      {facts.map(([hint, name, value, more]) => (
        <div key={name}>
          <dt>
            <Hint of={hint}>{name}</Hint>
          </dt>
          <dd>
            {value}
            {more && <small>{more}</small>}
          </dd>
        </div>
      ))}
      {feature.dead ? <p class="mark">never fired on the {meta.noun}s read</p> : feature.dense ? <p class="mark">fires on more than a tenth of the {meta.noun}s</p> : null}
    </dl>
  );
}

function Activations({ feature }) {
  return (
    <section>
      <h3>
        <Hint of="histogram">Activations</Hint>
      </h3>
      <Histogram {...feature.histogram} height={130} label="histogram of activations" />
    </section>
  );
}

function ByClass({ feature, meta }) {
  const shares = feature.by_class.map((n, i) => ({ name: meta.classes[i], share: meta.class_counts[i] ? n / meta.class_counts[i] : 0 }));
  const most = Math.max(...shares.map((s) => s.share), 1e-9);
  const shown = [...shares].sort((a, b) => b.share - a.share).slice(0, 10);
  return (
    <section>
      <h3>
        <span title="share of the rows with each label on which the feature fires; labels were never trained on">Fires on {meta.noun}s labelled</span>
      </h3>
      <ul class="classes">
        {shown.map(({ name, share }) => (
          <li key={name}>
            <span class="name">{name}</span>
            <span class="track">
              <i style={{ width: `${(100 * share) / most}%` }} />
            </span>
            <span class="number">{percent(share)}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Examples({ feature, meta, heat, setHeat }) {
  const { layout, hint, Example } = rendererOf(meta);
  const { rows, values, ...marks } = feature.examples;
  const arrays = Object.fromEntries(Object.entries(marks).map(([name, packed]) => [name, unpack(packed)]));
  const numbers = unpack(values).values;
  let start = 0;
  const groups = meta.groups.map(({ name, n }) => {
    const places = [...Array(n).keys()].map((i) => start + i).filter((i) => rows[i] >= 0 && feature.rows[rows[i]]);
    start += n;
    return { name, places };
  });
  const filled = groups.filter(({ places }) => places.length);
  const hasHeat = 'heat' in arrays;
  const strongest = Math.max(Math.abs(feature.max), 1e-30);
  return (
    <section class="examples">
      {hasHeat && (
        <label class="switch">
          <input type="checkbox" checked={heat} onChange={() => setHeat(!heat)} /> <Hint of={hint}>heat</Hint>
        </label>
      )}
      {!filled.some(({ name }) => name !== 'miss') && (
        <Empty title="It never fired">
          None of the {count(meta.n_rows)} {meta.noun}s that were read made this feature fire, so there is nothing to show. More may: fewfire explore RUN --rows N.
        </Empty>
      )}
      <div class="groups">
        {filled.map(({ name, places }) => (
          <div key={name} class={`group group-${name}`}>
            <h3>
              <Hint of={TITLES[name][1]}>{TITLES[name][0]}</Hint>
            </h3>
            <div class={layout}>
              {places.map((i) => {
                const row = feature.rows[rows[i]];
                const own = Object.fromEntries(Object.entries(arrays).map(([key, array]) => [key, part(array, i)]));
                return (
                  <a key={i} class="example" href={`#/row/${rows[i]}`} title={`row ${row.row}${row.label ? `, labelled ${row.label}` : ''}`}>
                    <Example row={row} marks={own} heat={heat} meta={meta} />
                    <span class="value">
                      {name !== 'miss' && (
                        <span class="track">
                          <i style={{ width: `${Math.min(100, (100 * Math.abs(numbers[i])) / strongest)}%` }} />
                        </span>
                      )}
                      <b class="number">{short(numbers[i])}</b>
                      {row.label && <small>{row.label}</small>}
                    </span>
                  </a>
                );
              })}
            </div>
          </div>
        ))}
      </div>
    </section>
  );
}

function Near({ feature, meta }) {
  const lists = [
    ['angle', 'Point the same way'],
    ['firing', 'Fire together'],
  ].filter(([name]) => feature.near[name].length);
  return (
    <div class="two-even">
      {lists.map(([name, title]) => (
        <section key={name}>
          <h3>
            <Hint of={name}>{title}</Hint>
          </h3>
          <ul class="near">
            {feature.near[name].map(([id, likeness]) => {
              const other = feature.named[id];
              return (
                <li key={id}>
                  <a href={`#/feature/${id}`}>
                    <span class="look">{lookOf(meta, other, 30)}</span>
                    <span class="id number">{id}</span>
                    <span class="label">{other.label || <i>unnamed</i>}</span>
                    <span class="number">{likeness.toFixed(2)}</span>
                  </a>
                </li>
              );
            })}
          </ul>
        </section>
      ))}
    </div>
  );
}
