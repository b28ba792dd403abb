/**
 * Pillow's antialiased resampling of 8-bit grey images, bit for bit: libImaging/Resample.c and Reduce.c of Pillow 13.
 * An image is {width, height, data}, data a Uint8Array of rows.
 */

const PRECISION_BITS = 32 - 8 - 2;

/** Filters as Pillow names them: half-width and weight. */
const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
};

/** Resize to width x height; filter is a name in FILTERS. */
export function resize(image, width, height, filter) {
  const across = (source) =>
    source.width === width ? source : transpose(resampleRows(transpose(source), width, FILTERS[filter]));
  const down = (source) => (source.height === height ? source : resampleRows(source, height, FILTERS[filter]));
  const lost = image.height - height;
  // Each pass rounds, so their order shows. Pillow 13 found by trial to follow this rule; 12 always goes across first.
  return lost > 0 && lost > 2 * (image.width - width) ? across(down(image)) : down(across(image));
}

/** Average blocks of factor x factor pixels, smaller ones at the right and lower edge. */
export function reduce(image, factor) {
  if (factor === 1) return image;
  const width = Math.ceil(image.width / factor);
  const height = Math.ceil(image.height / factor);
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) data[y * width + x] = blockMean(image, x * factor, y * factor, factor);
  }
  return { width, height, data };
}

/** Return the part of the image inside {left, top, right, bottom}, black where that reaches beyond the frame. */
export function crop(image, box) {
  const width = box.right - box.left;
  const height = box.bottom - box.top;
  const data = new Uint8Array(width * height);
  const first = Math.max(box.left, 0);
  const last = Math.min(box.right, image.width);
  for (let y = Math.max(box.top, 0); y < Math.min(box.bottom, image.height); y++) {
    const row = image.data.subarray(y * image.width + first, y * image.width + last);
    data.set(row, (y - box.top) * width + first - box.left);
  }
  return { width, height, data };
}

/** Round halves to the even neighbour, as Python's round and NumPy's rint do. */
export function roundHalfEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

function blockMean(image, left, top, factor) {
  const right = Math.min(left + factor, image.width);
  const bottom = Math.min(top + factor, image.height);
  const count = (right - left) * (bottom - top);
  let sum = Math.floor(count / 2);
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) sum += image.data[y * image.width + x];
  }
  // Pillow multiplies by a reciprocal that it computes in single precision.
  const multiplier = Math.floor(Math.fround(4294967296 / Math.fround(256 * count)));
  return Math.floor((sum * multiplier) / 16777216);
}

function transpose({ width, height, data }) {
  const turned = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = data[y * width + x];
  }
  return { width: height, height: width, data: turned };
}

/** Resample along the vertical axis; each row of the result is a weighted sum of rows. */
function resampleRows(image, height, filter) {
  const { width } = image;
  const data = new Uint8Array(width * height);
  const sums = new Int32Array(width);
  coefficients(image.height, height, filter).forEach(({ first, weights }, y) => {
    sums.fill(1 << (PRECISION_BITS - 1));
    weights.forEach((weight, step) => {
      const start = (first + step) * width;
      for (let x = 0; x < width; x++) sums[x] += Math.imul(image.data[start + x], weight);
    });
    for (let x = 0; x < width; x++) data[y * width + x] = Math.min(255, Math.max(0, sums[x] >> PRECISION_BITS));
  });
  return { width, height, data };
}

/** Return, for each place of the result, the first place of the source and the weights in fixed point. */
function coefficients(size, resized, filter) {
  const scale = size / resized;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  return Array.from({ length: resized }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push(filter.weight((x - centre + 0.5) * (1 / filterScale)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / total) * (1 << PRECISION_BITS))) };
  });
}
