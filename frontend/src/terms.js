// What the words mean: shown where a pointer or the keyboard rests on them.

export const TERMS = {
  feature:
    'A pattern that the model has learned to look for. On each row it is either silent or fires with some strength, its activation.',
  fires: 'The share of the rows read on which the feature is not silent. Also called density or frequency.',
  activation: 'How strongly a feature fires on a row. Only comparable within one feature.',
  max: 'The largest activation on the rows read.',
  mean: 'The mean activation over the rows on which the feature fires.',
  norm: 'The length of what the feature adds to a reconstruction when its activation is 1: its row of the decoder.',
  dead: 'Fired on none of the rows read. It may be rare, or unused.',
  dense: 'Fires on more than a tenth of the rows. It says little about any one of them.',
  label: 'Made automatically from the feature’s weights and the rows on which it fires. Nobody has checked it.',
  histogram: 'How often each activation occurs, over the rows on which the feature fires. The bar height is the root of the count.',
  writes: 'What the feature adds to a reconstruction: its decoder row. Grey is nothing, white is more, black is less.',
  reads: 'What the feature looks for: its encoder row.',
  heat: 'Where the row made the feature fire: each value times the encoder’s weight for it, positive parts only.',
  columns: 'What each column added to the feature’s activation: value times weight, in the model’s own units. Largest first.',
  miss: 'Rows on which the feature stayed silent but came closest to firing. They show where its boundary lies.',
  quantile: 'Rows at the middle of the feature’s range rather than at its top. If they look different, the feature means several things.',
  angle: 'Features whose decoder rows point in the most similar direction: 1 is the same, 0 is unrelated.',
  firing: 'Features that fire on the same rows: 1 is always together, 0 never.',
  error: 'How badly the row is reconstructed: mean squared error in the model’s own units.',
  anomaly: 'Reconstructed worse than almost all training rows: the dictionary has no features for what is in it.',
  active: 'How many features fire on the row.',
  map: 'Every feature is a dot. Near dots have similar decoder rows. Axes mean nothing; distance across gaps means little.',
  matched: 'The feature of the other run that points the same way. A cosine near 1: both runs found it.',
  near: 'How near the feature came to firing: 0 is its threshold.',
};
