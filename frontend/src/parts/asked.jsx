import { useEffect, useState } from 'preact/hooks';

/** {value, error, waiting} of a promise made anew when the keys change; the last value stays until the next is there. */
export function useAsked(ask, keys) {
  const [state, setState] = useState({ waiting: true });
  useEffect(() => {
    let gone = false;
    setState((before) => ({ ...before, error: undefined, waiting: true }));
    ask().then(
      (value) => gone || setState({ value, waiting: false }),
      (error) => gone || setState({ error, waiting: false }),
    );
    return () => {
      gone = true;
    };
  }, keys);
  return state;
}

export function Empty({ title, children }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      <p>{children}</p>
    </div>
  );
}

export function Failed({ error }) {
  return <Empty title="This could not be loaded">{error.message}. Is `fewfire explore` still running? Reload the page to try again.</Empty>;
}
