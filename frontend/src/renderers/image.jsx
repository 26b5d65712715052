import { unpack } from '../api.js';
import { Pixels } from '../parts/canvas.jsx';
import { Hint } from '../parts/hint.jsx';
import { short } from '../format.js';

export const layout = 'tiles';
export const hint = 'heat';

export function Look({ look, size }) {
  return <Pixels picture={unpack(look)} size={size} label="" />;
}

export function Example({ row, marks, heat }) {
  return <Pixels picture={unpack(row.look.x)} heat={heat ? marks.heat : undefined} size={72} label={`row ${row.row}`} />;
}

export function Drawing({ drawing }) {
  if (!drawing.writes && !drawing.reads) return null;
  return (
    <div class="filters">
      {drawing.writes && (
        <figure>
          <Pixels picture={unpack(drawing.writes)} size={132} label="what the feature writes" />
          <figcaption>
            <Hint of="writes">writes</Hint>
          </figcaption>
        </figure>
      )}
      {drawing.reads && (
        <figure>
          <Pixels picture={unpack(drawing.reads)} size={132} label="what the feature looks for" />
          <figcaption>
            <Hint of="reads">looks for</Hint>
          </figcaption>
        </figure>
      )}
    </div>
  );
}

export function Whole({ row, brief }) {
  const { x, recon, target } = row.look;
  const size = brief ? 72 : 150;
  if (brief) {
    return (
      <div class="filters pair">
        {[target || x, recon].filter(Boolean).map((picture, i) => (
          <Pixels key={i} picture={unpack(picture)} size={size} label={i ? 'its reconstruction' : 'the row'} />
        ))}
      </div>
    );
  }
  const error = row.why.error && unpack(row.why.error);
  return (
    <div class="filters">
      <figure>
        <Pixels picture={unpack(x)} size={size} label="the row" />
        <figcaption>{target ? 'input' : 'original'}</figcaption>
      </figure>
      {target && (
        <figure>
          <Pixels picture={unpack(target)} size={size} label="its target" />
          <figcaption>target</figcaption>
        </figure>
      )}
      {recon && (
        <figure>
          <Pixels picture={unpack(recon)} size={size} label="its reconstruction" />
          <figcaption>reconstruction</figcaption>
        </figure>
      )}
      {error && recon && (
        <figure>
          <Pixels picture={unpack(target || x)} heat={error} size={size} label="where the error is" />
          <figcaption>
            <Hint of="error">error {short(row.score)}</Hint>
          </figcaption>
        </figure>
      )}
    </div>
  );
}
