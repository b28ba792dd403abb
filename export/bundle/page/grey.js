/** What every reader shares: brainq_torch/data/reading/grey.py in JavaScript, where the reasons stand. */

import { resize, roundHalfEven } from "./resize.js";
import { Unreadable } from "./unreadable.js";

const MAX_PIXELS = 40_000_000;
const SQUARE_TOLERANCE = 0.01;

/** Rescale values, rows of any numbers, to 0..255. measured: 0 where a value is padding. Return {data, note}. */
export function rescaleToUint8(values, width, what, measured = null) {
  const isUsed = (value, place) => Number.isFinite(value) && (!measured || measured[place]);
  const used = Float64Array.from(values).filter((value, place) => isUsed(value, place)).sort();
  if (!used.length || !Number.isFinite(used.at(-1) - used[0])) {
    throw new Unreadable("has pixels that are not finite numbers, or beyond all bounds", "rescale it and save it again");
  }
  const [low, high] = blackAndWhite(used).map((end) => end + 0); // no -0 in the note
  if (values.some((value) => !Number.isFinite(value)) && encloses(values, width, low)) {
    throw new Unreadable("has pixels on the head that are not finite numbers", "replace NaN and infinity by numbers and save it again");
  }
  if (high === low) {
    return { data: new Uint8Array(values.length), note: `${what}, all equal to ${general(low)}, shown as black` };
  }
  const scale = (value) => {
    const fraction = ((Number.isFinite(value) ? value : low) - low) / (high - low);
    return roundHalfEven(Math.min(Math.max(fraction, 0), 1) * 255);
  };
  const note = `${what} rescaled from ${general(low)}..${general(high)} to 0..255`;
  return { data: Uint8Array.from(values, scale), note };
}

function blackAndWhite(ordered) {
  const count = ordered.length;
  const low = ordered[Math.floor(count / 1000)];
  const bright = ordered[count - 1 - Math.floor(count / 200)];
  const head = ordered.filter((value) => 10 * (value - low) > bright - low);
  if (!head.length) return [low, low];
  const most = 2 * (head[head.length - 1 - Math.floor(head.length / 100)] - low);
  const rest = head.filter((value) => value - low <= most);
  return [low, rest[rest.length - 1 - Math.floor(rest.length / 500)]];
}

/** Tell whether a value that is not finite has a shown one on each of its four sides. */
function encloses(values, width, low) {
  const height = values.length / width;
  const isShown = (x, y) => Number.isFinite(values[y * width + x]) && values[y * width + x] > low;
  const span = (count, shown) => {
    const places = Array.from({ length: count }, (_, place) => place).filter(shown);
    return [places[0] ?? Infinity, places.at(-1) ?? -Infinity];
  };
  const rows = Array.from({ length: height }, (_, y) => span(width, (x) => isShown(x, y)));
  const columns = Array.from({ length: width }, (_, x) => span(height, (y) => isShown(x, y)));
  const isWithin = (place, [first, last]) => first <= place && place <= last;
  return values.some((value, place) => {
    const [x, y] = [place % width, Math.floor(place / width)];
    return !Number.isFinite(value) && isWithin(x, rows[y]) && isWithin(y, columns[x]);
  });
}

/** Stretch the coarser side so that a pixel is as high as it is wide. Return {image, notes}. */
export function makeSquare(image, rowSpacing, columnSpacing) {
  const spacings = [rowSpacing, columnSpacing];
  if (!spacings.every((value) => Number.isFinite(value) && value > 0)) {
    return { image, notes: ["pixel spacing unknown, taken as square"] };
  }
  if (Math.abs(rowSpacing / columnSpacing - 1) <= SQUARE_TOLERANCE) return { image, notes: [] };
  const finest = Math.min(...spacings);
  const height = roundHalfEven((image.height * rowSpacing) / finest);
  const width = roundHalfEven((image.width * columnSpacing) / finest);
  if (height * width > MAX_PIXELS) return { image, notes: ["pixels far from square, left as they are"] };
  const note = `pixels of ${general(rowSpacing)} x ${general(columnSpacing)} mm stretched to squares`;
  return { image: resize(image, width, height, "bilinear"), notes: [note] };
}

export function refuseGigantic(width, height) {
  if (width * height > MAX_PIXELS) {
    const reason = `has gigantic dimensions, ${width} x ${height} pixels`;
    throw new Unreadable(reason, `resize it to at most ${MAX_PIXELS / 1e6} megapixels`);
  }
}

/** Write a number as Python's :g does. */
export function general(value) {
  if (Object.is(value, -0)) return "-0";
  const [digits, exponent] = value.toExponential(5).split("e");
  if (value !== 0 && (exponent < -4 || exponent >= 6)) {
    const sign = exponent < 0 ? "-" : "+";
    return `${Number(digits)}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return String(Number(value.toPrecision(6)));
}
