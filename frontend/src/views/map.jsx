import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks';
import { features, get, unpack } from '../api.js';
import { count, percent, plural } from '../format.js';
import { Failed, useAsked } from '../parts/asked.jsx';
import { colour, rgb } from '../parts/canvas.jsx';
import { Hint } from '../parts/hint.jsx';
import { lookOf } from '../renderers/index.js';
import { adjust, go } from '../route.js';

// Okabe & Ito 2008, and more to tell up to 20 apart
const CLASSES = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8a5cd0', '#8c6d31', '#e0457b', '#5f8f00', '#00a6a6', '#b04a4a', '#4c6ef5', '#c0a000', '#7f7f7f', '#a0522d', '#2e8b57', '#ba55d3', '#ff7f50', '#708090'];
const NEAR = 14;

export function MapView({ meta, query }) {
  const { value: map, error } = useAsked(() => get('map.json'), []);
  if (error) return <Failed error={error} />;
  if (!map) return null;
  return <Atlas meta={meta} map={map} query={query} />;
}

function Atlas({ meta, map, query }) {
  const dots = useMemo(() => read(map), [map]);
  const coloured = useMemo(() => dots.group.reduce((n, c) => n + (c >= 0), 0) > dots.n / 10, [dots]);
  const by = query.get('by') || (coloured ? 'label' : 'density');
  const [view, setView] = useState({ x: 0, y: 0, zoom: 1 });
  const [over, setOver] = useState(null);
  const [text, setText] = useState(query.get('q') || '');
  const found = useFound(meta, text);
  const box = useRef();
  const canvas = useRef();
  const [size, setSize] = useState([800, 600]);
  useLayoutEffect(() => {
    const sized = new ResizeObserver(() => box.current && setSize([box.current.clientWidth, box.current.clientHeight]));
    sized.observe(box.current);
    return () => sized.disconnect();
  }, []);
  const paint = () => draw(canvas.current, size, dots, view, colours(dots, by), found, over);
  useLayoutEffect(paint, [size, dots, view, by, found, over]);
  useEffect(() => {
    addEventListener('theme', paint);
    return () => removeEventListener('theme', paint);
  });
  const events = usePointer(canvas, size, dots, view, setView, over, setOver);
  return (
    <div class="map">
      <div class="controls">
        <input type="search" value={text} placeholder="Light up features" aria-label="Search" maxLength={200} onInput={(e) => setText(e.target.value)} />
        <div class="chips" role="group" aria-label="Colour by">
          {['density', ...(meta.classes.length ? ['label'] : [])].map((key) => (
            <button key={key} class={by === key ? 'on' : ''} aria-pressed={by === key} onClick={() => adjust('map', { by: key })}>
              {key === 'density' ? 'How often they fire' : 'Label'}
            </button>
          ))}
        </div>
        <button onClick={() => setView({ x: 0, y: 0, zoom: 1 })}>Whole map</button>
        <span class="total">{found ? `${plural(found.size, 'feature')} lit${found.size >= 500 ? ', the first 500' : ''}` : plural(dots.n, 'feature')}</span>
      </div>
      <div class="atlas" ref={box}>
        <canvas ref={canvas} {...events} tabIndex={0} role="img" aria-label="Map of all features" />
        {over && <Card meta={meta} over={over} size={size} />}
      </div>
      <Legend meta={meta} by={by} />
      <p class="note">
        <Hint of="map">How to read the map</Hint> Drag to move, scroll to come nearer, click a dot to open its feature.
      </p>
    </div>
  );
}

function read(map) {
  const places = unpack(map.places).values;
  const dots = { n: places.length / 2, x: new Float32Array(places.length / 2), y: new Float32Array(places.length / 2) };
  for (let i = 0; i < dots.n; i++) {
    dots.x[i] = places[2 * i] / 32767;
    dots.y[i] = places[2 * i + 1] / 32767;
  }
  return { ...dots, density: unpack(map.density).values, dead: unpack(map.dead).values, group: unpack(map.group).values };
}

/** Features that a search finds, at most 500; null without one. */
function useFound(meta, text) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    if (!text.trim()) return setFound(null);
    let gone = false;
    const timer = setTimeout(() => {
      features(meta, { q: text, limit: 500 }).then((answer) => gone || setFound(new Set(answer.features.map((f) => f.id))));
    }, 150);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [text]);
  return found;
}

/** A function from a dot to [r, g, b]. */
function colours(dots, by) {
  const [ink, accent, faint] = ['dot', 'accent', 'faint'].map((name) => rgb(colour(name)));
  if (by === 'label') {
    const palette = CLASSES.map(rgb);
    return (i) => (dots.group[i] >= 0 ? palette[dots.group[i] % palette.length] : faint);
  }
  const alive = dots.density.filter((d) => d > 0);
  const low = Math.log(alive.reduce((a, b) => Math.min(a, b), 1));
  const high = Math.log(alive.reduce((a, b) => Math.max(a, b), 1e-9));
  return (i) => {
    if (!dots.density[i]) return faint;
    const share = high > low ? (Math.log(dots.density[i]) - low) / (high - low) : 1;
    return ink.map((c, k) => c + share * (accent[k] - c));
  };
}

const place = (dots, i, [width, height], { x, y, zoom }) => {
  const scale = (Math.min(width, height) / 2 - 18) * zoom;
  return [width / 2 + (dots.x[i] - x) * scale, height / 2 + (dots.y[i] - y) * scale];
};

/** All dots, written into the pixels themselves: 100,000 take a few milliseconds, and need no WebGL. */
function draw(canvas, size, dots, view, paint, found, over) {
  if (!canvas) return;
  const ratio = devicePixelRatio || 1;
  const [width, height] = size.map((s) => Math.max(1, Math.round(s * ratio)));
  canvas.width = width;
  canvas.height = height;
  canvas.style.width = `${size[0]}px`;
  canvas.style.height = `${size[1]}px`;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const radius = Math.max(1, Math.min(7, (260 / Math.sqrt(dots.n)) * Math.sqrt(view.zoom))) * ratio * 0.5;
  const stamp = disc(radius);
  for (const lit of found ? [false, true] : [true]) {
    for (let i = 0; i < dots.n; i++) {
      if (found && found.has(i) !== lit) continue;
      const [x, y] = place(dots, i, size, view);
      splat(image, stamp, x * ratio, y * ratio, paint(i), lit ? 1 : 0.12);
    }
  }
  context.putImageData(image, 0, 0);
  if (over) {
    const [x, y] = place(dots, over.id, size, view);
    context.scale(ratio, ratio);
    context.strokeStyle = colour('ink');
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x, y, radius / ratio + 3, 0, 7);
    context.stroke();
  }
}

/** Offsets and opacities of the pixels of a disc. */
function disc(radius) {
  const pixels = [];
  const reach = Math.ceil(radius);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const share = Math.min(1, radius + 0.5 - Math.hypot(dx, dy));
      if (share > 0) pixels.push([dx, dy, share]);
    }
  }
  return pixels;
}

function splat({ data, width, height }, stamp, x, y, [r, g, b], strength) {
  const [cx, cy] = [Math.round(x), Math.round(y)];
  if (cx < -20 || cy < -20 || cx > width + 20 || cy > height + 20) return;
  for (const [dx, dy, share] of stamp) {
    const [px, py] = [cx + dx, cy + dy];
    if (px < 0 || py < 0 || px >= width || py >= height) continue;
    const at = 4 * (py * width + px);
    const over = 0.85 * share * strength;
    const under = (data[at + 3] / 255) * (1 - over);
    const all = over + under || 1;
    data[at] = (r * over + data[at] * under) / all;
    data[at + 1] = (g * over + data[at + 1] * under) / all;
    data[at + 2] = (b * over + data[at + 2] * under) / all;
    data[at + 3] = 255 * all;
  }
}

function nearest(dots, size, view, x, y) {
  let best = NEAR * NEAR;
  let id = -1;
  for (let i = 0; i < dots.n; i++) {
    const [px, py] = place(dots, i, size, view);
    const apart = (px - x) ** 2 + (py - y) ** 2;
    if (apart < best) [best, id] = [apart, i];
  }
  return id;
}

function usePointer(canvas, size, dots, view, setView, over, setOver) {
  const held = useRef(null);
  const local = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  useEffect(() => {
    const wheel = (event) => {
      event.preventDefault();
      const [x, y] = local(event);
      setView((v) => {
        const zoom = Math.max(0.5, Math.min(400, v.zoom * Math.exp(-event.deltaY / 300)));
        const unit = Math.min(...size) / 2 - 18;
        const [dx, dy] = [(x - size[0] / 2) / unit, (y - size[1] / 2) / unit];
        return { zoom, x: v.x + dx / v.zoom - dx / zoom, y: v.y + dy / v.zoom - dy / zoom };
      });
    };
    const element = canvas.current;
    element.addEventListener('wheel', wheel, { passive: false });
    return () => element.removeEventListener('wheel', wheel);
  }, [size]);
  return {
    onPointerDown: (event) => {
      held.current = { at: local(event), view, moved: false };
      canvas.current.setPointerCapture(event.pointerId);
    },
    onPointerMove: (event) => {
      const [x, y] = local(event);
      if (held.current) {
        const unit = (Math.min(...size) / 2 - 18) * view.zoom;
        const [dx, dy] = [x - held.current.at[0], y - held.current.at[1]];
        if (Math.hypot(dx, dy) > 4) held.current.moved = true;
        setView({ ...view, x: held.current.view.x - dx / unit, y: held.current.view.y - dy / unit });
        return;
      }
      const id = nearest(dots, size, view, x, y);
      setOver(id < 0 ? null : { id, x, y });
    },
    onPointerUp: (event) => {
      const moved = held.current?.moved;
      held.current = null;
      if (moved) return;
      const id = nearest(dots, size, view, ...local(event));
      if (id >= 0) go(`feature/${id}`);
    },
    onPointerLeave: () => setOver(null),
  };
}

/** What the dot under the pointer is. */
function Card({ meta, over, size }) {
  const [feature, setFeature] = useState(null);
  useEffect(() => {
    let gone = false;
    const timer = setTimeout(() => get(`features/${over.id}.json`).then((f) => gone || setFeature(f), () => {}), 60);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [over.id]);
  const known = feature && feature.id === over.id;
  const style = { left: `${Math.min(over.x + 14, size[0] - 250)}px`, top: `${Math.min(over.y + 14, size[1] - 90)}px` };
  const look = known && feature.drawing.writes ? { look: feature.drawing.writes } : null;
  return (
    <div class="over" style={style}>
      {look && lookOf(meta, look, 44)}
      <span>
        <b>{over.id}</b> {known ? feature.label || 'unnamed' : ''}
        <small>{known ? `fires on ${percent(feature.density)}` : ' '}</small>
      </span>
    </div>
  );
}

function Legend({ meta, by }) {
  if (by !== 'label') {
    return (
      <div class="legend">
        <span>rarely</span>
        <i class="ramp" />
        <span>often</span>
      </div>
    );
  }
  return (
    <div class="legend">
      {meta.classes.map((name, i) => (
        <span key={name}>
          <i class="swatch" style={{ background: CLASSES[i % CLASSES.length] }} /> {name}
        </span>
      ))}
      <span>
        <i class="swatch none" /> none in particular
      </span>
    </div>
  );
}
