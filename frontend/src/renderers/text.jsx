export const layout = 'lines';
export const hint = 'tokens';
export const Look = null;

/** White space as it reads on a line. */
const flat = (piece) => piece.replace(/\s+/g, ' ');

/** Pieces of a text, each as warm as the feature fires on it; the row's own is marked. */
function Pieces({ look, heat, around }) {
  return (
    <span class="text">
      {look.pieces.map((piece, i) => {
        const warmth = heat ? heat.values[i - look.at + around] / 255 : 0;
        const style = warmth ? { background: `color-mix(in srgb, var(--heat) ${Math.round(75 * warmth)}%, transparent)` } : undefined;
        const [, word, space] = /^(.*?)(\s*)$/s.exec(piece);
        return (
          <>
            <span key={i} class={i === look.at ? 'own' : undefined} style={style}>
              {flat(word)}
            </span>
            {flat(space)}
          </>
        );
      })}
    </span>
  );
}

export function Example({ row, marks, heat, meta }) {
  return <Pieces look={row.look} heat={heat ? marks.heat : undefined} around={meta.about.around} />;
}

export const Drawing = () => null;

export function Whole({ row, meta, brief }) {
  const { document, span } = row.look;
  const whole = row.documents && row.documents[document];
  if (brief || !whole) return <Pieces look={row.look} around={meta.about.around} />;
  const [start, end] = meta.about.per === 'token' ? span : [0, 0];
  return (
    <div class="document">
      <p class="note">
        document {document}
        {whole.label ? `, labelled ${whole.label}` : ''}
      </p>
      <p class="text long">
        {whole.text.slice(0, start)}
        <mark>{whole.text.slice(start, end)}</mark>
        {whole.text.slice(end)}
        {whole.length > whole.text.length ? ' …' : ''}
      </p>
    </div>
  );
}
