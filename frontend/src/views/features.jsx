import { useEffect, useRef, useState } from 'preact/hooks';
import { features } from '../api.js';
import { typing } from '../app.jsx';
import { count, percent, plural, short } from '../format.js';
import { Empty, Failed, useAsked } from '../parts/asked.jsx';
import { Hint } from '../parts/hint.jsx';
import { Histogram } from '../parts/plot.jsx';
import { Spark } from '../parts/spark.jsx';
import { VirtualList } from '../parts/virtual.jsx';
import { lookOf } from '../renderers/index.js';
import { adjust, go } from '../route.js';

const SHOWN = [
  ['all', 'All'],
  ['alive', 'Alive'],
  ['dense', 'Dense'],
  ['dead', 'Dead'],
  ['labelled', 'Labelled'],
];
const COLUMNS = [
  ['id', '#', null, 'asc'],
  ['label', 'Label', 'label', 'asc'],
  ['density', 'Fires on', 'fires', 'desc'],
  ['max', 'Max', 'max', 'desc'],
  ['mean', 'Mean', 'mean', 'desc'],
  ['norm', 'Norm', 'norm', 'desc'],
];
const LINE = 44;
const TILE = 84;

export function FeaturesView({ meta, query }) {
  const options = {
    sort: query.get('sort') || (query.get('q') && !meta.static ? 'match' : 'density'),
    order: query.get('order') || 'desc',
    show: query.get('show') || 'all',
    q: query.get('q') || '',
  };
  const hasLooks = meta.renderer === 'image';
  const wall = hasLooks && query.get('as') === 'wall';
  const change = (more) => {
    const next = { ...options, sort: query.get('sort') || '', as: query.get('as') || '', ...more };
    const usual = { sort: '', order: 'desc', show: 'all', q: '', as: '' };
    adjust('features', Object.fromEntries(Object.entries(next).filter(([key, value]) => value !== usual[key])));
  };
  const keys = [options.sort, options.order, options.show, options.q];
  const { value, error } = useAsked(() => features(meta, { ...options, limit: 100 }), keys);
  const [at, setAt] = useState(-1);
  useEffect(() => setAt(-1), keys);
  const total = value ? value.total : 0;
  remember(meta, options);
  useListKeys(at, setAt, total, async (i) => {
    const found = await features(meta, { ...options, offset: i - (i % 100), limit: 100 });
    go(`feature/${found.features[i % 100].id}`);
  });
  return (
    <div class="features">
      <Lead meta={meta} />
      <Controls meta={meta} options={options} change={change} total={value && value.total} wall={wall} hasLooks={hasLooks} />
      {error ? (
        <Failed error={error} />
      ) : value && !total ? (
        <Nothing options={options} meta={meta} change={change} />
      ) : (
        <List meta={meta} options={options} total={total} at={at} wall={wall} change={change} keys={[...keys, wall]} />
      )}
    </div>
  );
}

let lastOptions = {};
const remember = (meta, options) => {
  lastOptions = options;
};

/** The features before and after one, in the order of the list that was seen last. */
export async function beside(meta, id) {
  const found = await features(meta, { ...lastOptions, limit: 500 });
  const i = found.features.findIndex((f) => f.id === id);
  if (i < 0) return [id > 0 ? id - 1 : null, id < meta.n_features - 1 ? id + 1 : null];
  return [found.features[i - 1]?.id ?? null, found.features[i + 1]?.id ?? null];
}

function Lead({ meta }) {
  const verb = { sparse: 'fire', logistic: 'rise above ½', normal: 'vary' }[meta.kind];
  return (
    <section class="lead">
      <div>
        <h1>
          {plural(meta.n_features, 'feature')} of {meta.data}
        </h1>
        <p>
          A <Hint of="feature">feature</Hint> is a pattern that the model learned to look for
          {meta.kind === 'normal' ? '.' : `; on an average ${meta.noun}, ${short(meta.l0)} of them ${verb}.`} Pick one to see the {meta.noun}s that make it fire,
          and judge for yourself what it means.
        </p>
        <p class="facts">
          <span>
            <b>{count(meta.n_rows)}</b> {meta.noun}s read
          </span>
          {meta.kind === 'sparse' && (
            <span>
              <b>{count(meta.n_dead)}</b> <Hint of="dead">dead</Hint>
            </span>
          )}
          {meta.kind !== 'normal' && (
            <span>
              <b>{count(meta.n_dense)}</b> <Hint of="dense">dense</Hint>
            </span>
          )}
        </p>
      </div>
      {meta.kind !== 'normal' && (
        <figure class="overview">
          <Histogram {...meta.density} height={92} log ticks={(t) => `${Number((100 * 10 ** t).toPrecision(1))}%`} label="how many features fire how often" />
          <figcaption>
            features by how often they <Hint of="fires">fire</Hint>
          </figcaption>
        </figure>
      )}
    </section>
  );
}

function Controls({ meta, options, change, total, wall, hasLooks }) {
  const field = useRef();
  const [text, setText] = useState(options.q);
  useEffect(() => setText(options.q), [options.q]);
  useEffect(() => {
    if (text === options.q) return undefined;
    const timer = setTimeout(() => change({ q: text }), 120);
    return () => clearTimeout(timer);
  }, [text]);
  useEffect(() => {
    const listen = (event) => {
      if (event.key === '/' && !typing(event)) {
        event.preventDefault();
        field.current.focus();
      }
    };
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  }, []);
  return (
    <div class="controls">
      <input
        ref={field}
        type="search"
        value={text}
        onInput={(e) => setText(e.target.value)}
        onKeyDown={(e) => e.key === 'Escape' && (setText(''), e.target.blur())}
        placeholder={meta.static ? 'Search labels' : 'Search labels and examples'}
        title={meta.static ? 'These are files: labels alone are searched. fewfire explore RUN also searches the examples.' : undefined}
        aria-label="Search"
        maxLength={200}
      />
      <div class="chips" role="group" aria-label="Show">
        {SHOWN.map(([key, title]) => (
          <button key={key} class={options.show === key ? 'on' : ''} aria-pressed={options.show === key} onClick={() => change({ show: key })}>
            {title}
          </button>
        ))}
      </div>
      <select class="sort" aria-label="Sort by" value={options.sort} onChange={(e) => change({ sort: e.target.value, order: COLUMNS.find(([key]) => key === e.target.value)[3] })}>
        {COLUMNS.map(([key, title]) => (
          <option key={key} value={key}>
            {title}
          </option>
        ))}
      </select>
      {hasLooks && (
        <div class="chips" role="group" aria-label="As">
          <button class={wall ? '' : 'on'} aria-pressed={!wall} onClick={() => change({ as: '' })}>
            List
          </button>
          <button class={wall ? 'on' : ''} aria-pressed={wall} onClick={() => change({ as: 'wall' })}>
            Wall
          </button>
        </div>
      )}
      <span class="total" aria-live="polite">
        {total === undefined ? '' : total === meta.n_features ? plural(total, 'feature') : `${count(total)} of ${plural(meta.n_features, 'feature')}`}
      </span>
    </div>
  );
}

function List({ meta, options, total, at, wall, change, keys }) {
  const [width, setWidth] = useState(innerWidth);
  useEffect(() => {
    const listen = () => setWidth(innerWidth);
    addEventListener('resize', listen);
    return () => removeEventListener('resize', listen);
  }, []);
  const load = async (offset, limit) => (await features(meta, { ...options, offset, limit })).features;
  const most = meta.most_often || 1;
  if (wall) {
    const across = Math.max(3, Math.floor((Math.min(width, 1240) - 40) / TILE));
    const tile = (f, i) => (
      <a key={i} class={`tile ${i === at ? 'on' : ''}`} href={f ? `#/feature/${f.id}` : undefined} title={f && `${f.id}: ${f.label}, fires on ${percent(f.density)}`}>
        {f && lookOf(meta, f, 60)}
        <span>{f ? f.id : ''}</span>
      </a>
    );
    return <VirtualList total={total} height={TILE + 10} across={across} load={load} item={tile} keys={keys} at={at} label="Features" />;
  }
  const line = (f, i) => (
    <a key={i} role="row" class={`line ${i === at ? 'on' : ''}`} href={f ? `#/feature/${f.id}` : undefined}>
      {f && (
        <>
          <span class="id number">{f.id}</span>
          <span class="look">{lookOf(meta, f, 32)}</span>
          <span class="label">
            {f.label || <i>unnamed</i>} {f.dead ? <em class="mark">dead</em> : f.dense ? <em class="mark">dense</em> : null}
          </span>
          <span class="share">
            <i style={{ width: `${100 * (f.density / most)}%` }} />
            <b class="number">{percent(f.density)}</b>
          </span>
          <span class="number">{short(f.max)}</span>
          <span class="number">{short(f.mean)}</span>
          <span class="number">{short(f.norm)}</span>
          <Spark of={f.spark} />
        </>
      )}
    </a>
  );
  return <VirtualList total={total} height={LINE} load={load} item={line} keys={keys} at={at} label="Features" head={<Head options={options} change={change} />} />;
}

function Head({ options, change }) {
  const turn = (key, usual) => change(options.sort === key ? { order: options.order === 'desc' ? 'asc' : 'desc' } : { sort: key, order: usual });
  const cell = ([key, title, hint, usual]) => (
    <span key={key} class={`head-${key}`} role="columnheader" aria-sort={options.sort === key ? (options.order === 'desc' ? 'descending' : 'ascending') : 'none'}>
      <button class={options.sort === key ? 'on' : ''} onClick={() => turn(key, usual)}>
        {title}
        {options.sort === key ? (options.order === 'desc' ? ' ↓' : ' ↑') : ''}
      </button>
      {hint && <Hint of={hint}>?</Hint>}
    </span>
  );
  const [id, label, ...rest] = COLUMNS.map(cell);
  return (
    <div class="line head" role="row">
      {id}
      <span class="look" />
      {label}
      {rest}
      <span class="head-spark">
        Activations <Hint of="histogram">?</Hint>
      </span>
    </div>
  );
}

function Nothing({ options, meta, change }) {
  const clear = <button onClick={() => change({ q: '', show: 'all' })}>Show all features</button>;
  if (options.q) {
    return (
      <Empty title={`Nothing has “${options.q}” in it`}>
        {meta.static ? 'Only labels are searched in an export. ' : 'Every word must be in the label or in the text of the examples. '} {clear}
      </Empty>
    );
  }
  const why = { dead: 'Every feature fired on some row.', dense: 'No feature fires on more than a tenth of the rows.', labelled: 'These data give no names to label features with.' };
  return (
    <Empty title={`No ${options.show} features`}>
      {why[options.show]} {clear}
    </Empty>
  );
}

/** Keys of a list. Several may be pressed before the next drawing, so the place is kept beside the state. */
export function useListKeys(at, setAt, total, open) {
  const now = useRef(at);
  now.current = at;
  useEffect(() => {
    const listen = (event) => {
      if (typing(event)) return;
      const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        document.activeElement?.blur(); // a button that was clicked last must not take the Enter that follows
        now.current = Math.max(0, Math.min(total - 1, now.current + step));
        setAt(now.current);
      } else if (event.key === 'Enter' && now.current >= 0 && event.target.tagName !== 'A' && event.target.tagName !== 'BUTTON') open(now.current);
    };
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  });
}
