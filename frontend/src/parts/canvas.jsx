import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';

/** The colours of the theme, as numbers that a canvas takes. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** "#rrggbb" -> [r, g, b]. */
export const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** A canvas of CSS size (width, height) that is drawn again with its theme. */
export function Canvas({ draw, width, height, keys, label, ...rest }) {
  const ref = useRef();
  const paint = () => {
    const canvas = ref.current;
    if (!canvas) return;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    draw(context, width, height);
  };
  useLayoutEffect(paint, [width, height, ...keys]);
  useEffect(() => {
    addEventListener('theme', paint);
    return () => removeEventListener('theme', paint);
  });
  return <canvas ref={ref} style={{ width: `${width}px`, height: `${height}px` }} role="img" aria-label={label} {...rest} />;
}

/** Pixels (h, w) or (h, w, 3), 0 to 255, with squares that stay square, and heat laid over them in the accent's colour. */
export function Pixels({ picture, heat, size, label }) {
  const ref = useRef();
  const [h, w] = picture.shape;
  const zoom = size / Math.max(h, w);
  const paint = () => {
    const canvas = ref.current;
    if (!canvas) return;
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext('2d');
    context.putImageData(mixed(context.createImageData(w, h), picture, heat), 0, 0);
  };
  useLayoutEffect(paint, [picture, heat, size]);
  useEffect(() => {
    addEventListener('theme', paint);
    return () => removeEventListener('theme', paint);
  });
  const style = { width: `${Math.round(w * zoom)}px`, height: `${Math.round(h * zoom)}px` };
  return <canvas ref={ref} class="pixels" style={style} role="img" aria-label={label} />;
}

function mixed(image, picture, heat) {
  const channels = picture.shape[2] || 1;
  const accent = rgb(colour('heat'));
  for (let i = 0; i < image.width * image.height; i++) {
    const share = heat ? 0.8 * (heat.values[i] / 255) : 0;
    for (let c = 0; c < 3; c++) {
      const grey = picture.values[i * channels + (channels === 3 ? c : 0)];
      image.data[4 * i + c] = grey + share * (accent[c] - grey);
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}
