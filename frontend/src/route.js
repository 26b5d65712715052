// Where we are, in the part of the address behind "#": a permalink that needs nothing of a server.
import { useEffect, useState } from 'preact/hooks';

function read() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  return { parts: path.split('/').filter(Boolean), query: new URLSearchParams(query) };
}

export function useRoute() {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const listen = () => setRoute(read());
    addEventListener('hashchange', listen);
    return () => removeEventListener('hashchange', listen);
  }, []);
  return route;
}

export function link(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== '');
  return `#/${path}${given.length ? `?${new URLSearchParams(given)}` : ''}`;
}

export const go = (path, query) => {
  location.hash = link(path, query);
};

/** Change what is behind the "?" without a step in the browser's history. */
export function adjust(path, query) {
  history.replaceState(null, '', link(path, query));
  dispatchEvent(new HashChangeEvent('hashchange'));
}
