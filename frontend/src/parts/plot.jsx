import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import { short } from '../format.js';
import { colour } from './canvas.jsx';

const FONT = '12px system-ui, sans-serif';

/** A uPlot as wide as its box. `make(colours)` gives its series and scales, `data` its columns. */
export function Plot({ data, make, height = 180, keys, label }) {
  const ref = useRef();
  useEffect(() => {
    let plot;
    const draw = () => {
      plot?.destroy();
      const [accent, ink, muted, line] = ['accent', 'ink', 'muted', 'line'].map(colour);
      const axis = (more) => ({ stroke: muted, font: FONT, grid: { stroke: line, width: 1 }, ticks: { show: false }, ...more });
      const width = Math.max(120, ref.current.clientWidth);
      const options = make({ accent, ink, muted, line, axis });
      plot = new uPlot({ width, height, legend: { show: false }, ...options }, data, ref.current);
    };
    draw();
    const sized = new ResizeObserver(() => {
      if (!ref.current) return;
      const width = Math.max(120, ref.current.clientWidth);
      if (plot.width !== width) plot.setSize({ width, height });
    });
    sized.observe(ref.current);
    addEventListener('theme', draw);
    return () => {
      sized.disconnect();
      removeEventListener('theme', draw);
      plot?.destroy();
    };
  }, keys);
  return <div ref={ref} class="plot" role="img" aria-label={label} />;
}

/** Bars over even steps from low to high, as tall as the root of their counts. */
export function Histogram({ low, high, counts, height = 150, label, ticks = short, log = false }) {
  const width = (high - low) / counts.length || 1;
  const x = counts.map((_, i) => low + (i + 0.5) * width);
  const heights = counts.map((n) => Math.sqrt(n));
  const make = ({ accent, axis }) => ({
    cursor: { y: false, points: { show: false } },
    scales: { x: { time: false, range: [low, high > low ? high : low + 1] }, y: { range: (_, __, most) => [0, most * 1.05 || 1] } },
    axes: [
      axis({ grid: { show: false }, size: 26, values: (_, at) => at.map(ticks), space: log ? 40 : 50, incrs: log ? [1, 2] : undefined }),
      axis({ show: false }),
    ],
    series: [{}, { fill: accent, stroke: accent, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.82, 100] }) }],
  });
  return <Plot data={[x, heights]} make={make} height={height} keys={[low, high, counts]} label={label} />;
}

/** Lines over steps: values, and held-out ones as dots. */
export function Curve({ curve }) {
  const steps = [...new Set([...curve.line.steps, ...curve.held_out.steps])].sort((a, b) => a - b);
  const at = ({ steps: own, values }) => {
    const found = new Map(own.map((step, i) => [step, values[i]]));
    return steps.map((step) => found.get(step) ?? null);
  };
  const all = [...curve.line.values, ...curve.held_out.values];
  const log = Math.min(...all) > 0 && Math.max(...all) > 10 * Math.min(...all);
  const make = ({ accent, ink, axis }) => ({
    cursor: { points: { size: 7 } },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [axis({ size: 28, values: (_, v) => v.map(short) }), axis({ size: 52, values: (_, v) => v.map((t) => (t === null ? '' : short(t))) })],
    series: [
      {},
      { stroke: accent, width: 1.75, spanGaps: true, points: { show: false } },
      { stroke: ink, width: 0, paths: () => null, points: { show: true, size: 6, fill: ink } },
    ],
  });
  return <Plot data={[steps, at(curve.line), at(curve.held_out)]} make={make} keys={[curve]} label={curve.title} />;
}
