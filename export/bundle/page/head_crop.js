/** Finds the head in a grey image: brainq_torch/data/head_crop.py, where the reasons stand, in JavaScript. */

import { crop, reduce } from "./resize.js";

const MARGIN_PARTS = 32;
const COARSE_SIDE = 256;
const GRID_SIDE = 128;
const SMALLEST_SIDE = 16;
const UNIFORM_SPREAD = 12;
const STRAY_PARTS = 50;
const CORNER_PARTS = 10;
const NOISE_FLOOR = 4;
const NOISE_FACTOR = 2;
const TISSUE_PARTS = 4;
const ROUNDS = 4;
const SMALL_PARTS = 100;
const REACH = 2;
const THIN_PARTS = 8;
const FEWEST_LEVELS = 16;
const STRAY_PERCENT = 1;

/** Return the box {left, top, right, bottom} around the head, which may reach beyond the frame, or null. */
export function findHead(image) {
  const factor = Math.ceil(Math.max(image.width, image.height) / COARSE_SIDE);
  const coarse = reduce(image, factor);
  const core = peelPlainBorder(coarse);
  const inside = crop(coarse, core);
  if (Math.min(inside.width, inside.height) < SMALLEST_SIDE) return null;
  const cell = Math.ceil(Math.max(inside.width, inside.height) / GRID_SIDE);
  const grid = reduce(inside, cell);
  const head = findCells(grid);
  const [middleX, middleY] = [Math.floor(grid.width / 2), Math.floor(grid.height / 2)];
  const thickness = Math.min(head.right - head.left, head.bottom - head.top);
  const isThin = thickness * THIN_PARTS < Math.max(grid.width, grid.height);
  const isInMiddle =
    head.left <= middleX && middleX < head.right && head.top <= middleY && middleY < head.bottom;
  if (isThin || !isInMiddle) return null;
  const box = {
    left: factor * (core.left + cell * head.left),
    top: factor * (core.top + cell * head.top),
    right: factor * Math.min(core.left + cell * head.right, core.right),
    bottom: factor * Math.min(core.top + cell * head.bottom, core.bottom),
  };
  const margin = Math.floor(Math.max(box.right - box.left, box.bottom - box.top) / MARGIN_PARTS);
  return { left: box.left - margin, top: box.top - margin, right: box.right + margin, bottom: box.bottom + margin };
}

/** Tell whether the head, or the frame without one, has fewer than 16 grey levels. */
export function isBlank(image) {
  const { width, height } = image;
  const [left, top] = [width, height].map((side) => Math.floor(side / 4));
  if (!hasFewLevels(crop(image, { left, top, right: width - left, bottom: height - top }))) return false;
  const head = findHead(image);
  if (head === null) return hasFewLevels(image);
  const [right, bottom] = [Math.min(head.right, width), Math.min(head.bottom, height)];
  return hasFewLevels(crop(image, { left: Math.max(head.left, 0), top: Math.max(head.top, 0), right, bottom }));
}

function hasFewLevels({ data }) {
  const counts = new Uint32Array(256);
  for (const value of data) counts[value] += 1;
  const commonest = counts.sort().slice(1 - FEWEST_LEVELS);
  return 100 * commonest.reduce((sum, count) => sum + count) >= (100 - STRAY_PERCENT) * data.length;
}

/** Return what is left when every plain row and column is taken off from outside. */
function peelPlainBorder(image) {
  const box = { left: 0, top: 0, right: image.width, bottom: image.height };
  while (Math.min(box.bottom - box.top, box.right - box.left) >= SMALLEST_SIDE) {
    const { rows, columns } = plainLines(crop(image, box));
    if (!rows.includes(false) || !columns.includes(false)) {
      return { left: box.left, top: box.top, right: box.left, bottom: box.top };
    }
    if (!(rows[0] || rows.at(-1) || columns[0] || columns.at(-1))) break;
    box.bottom -= rows.length - 1 - rows.lastIndexOf(false);
    box.right -= columns.length - 1 - columns.lastIndexOf(false);
    box.top += rows.indexOf(false);
    box.left += columns.indexOf(false);
  }
  return box;
}

/** Tell which rows and columns have one grey level, but for a few stray pixels. */
function plainLines({ width, height, data }) {
  const isPlain = (line) => {
    const stray = Math.floor(line.length / STRAY_PARTS);
    const ordered = line.sort();
    return ordered[line.length - 1 - stray] - ordered[stray] <= UNIFORM_SPREAD;
  };
  const row = (y) => data.slice(y * width, (y + 1) * width);
  const column = (x) => Uint8Array.from({ length: height }, (_, y) => data[y * width + x]);
  return {
    rows: Array.from({ length: height }, (_, y) => isPlain(row(y))),
    columns: Array.from({ length: width }, (_, x) => isPlain(column(x))),
  };
}

/** Return the box around the head's cells, empty where there are none. */
function findCells(grid) {
  const mask = largestArea({ ...grid, data: foreground(grid) });
  const box = boundingBox({ ...grid, data: mask });
  const size = { width: box.right - box.left, height: box.bottom - box.top };
  if (size.width === 0) return box;
  if (size.width * size.height < grid.data.length && Math.min(size.width, size.height) >= CORNER_PARTS) {
    const inside = crop(grid, box);
    const levels = corners(inside).map(upperMedian);
    const fullness = corners(crop({ ...grid, data: mask }, box)).map(
      (corner) => corner.reduce((sum, value) => sum + value, 0) / corner.length,
    );
    if (Math.min(...fullness) > 0.5 && Math.max(...levels) - Math.min(...levels) <= UNIFORM_SPREAD) {
      const { left, top, right, bottom } = findCells(inside);
      if (right > left) {
        return { left: box.left + left, top: box.top + top, right: box.left + right, bottom: box.top + bottom };
      }
    }
  }
  return box;
}

function boundingBox({ width, data }) {
  const box = { left: Infinity, top: Infinity, right: 0, bottom: 0 };
  data.forEach((isHead, place) => {
    if (!isHead) return;
    const [x, y] = [place % width, Math.floor(place / width)];
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
    box.top = Math.min(box.top, y);
    box.bottom = Math.max(box.bottom, y + 1);
  });
  return box.right ? box : { left: 0, top: 0, right: 0, bottom: 0 };
}

/** Return the sorted cells of the four corners. */
function corners(grid) {
  const { width, height } = grid;
  const tall = Math.floor(height / CORNER_PARTS) + 1;
  const wide = Math.floor(width / CORNER_PARTS) + 1;
  return [0, height - tall].flatMap((top) =>
    [0, width - wide].map((left) => crop(grid, { left, top, right: left + wide, bottom: top + tall }).data.sort()),
  );
}

function upperMedian(ordered) {
  return ordered[Math.floor(ordered.length / 2)];
}

/** Tell which cells stand out from the background, thin lines left out. */
function foreground(grid) {
  const patches = corners(grid);
  const levels = patches.map(upperMedian);
  const background = levels.toSorted((one, other) => one - other)[1];
  const spreads = patches
    .filter((_, place) => Math.abs(levels[place] - background) <= UNIFORM_SPREAD)
    .map((patch) => patch.map((value) => Math.abs(value - background)).sort()[Math.floor((patch.length * 3) / 4)]);
  const noise = NOISE_FLOOR + NOISE_FACTOR * Math.min(...spreads);
  const contrast = grid.data.map((value) => Math.abs(value - background));
  let threshold = noise;
  for (let round = 0; round < ROUNDS; round++) {
    const bright = contrast.filter((value) => value > threshold).sort();
    if (bright.length) threshold = Math.max(noise, Math.floor(upperMedian(bright) / TISSUE_PARTS));
  }
  return withoutThinLines({ ...grid, data: contrast.map((value) => (value > threshold ? 1 : 0)) });
}

/** Keep the cells that belong to a block of 2 x 2. */
function withoutThinLines({ width, height, data }) {
  const kept = new Uint8Array(data.length);
  for (let y = 1; y < height; y++) {
    for (let x = 1; x < width; x++) {
      const block = [0, 1, width, width + 1].map((step) => y * width + x - step);
      if (block.every((place) => data[place])) block.forEach((place) => (kept[place] = 1));
    }
  }
  return kept;
}

/** Keep the largest area and what lies close to it. */
function largestArea(mask) {
  const all = measureAreas(mask, mask.data);
  const most = Math.max(...all.sizes);
  const large = mask.data.map((isIn, place) => (isIn && all.sizes[all.areas[place]] * SMALL_PARTS >= most ? 1 : 0));
  let near = { ...mask, data: large };
  for (let step = 0; step < REACH; step++) near = grow(near);
  const { areas, sizes } = measureAreas(near, large);
  const largest = sizes.indexOf(Math.max(...sizes));
  return large.map((isIn, place) => (isIn && areas[place] === largest ? 1 : 0));
}

/** Number the areas of cells that share a side in the order of their first cells, and count each one's cells. */
function measureAreas({ width, height, data }, counted) {
  const areas = new Int32Array(data.length);
  const sizes = [0];
  for (let start = 0; start < data.length; start++) {
    if (!data[start] || areas[start]) continue;
    areas[start] = sizes.length;
    sizes.push(0);
    const open = [start];
    while (open.length) {
      const place = open.pop();
      sizes[areas[place]] += counted[place];
      const x = place % width;
      const around = [place - width, place + width];
      if (x > 0) around.push(place - 1);
      if (x < width - 1) around.push(place + 1);
      for (const next of around) {
        if (next < 0 || next >= width * height || !data[next] || areas[next]) continue;
        areas[next] = areas[place];
        open.push(next);
      }
    }
  }
  return { areas, sizes };
}

/** Add the 8 neighbours of every cell. */
function grow({ width, height, data }) {
  const grown = new Uint8Array(data.length);
  data.forEach((isIn, place) => {
    if (!isIn) return;
    const [x, y] = [place % width, Math.floor(place / width)];
    for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
      grown.fill(1, row * width + Math.max(0, x - 1), row * width + Math.min(width, x + 2));
    }
  });
  return { width, height, data: grown };
}
