import { useEffect, useState } from 'preact/hooks';
import { get } from './api.js';
import { count } from './format.js';
import { Empty, Failed, useAsked } from './parts/asked.jsx';
import { go, useRoute } from './route.js';
import { FeatureView } from './views/feature.jsx';
import { FeaturesView } from './views/features.jsx';
import { MapView } from './views/map.jsx';
import { RowView } from './views/row.jsx';
import { RowsView } from './views/rows.jsx';
import { RunView } from './views/run.jsx';

const TABS = [
  ['features', 'Features'],
  ['map', 'Map'],
  ['rows', 'Data'],
  ['run', 'Run'],
];

export function App() {
  const { value: meta, error } = useAsked(() => get('meta.json'), []);
  const route = useRoute();
  const [name = 'features', number] = route.parts;
  const [help, setHelp] = useState(false);
  useShortcuts(setHelp);
  useEffect(() => {
    if (meta) document.title = `${number !== undefined ? `${name} ${number} · ` : ''}${meta.name} · fewfire`;
  }, [meta, name, number]);
  if (error) return <Failed error={error} />;
  if (!meta) return null;
  const tab = { feature: 'features', row: 'rows' }[name] || name;
  return (
    <>
      <header class="top">
        <a class="brand" href="#/" title="fewfire explorer">
          <img src="./spark.svg" alt="" width="20" height="20" />
          <span>{meta.name}</span>
        </a>
        <nav aria-label="Views">
          {TABS.map(([key, title]) => (
            <a key={key} href={`#/${key}`} class={tab === key ? 'on' : ''} aria-current={tab === key ? 'page' : undefined}>
              {title}
            </a>
          ))}
        </nav>
        <div class="tools">
          <Jump most={meta.n_features} />
          <button class="quiet" onClick={() => setHelp(true)} title="Keys (?)" aria-label="Keys">
            ?
          </button>
          <Theme />
        </div>
      </header>
      <main>
        <View meta={meta} name={name} number={number} query={route.query} />
      </main>
      {help && <Help close={() => setHelp(false)} />}
    </>
  );
}

function View({ meta, name, number, query }) {
  if (name === 'features') return <FeaturesView meta={meta} query={query} />;
  if (name === 'feature') return <FeatureView key={number} meta={meta} number={number} />;
  if (name === 'map') return <MapView meta={meta} query={query} />;
  if (name === 'rows') return <RowsView meta={meta} query={query} />;
  if (name === 'row') return <RowView key={number} meta={meta} number={number} />;
  if (name === 'run') return <RunView meta={meta} />;
  return (
    <Empty title="There is no such page">
      <a href="#/">All features</a> are a good place to start.
    </Empty>
  );
}

/** A field that takes a feature's number. */
function Jump({ most }) {
  const submit = (event) => {
    event.preventDefault();
    const field = event.target.elements.number;
    const wanted = Number(field.value);
    if (field.value !== '' && Number.isInteger(wanted) && wanted >= 0 && wanted < most) {
      go(`feature/${wanted}`);
      field.value = '';
      field.blur();
    } else field.select();
  };
  return (
    <form class="jump" onSubmit={submit}>
      <input name="number" inputMode="numeric" placeholder="#" aria-label={`Go to feature, 0 to ${count(most - 1)}`} title={`Go to feature, 0 to ${count(most - 1)}`} autocomplete="off" />
    </form>
  );
}

function Theme() {
  const [theme, setTheme] = useState(() => saved());
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
    dispatchEvent(new Event('theme'));
  }, [theme]);
  useEffect(() => {
    const system = matchMedia('(prefers-color-scheme: dark)');
    const listen = () => dispatchEvent(new Event('theme'));
    system.addEventListener('change', listen);
    return () => system.removeEventListener('change', listen);
  }, []);
  const turn = () => {
    const dark = theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    const next = dark ? 'light' : 'dark';
    try {
      localStorage.setItem('theme', next);
    } catch {
      // a browser that keeps nothing: then for this page
    }
    setTheme(next);
  };
  return (
    <button class="quiet" onClick={turn} title="Light or dark" aria-label="Light or dark">
      ◐
    </button>
  );
}

function saved() {
  try {
    return localStorage.getItem('theme');
  } catch {
    return null;
  }
}

const KEYS = [
  ['1 2 3 4', 'features, map, data, run'],
  ['/', 'search'],
  ['#', 'go to a feature by its number'],
  ['j k', 'down, up in the list'],
  ['Enter', 'open what is chosen'],
  ['← →', 'previous, next feature or row'],
  ['h', 'heat on and off'],
  ['Esc', 'back to the list'],
];

function Help({ close }) {
  useEffect(() => {
    const listen = (event) => event.key === 'Escape' && close();
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  });
  return (
    <div class="veil" onClick={close}>
      <div class="dialog" role="dialog" aria-label="Keys" onClick={(e) => e.stopPropagation()}>
        <h2>Keys</h2>
        <dl>
          {KEYS.map(([keys, what]) => (
            <div key={keys}>
              <dt>
                {keys.split(' ').map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
        <button onClick={close} autofocus>
          Close
        </button>
      </div>
    </div>
  );
}

/** Whether keys are meant for a field. */
export const typing = (event) => event.ctrlKey || event.metaKey || event.altKey || (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'checkbox');

function useShortcuts(setHelp) {
  useEffect(() => {
    const listen = (event) => {
      if (typing(event)) return;
      const place = TABS[Number(event.key) - 1];
      if (place) go(place[0]);
      else if (event.key === '?') setHelp(true);
      else if (event.key === '#') {
        event.preventDefault();
        document.querySelector('.jump input').focus();
      }
    };
    addEventListener('keydown', listen);
    return () => removeEventListener('keydown', listen);
  }, []);
}
