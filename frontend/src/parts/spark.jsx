/** The histogram of the table: a digit a bar. */
export function Spark({ of, width = 96, height = 22 }) {
  const step = width / of.length;
  let path = '';
  for (let i = 0; i < of.length; i++) {
    const tall = (Number(of[i]) / 9) * height;
    if (tall) path += `M${(i * step).toFixed(1)} ${height}h${(step - 1).toFixed(1)}v${(-tall).toFixed(1)}h${(1 - step).toFixed(1)}z`;
  }
  return (
    <svg class="spark" width={width} height={height} viewBox={`0 0 ${width} ${height}`} aria-hidden="true">
      <path d={path} />
    </svg>
  );
}
