/** How unlike the training images an image is: brainq_torch/abstention/outlier.py, where the reasons stand. */

import { resize } from "./resize.js";

const SIDE = 64;
const RINGS = [0, 0.5, 1, 1.5, 2, 2.5];
const BRIGHT = 0.15;
const GRID = Array.from({ length: SIDE * SIDE }, (_, place) => [
  Math.floor(place / SIDE) / (SIDE - 1) - 0.5,
  (place % SIDE) / (SIDE - 1) - 0.5,
]);

/** Return the distance of an image's statistics from {middle, whitening}, about 1 for a typical image. */
export function distance(image, { middle, whitening }) {
  const away = describe(image).map((value, place) => value - middle[place]);
  const squares = whitening.map((row) => row.reduce((sum, weight, place) => sum + weight * away[place], 0) ** 2);
  return Math.sqrt(mean(squares));
}

/** Return the statistics of an image. */
export function describe(image) {
  const fine = [...image.data];
  const small = [...resize(image, SIDE, SIDE, "box").data];
  const ordered = small.toSorted((one, other) => one - other);
  const top = Math.max(percentile(ordered, 99), 8);
  const ring = small.filter((_, place) => isOnEdge(place % SIDE) || isOnEdge(Math.floor(place / SIDE)));
  const corners = [0, SIDE - 1, SIDE * (SIDE - 1), SIDE * SIDE - 1].map((place) => small[place]);
  const spread = deviation(small) + 1;
  const mirrored = small.map((_, place) => small[place - (place % SIDE) + SIDE - 1 - (place % SIDE)]);
  const flipped = small.map((_, place) => small[(SIDE - 1 - Math.floor(place / SIDE)) * SIDE + (place % SIDE)]);
  const roughnesses = [
    roughness(fine, image.width),
    roughness(small, SIDE),
    roughness(averageBlocks(small, 4), SIDE / 4),
  ];
  return [
    mean(ring) / top,
    deviation(ring) / top,
    mean(corners) / top,
    top / 255,
    ...[10, 25, 50, 75, 90].map((percent) => percentile(ordered, percent) / top),
    spread / top,
    ...outline(small.map((value) => value / top)),
    Math.max(alike(small, mirrored), alike(small, flipped)),
    ...roughnesses.map((value) => Math.log(value / spread + 1e-3)),
  ];
}

function isOnEdge(place) {
  return place === 0 || place === SIDE - 1;
}

/** Return place, size and shape of what is bright, and the brightness from its middle outwards. */
function outline(values) {
  const flat = values.map((value) => Math.min(1, Math.max(0, value)));
  const bright = GRID.filter((_, place) => flat[place] > BRIGHT);
  const weight = 1 / Math.max(bright.length, 1);
  const middle = [0, 1].map((axis) => bright.reduce((sum, point) => sum + point[axis] * weight, 0));
  let [yy, yx, xx] = [1e-4, 0, 1e-4];
  for (const [gridY, gridX] of bright) {
    const [y, x] = [gridY - middle[0], gridX - middle[1]];
    yy += y * y * weight;
    yx += y * x * weight;
    xx += x * x * weight;
  }
  const determinant = yy * xx - yx * yx;
  const half = Math.hypot((yy - xx) / 2, yx);
  const [small, large] = [(yy + xx) / 2 - half, (yy + xx) / 2 + half];
  const sums = RINGS.map(() => 0);
  const counts = RINGS.map(() => 0);
  GRID.forEach(([gridY, gridX], place) => {
    const [y, x] = [gridY - middle[0], gridX - middle[1]];
    const radius = Math.sqrt((y * y * xx - 2 * y * x * yx + x * x * yy) / determinant);
    const ring = RINGS.findLastIndex((inner) => inner <= radius);
    sums[ring] += flat[place];
    counts[ring] += 1;
  });
  const area = bright.length / flat.length;
  return [
    area,
    Math.max(Math.abs(middle[0]), Math.abs(middle[1])),
    0.5 * Math.log(large / small),
    area / (4 * Math.PI * Math.sqrt(large * small)),
    ...sums.map((sum, ring) => sum / Math.max(counts[ring], 1)),
  ];
}

function alike(one, other) {
  const [middle, otherMiddle] = [mean(one), mean(other)];
  let [both, square, otherSquare] = [0, 0, 0];
  one.forEach((value, place) => {
    const [a, b] = [value - middle, other[place] - otherMiddle];
    both += a * b;
    square += a * a;
    otherSquare += b * b;
  });
  return both / (Math.sqrt(square * otherSquare) + 1);
}

/** Return the mean absolute difference between each pixel and the mean of its four neighbours. */
function roughness(values, width) {
  const height = values.length / width;
  let sum = 0;
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const place = y * width + x;
      const around = values[place - width] + values[place + width] + values[place - 1] + values[place + 1];
      sum += Math.abs(values[place] - around / 4);
    }
  }
  return sum / ((height - 2) * (width - 2));
}

function averageBlocks(values, factor) {
  const side = SIDE / factor;
  const sums = new Array(side * side).fill(0);
  values.forEach((value, place) => {
    const [y, x] = [Math.floor(place / SIDE / factor), Math.floor((place % SIDE) / factor)];
    sums[y * side + x] += value;
  });
  return sums.map((sum) => sum / factor ** 2);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
}

/** Interpolate linearly between the two nearest ranks, as numpy.percentile does. */
function percentile(ordered, percent) {
  const rank = ((ordered.length - 1) * percent) / 100;
  const low = Math.floor(rank);
  const high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (ordered[high] - ordered[low]) * (rank - low);
}
