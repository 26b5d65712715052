// One file a kind of data, of the same name as in src/fewfire/explorer/renderers. Each exports
//   Example({row, marks, heat, value, meta})   a row, as an example of a feature
//   Whole({row, meta})                         a row by itself, its reconstruction beside it
//   Drawing({drawing, meta})                   what a feature writes and looks for; null where there is nothing
//   Look({look, size})                         the same as a small picture in a list; null where there is none
//   layout                                     "tiles" or "lines": how examples stand together
//   hint                                       the word in terms.js that says what `heat` shows
import * as image from './image.jsx';
import * as series from './series.jsx';
import * as table from './table.jsx';
import * as text from './text.jsx';

const ALL = { image, series, table, text };

export const rendererOf = (meta) => ALL[meta.renderer];

/** A feature's small picture, where its kind has one. */
export const lookOf = (meta, feature, size) => {
  const { Look } = rendererOf(meta);
  return Look && feature.look ? Look({ look: feature.look, size }) : null;
};
