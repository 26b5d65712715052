export const layout = 'lines';
export const hint = 'heat';
export const Look = null;
export const Example = () => null;
export const Drawing = () => null;
export const Whole = () => null;
