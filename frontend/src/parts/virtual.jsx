import { useEffect, useRef, useState } from 'preact/hooks';

const BLOCK = 100;

/**
 * A list of any length of which only what is seen is in the page. Items come in blocks of 100 from `load(offset, limit)`,
 * and are drawn `across` to a line. `at` is the item that is chosen: it is scrolled into view when it changes.
 */
export function VirtualList({ total, height, across = 1, load, item, keys, at, label, head }) {
  const box = useRef();
  const [blocks, setBlocks] = useState(new Map());
  const [view, setView] = useState({ top: 0, seen: 800 });
  const wanted = useRef(new Set());
  const generation = useRef(0);

  useEffect(() => {
    generation.current++;
    wanted.current = new Set();
    setBlocks(new Map());
  }, keys);
  useEffect(() => {
    box.current.scrollTop = 0;
  }, keys.slice(0, -1));

  useEffect(() => {
    const look = () => box.current && setView({ top: box.current.scrollTop, seen: box.current.clientHeight });
    const sized = new ResizeObserver(look);
    sized.observe(box.current);
    look();
    return () => sized.disconnect();
  }, []);

  const lines = Math.ceil(total / across);
  const first = Math.max(0, Math.floor(view.top / height) - 6);
  const last = Math.min(lines, Math.ceil((view.top + view.seen) / height) + 6);

  useEffect(() => {
    const from = Math.floor((first * across) / BLOCK);
    const to = Math.floor(Math.max(0, last * across - 1) / BLOCK);
    for (let block = from; block <= to; block++) {
      if (wanted.current.has(block) || block * BLOCK >= total) continue;
      wanted.current.add(block);
      const now = generation.current;
      load(block * BLOCK, BLOCK).then(
        (items) => now === generation.current && setBlocks((before) => new Map(before).set(block, items)),
        () => wanted.current.delete(block),
      );
    }
  }, [first, last, total, across, ...keys]);

  useEffect(() => {
    if (at === null || at === undefined || at < 0) return;
    const top = Math.floor(at / across) * height;
    const { scrollTop, clientHeight } = box.current;
    if (top < scrollTop) box.current.scrollTop = top;
    else if (top + height > scrollTop + clientHeight - 40) box.current.scrollTop = top + height - clientHeight + 40;
  }, [at, across]);

  const shown = [];
  for (let i = first * across; i < Math.min(total, last * across); i++) {
    shown.push(item(blocks.get(Math.floor(i / BLOCK))?.[i % BLOCK], i));
  }
  return (
    <div class="virtual" ref={box} role="grid" aria-label={label} aria-rowcount={lines} tabIndex={-1} onScroll={(e) => setView({ top: e.target.scrollTop, seen: e.target.clientHeight })}>
      {head}
      <div class="virtual-all" style={{ height: `${lines * height}px` }}>
        <div class="virtual-seen" style={{ transform: `translateY(${first * height}px)`, '--across': across }}>
          {shown}
        </div>
      </div>
    </div>
  );
}
