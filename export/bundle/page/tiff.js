/**
 * Decodes TIFF files (TIFF 6.0) of the kinds that Pillow and tifffile write to their raw samples; their tags are checked
 * as brainq_torch/data/reading/checksums.py does. LZW and predictors are geotiff's.
 */

import { inflate } from "./inflate.js";
import { sample } from "./png.js";
import { damaged, Unreadable } from "./unreadable.js";

const [WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER] = [256, 257, 258, 259, 262, 266];
const [OFFSETS, ORIENTATION, SAMPLES, ROWS, SIZES, PLANAR, PREDICTOR] = [273, 274, 277, 278, 279, 284, 317];
const [COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, EXTRA, FORMAT, XMP] = [320, 322, 323, 324, 325, 338, 339, 700];
const SINGLE_SHORTS = [COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR, PREDICTOR];
const SINGLE_INTEGERS = [WIDTH, HEIGHT, ROWS, TILE_WIDTH, TILE_HEIGHT];
const SHORTS = [...SINGLE_SHORTS, BITS, EXTRA, FORMAT];
const INTEGERS = [...SINGLE_INTEGERS, OFFSETS, SIZES, TILE_OFFSETS, TILE_SIZES];
const MAY_BE_ABSENT = [ORIENTATION, PREDICTOR, FORMAT];
const SHORT = 3;
/** Bytes of a value by its type: bytes, integers of 16, 32 and 64 bits. */
const VALUE_BYTES = { 1: 1, [SHORT]: 2, 4: 4, 7: 1, 16: 8 };
const INTEGER_TYPES = [SHORT, 4, 16];
const [PLAIN, LZW, PACK_BITS] = [1, 5, 32773];
const DEFLATES = [8, 32946];
const COMPRESSIONS = [PLAIN, LZW, PACK_BITS, ...DEFLATES];
const NAMES = { 2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP" };
const [UNSIGNED, SIGNED, FLOAT] = [1, 2, 3];
const [RGB, OPACITY] = [2, 2];
/** Bits of a sample that Pillow reads, by photometric interpretation and sample format. */
const DEPTHS = {
  "0 1": [1, 2, 4, 8, 16], "0 3": [32], "1 1": [1, 2, 4, 8, 16, 32], "1 2": [8, 16, 32], "1 3": [32], "2 1": [8, 16],
  "3 1": [1, 2, 4, 8],
}; // prettier-ignore
const LITTLE_ONLY = ["0 1 16", "1 1 32"];
const ARRAYS = { [UNSIGNED]: Uint16Array, [SIGNED]: Int32Array, [FLOAT]: Float32Array };
const READERS = { "1 8": "getUint8", "1 16": "getUint16", "2 16": "getInt16", "2 32": "getInt32", "3 32": "getFloat32" };
const INSTEAD = "use predict.py, or save it as PNG";

export function isTiff(bytes) {
  return ["II*\0", "MM\0*", "II+\0", "MM\0+"].includes(String.fromCharCode(...bytes.subarray(0, 4)));
}

/** Return what decodePng does, its colour as a PNG would have it, and {isFloat, isWhiteZero, orientation}. */
export async function decodeTiff(bytes, check) {
  try {
    return await decode(bytes, check);
  } catch (error) {
    throw error instanceof Unreadable ? error : damaged(`TIFF: ${error.message}`);
  }
}

async function decode(bytes, check) {
  const { tags, entries, next, little } = readDirectory(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  const one = (tag, otherwise) => tags.get(tag)?.[0] ?? otherwise;
  const [width, height] = [one(WIDTH), one(HEIGHT)];
  if (!width || !height) throw new Error("its size is missing");
  check(width, height);
  if (next) throw new Unreadable("is a TIFF with several frames", "save the one frame that is meant as PNG");
  const missing = [COMPRESSION, PHOTOMETRIC].find((tag) => !tags.has(tag));
  if (missing) throw new Error(`it has no tag ${missing}`);
  const kind = findKind(tags, one, little);
  const parts = findParts(tags, one, { ...kind, width, height });
  if (DEFLATES.includes(kind.compression)) checkDirectory(entries, parts);
  const { depth, colour, channels, isFloat, isWhiteZero } = kind;
  const samples = new ARRAYS[kind.format](width * height * channels);
  for (const part of parts) {
    const decompressed = await decompress(bytes.slice(part.offset, part.offset + part.size), part, kind);
    fill(samples, decompressed, part, { ...kind, width, height });
  }
  if (isWhiteZero && depth <= 8) samples.forEach((value, place) => (samples[place] = (1 << depth) - 1 - value));
  const map = tags.get(COLOUR_MAP);
  const palette = map && Uint8Array.from(map, (_, place) => map[(place % 3) * (map.length / 3) + Math.floor(place / 3)] >> 8);
  return { width, height, depth, colour, channels, samples, palette, isFloat, isWhiteZero, orientation: one(ORIENTATION, 1) };
}

/** Return {tags: number -> values, entries, next, little}, of the first directory (TIFF 6.0, section 2, and BigTIFF). */
function readDirectory(view) {
  const little = view.getUint8(0) === 0x49;
  const isBig = view.getUint16(2, little) === 43;
  const readers = {
    1: (place) => view.getUint8(place),
    2: (place) => view.getUint16(place, little),
    4: (place) => view.getUint32(place, little),
    8: (place) => Number(view.getBigUint64(place, little)),
  };
  const word = readers[isBig ? 8 : 4];
  const [countBytes, entryBytes, wordBytes] = isBig ? [8, 20, 8] : [2, 12, 4];
  const start = word(isBig ? 8 : 4);
  const length = readers[countBytes](start);
  const tags = new Map();
  const entries = [];
  let place = start + countBytes;
  for (let entry = 0; entry < length; entry++, place += entryBytes) {
    const [tag, type, count] = [readers[2](place), readers[2](place + 2), word(place + 4)];
    entries.push({ tag, type, count });
    const size = VALUE_BYTES[type];
    const values = place + 4 + wordBytes;
    const at = size * count > wordBytes ? word(values) : values;
    if (size && at + size * count <= view.byteLength) {
      tags.set(tag, Array.from({ length: count }, (_, index) => readers[size](at + size * index)));
    } else if (SHORTS.includes(tag) || INTEGERS.includes(tag)) {
      throw new Error(`its tag ${tag} lies outside the file, or is no number`);
    }
  }
  return { tags, entries, next: word(place), little };
}

/** Return what a pixel is made of. Throws Unreadable where Pillow, or this page, does not read it. */
function findKind(tags, one, little) {
  const [photometric, stored, compression] = [one(PHOTOMETRIC), one(SAMPLES, 1), one(COMPRESSION)];
  const [bits, formats] = [tags.get(BITS) ?? [1], tags.get(FORMAT) ?? [UNSIGNED]];
  const [depth, format] = [bits[0], formats[0]];
  const isSame = new Set(bits).size === 1 && new Set(formats).size === 1;
  const isKnown = DEPTHS[`${photometric} ${format}`]?.includes(depth) && (little || !LITTLE_ONLY.includes(`${photometric} ${format} ${depth}`));
  const extras = stored - (photometric === RGB ? 3 : 1);
  const [extra, ...more] = tags.get(EXTRA) ?? (photometric === RGB && extras ? [OPACITY] : []);
  const mayHaveExtra = photometric === RGB || (photometric === 1 && depth === 8);
  const fits = extra === undefined ? extras === 0 : extras === 1 && mayHaveExtra && !more.length && [0, OPACITY].includes(extra);
  const isApart = one(PLANAR, 1) === 2 && stored > 1;
  if (!isSame || !isKnown || !fits || (isApart && depth === 16) || one(FILL_ORDER, 1) !== 1) {
    const what = `${stored} x ${depth} bits, photometric interpretation ${photometric}`;
    throw new Unreadable(`is a TIFF of a kind that this page does not read (${what})`, INSTEAD);
  }
  if (!COMPRESSIONS.includes(compression)) {
    throw new Unreadable(`is a TIFF compressed by ${NAMES[compression] ?? `number ${compression}`}, which this page does not decode`, INSTEAD);
  }
  if (tags.has(XMP) && !tags.has(ORIENTATION) && String.fromCharCode(...tags.get(XMP)).includes("Orientation")) {
    throw new Unreadable("is a TIFF with a note on how it is to be turned", INSTEAD);
  }
  const hasOpacity = extras === 1 && extra === OPACITY;
  return {
    compression, depth, stored, isApart, little,
    channels: stored - extras + hasOpacity,
    colour: photometric - (photometric === 1) + 4 * hasOpacity,
    format: depth === 8 ? UNSIGNED : depth === 32 && format === UNSIGNED ? SIGNED : format, // as Pillow takes them
    predictor: [LZW, ...DEFLATES].includes(compression) ? one(PREDICTOR, 1) : 1,
    isFloat: format === FLOAT,
    isWhiteZero: photometric === 0,
  }; // prettier-ignore
}

/** Return where each strip or tile stands and what it shows: {offset, size, plane, left, top, across, rows, rowBytes}. */
function findParts(tags, one, { width, height, depth, stored, isApart, compression }) {
  const isTiled = !tags.has(OFFSETS);
  if (!isTiled && [TILE_WIDTH, TILE_HEIGHT].some((tag) => tags.has(tag))) throw new Error("it has strips and tiles");
  const [offsets, sizes] = (isTiled ? [TILE_OFFSETS, TILE_SIZES] : [OFFSETS, SIZES]).map((tag) => tags.get(tag) ?? []);
  const [across, down] = isTiled ? [one(TILE_WIDTH), one(TILE_HEIGHT)] : [width, Math.min(one(ROWS, height), height)];
  if (!across || !down) throw new Error("its strips or tiles have no size");
  const [columns, lines] = [Math.ceil(width / across), Math.ceil(height / down)];
  if (offsets.length !== columns * lines * (isApart ? stored : 1)) throw new Error("strips or tiles are missing");
  const rowBytes = Math.ceil((across * depth * (isApart ? 1 : stored)) / 8);
  return offsets.map((offset, index) => {
    const top = (Math.floor(index / columns) % lines) * down;
    const rows = isTiled ? down : Math.min(down, height - top);
    const size = compression === PLAIN ? rows * rowBytes : sizes[index];
    return { offset, size, plane: Math.floor(index / (columns * lines)), left: (index % columns) * across, top, across, rows, rowBytes };
  });
}

/** Refuse tags that a damaged number, type or count would hide, and parts that overlap, as Python does. */
function checkDirectory(entries, parts) {
  const numbers = entries.map(({ tag }) => tag);
  if (numbers.some((tag, place) => tag <= numbers[place - 1])) throw new Error("its tags are not in order");
  for (const { tag, type, count } of entries) {
    const allowed = SHORTS.includes(tag) ? [SHORT] : INTEGERS.includes(tag) ? INTEGER_TYPES : null;
    const isSingle = SINGLE_SHORTS.includes(tag) || SINGLE_INTEGERS.includes(tag);
    if ((allowed && !allowed.includes(type)) || (isSingle && count !== 1)) {
      throw new Error(`its tag ${tag} has type ${type} and ${count} values`);
    }
    const isOneBitFrom = (other) => Number.isInteger(Math.log2(tag ^ other)) && !numbers.includes(other);
    const meant = !allowed && type === SHORT && count === 1 && MAY_BE_ABSENT.find(isOneBitFrom);
    if (meant) throw new Error(`its tag ${tag} seems to be a damaged ${meant}`);
  }
  const sorted = parts.toSorted((one, other) => one.offset - other.offset);
  if (sorted.some(({ offset, size }, place) => offset + size > sorted[place + 1]?.offset)) throw new Error("two of its parts overlap");
}

/** Return a part's bytes, {raw, view, little}: in which order those of a sample are. */
async function decompress(stored, { size, rows, rowBytes, across }, { compression, predictor, depth, little, ...kind }) {
  if (stored.length !== size) throw new Error("it is cut short");
  const isDeflated = DEFLATES.includes(compression);
  let raw = stored;
  if (compression === LZW) raw = new Uint8Array(new (await load("compression/lzw.js")).default().decodeBlock(stored.buffer));
  else if (compression === PACK_BITS) raw = unpackBits(stored, rows * rowBytes);
  else if (isDeflated) raw = await inflate([stored], "deflate", "TIFF: its compressed pixels are broken");
  if (raw.length < rows * rowBytes || (isDeflated && raw.length > rows * rowBytes)) {
    throw new Error(`${raw.length} bytes of pixels stand where its tags say ${rows * rowBytes}`);
  }
  const view = new DataView(raw.buffer);
  if (predictor === 1) return { raw, view, little };
  if (predictor !== (kind.isFloat ? 3 : 2) && !(predictor === 2 && depth === 32)) throw new Error(`its predictor is ${predictor}`);
  if (predictor === 2 && !little && depth > 8) {
    for (let place = 0; place < raw.length; place += depth / 8) raw.subarray(place, place + depth / 8).reverse(); // geotiff takes this machine's order
  }
  const { applyPredictor } = await load("predictor.js");
  applyPredictor(raw.buffer, predictor, across, rows, Array(kind.isApart ? 1 : kind.stored).fill(depth), 1);
  return { raw, view, little: true };
}

function load(name) {
  return import(`./runtime/geotiff/${name}`);
}

/** PackBits (TIFF 6.0, section 9). */
export function unpackBits(stored, size) {
  const raw = new Uint8Array(size);
  let filled = 0;
  for (let place = 0; place < stored.length && filled < size; ) {
    const count = stored[place] < 128 ? stored[place] + 1 : 257 - stored[place];
    if (stored[place] < 128) raw.set(stored.subarray(place + 1, place + 1 + Math.min(count, size - filled)), filled);
    else if (stored[place] > 128) raw.fill(stored[place + 1], filled, filled + count);
    filled += stored[place] === 128 ? 0 : count;
    place += stored[place] < 128 ? 1 + count : stored[place] > 128 ? 2 : 1;
    if (place > stored.length) throw new Error("it is cut short");
  }
  return raw.subarray(0, Math.min(filled, size));
}

/** Put the samples of a part where they belong. */
function fill(samples, { raw, view, little }, part, { width, height, depth, format, stored, channels, isApart }) {
  const interleaved = isApart ? 1 : stored;
  const reader = READERS[`${format} ${depth}`];
  for (let row = 0; row < part.rows && part.top + row < height; row++) {
    const line = raw.subarray(row * part.rowBytes);
    for (let column = 0; column < part.across && part.left + column < width; column++) {
      const pixel = (part.top + row) * width + part.left + column;
      for (let channel = 0; channel < interleaved && part.plane + channel < channels; channel++) {
        const place = column * interleaved + channel;
        samples[pixel * channels + part.plane + channel] = reader
          ? view[reader](row * part.rowBytes + (place * depth) / 8, little)
          : sample(line, place, depth);
      }
    }
  }
}
