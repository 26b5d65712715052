import { TERMS } from '../terms.js';

/** A word that explains itself on hover and on focus. */
export function Hint({ of, children }) {
  return (
    <span class="hint" tabIndex={0}>
      {children}
      <span class="tip" role="tooltip">
        {TERMS[of]}
      </span>
    </span>
  );
}
