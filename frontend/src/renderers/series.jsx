import { unpack } from '../api.js';
import { Canvas, colour, rgb } from '../parts/canvas.jsx';
import { Hint } from '../parts/hint.jsx';

export const layout = 'tiles';
export const hint = 'heat';
export const Look = ({ look, size }) => <Lines lines={[unpack(look)]} width={size * 1.6} height={size} />;

const MOST_CHANNELS = 8;

/** Channels one under the other, each in its own scale; the first series in ink, a second one in the accent's colour. */
function Lines({ lines, heat, width, height, label }) {
  const draw = (context) => {
    const [channels, length] = lines[0].shape;
    const shown = Math.min(channels, MOST_CHANNELS);
    const tall = height / shown;
    const x = (t) => (t / Math.max(1, length - 1)) * width;
    if (heat) warm(context, heat, shown, tall, width);
    for (let c = 0; c < shown; c++) {
      const all = lines.flatMap(({ values }) => [...values.subarray(c * length, (c + 1) * length)]);
      const [low, high] = [Math.min(...all), Math.max(...all)];
      const y = (v) => (c + 0.1 + 0.8 * (high > low ? (high - v) / (high - low) : 0.5)) * tall;
      lines.forEach(({ values }, i) => {
        context.strokeStyle = colour(i ? 'accent' : 'ink');
        context.lineWidth = i ? 1.5 : 1.1;
        context.beginPath();
        for (let t = 0; t < length; t++) context.lineTo(x(t), y(values[c * length + t]));
        context.stroke();
      });
    }
  };
  return <Canvas draw={draw} width={width} height={height} keys={[lines, heat]} label={label} />;
}

function warm(context, { shape, values }, shown, tall, width) {
  const [channels, length] = shape;
  const [r, g, b] = rgb(colour('heat'));
  const step = width / length;
  for (let c = 0; c < channels && c < shown; c++) {
    for (let t = 0; t < length; t++) {
      context.fillStyle = `rgba(${r},${g},${b},${(0.7 * values[c * length + t]) / 255})`;
      context.fillRect(t * step, c * tall, step + 0.5, channels === 1 ? tall * shown : tall);
    }
  }
}

export function Example({ row, marks, heat, meta }) {
  const height = 22 * Math.min(MOST_CHANNELS, meta.about.channels.length) + 30;
  return <Lines lines={[unpack(row.look.x)]} heat={heat ? marks.heat : undefined} width={170} height={height} label={`row ${row.row}`} />;
}

export function Drawing({ drawing, meta }) {
  if (!drawing.writes) return null;
  const height = 24 * Math.min(MOST_CHANNELS, meta.about.channels.length) + 40;
  return (
    <figure>
      <Lines lines={[unpack(drawing.writes)]} width={272} height={height} label="what the feature writes" />
      <figcaption>
        <Hint of="writes">writes</Hint> · {meta.about.channels.slice(0, MOST_CHANNELS).join(', ')}
      </figcaption>
    </figure>
  );
}

export function Whole({ row, meta, brief }) {
  const lines = [row.look.target || row.look.x, row.look.recon].filter(Boolean).map(unpack);
  const n = Math.min(MOST_CHANNELS, meta.about.channels.length);
  const [width, height] = brief ? [200, 22 * n + 30] : [560, 44 * n + 60];
  return (
    <figure>
      <Lines lines={lines} width={Math.min(width, innerWidth - 60)} height={height} label="the row and its reconstruction" />
      {!brief && (
        <figcaption>
          original <span class="in-accent">and reconstruction</span> · {meta.about.channels.slice(0, MOST_CHANNELS).join(', ')}
        </figcaption>
      )}
    </figure>
  );
}
