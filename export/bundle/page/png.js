/**
 * Decodes PNG files (https://www.w3.org/TR/png-3/) to their raw samples: a canvas would convert colours and lose
 * 16-bit values and what lies under transparency.
 */

import { inflate } from "./inflate.js";
import { damaged, Unreadable } from "./unreadable.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const ORIENTATION_TAG = 0x0112;

/** The seven passes of an interlaced file: first column and row, steps between columns and rows. */
const ADAM7 = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
]; // prettier-ignore

export function isPng(bytes) {
  return SIGNATURE.every((value, place) => bytes[place] === value);
}

/**
 * Return {width, height, depth, colour, channels, samples, palette, transparency}.
 *
 * samples: Uint16Array, (height, width, channels), as they are in the file. colour: the file's colour type.
 * check: called with (width, height) before anything is decoded, throws where that is too large.
 */
export async function decodePng(bytes, check) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = readChunks(bytes, view);
  const header = chunks[0];
  if (header?.kind !== "IHDR" || header.content.length !== 13) throw damaged("PNG: its header is missing");
  const start = header.content.byteOffset - bytes.byteOffset;
  const [width, height] = [view.getUint32(start), view.getUint32(start + 4)];
  const [depth, colour, , , interlace] = header.content.subarray(8);
  if (!DEPTHS[colour]?.includes(depth) || width === 0 || height === 0) throw damaged("PNG: its header makes no sense");
  check(width, height);
  refuseWhatPythonReadsOtherwise(chunks);
  const of = (kind) => chunks.find((chunk) => chunk.kind === kind)?.content;
  const channels = CHANNELS[colour];
  const passes = (interlace ? ADAM7 : [[0, 0, 1, 1]])
    .map(([left, top, stepX, stepY]) => ({
      left, top, stepX, stepY,
      columns: Math.max(0, Math.ceil((width - left) / stepX)),
      rows: Math.max(0, Math.ceil((height - top) / stepY)),
    })) // prettier-ignore
    .filter(({ columns, rows }) => columns && rows);
  const rowBytes = (columns) => Math.ceil((columns * channels * depth) / 8);
  const size = passes.reduce((sum, { columns, rows }) => sum + rows * (1 + rowBytes(columns)), 0);
  const parts = chunks.filter(({ kind }) => kind === "IDAT").map(({ content }) => content);
  const raw = await inflate(parts, "deflate", "PNG: its compressed pixels are broken");
  if (raw.length < size) throw damaged("PNG: pixels are missing");
  const samples = new Uint16Array(width * height * channels);
  let offset = 0;
  for (const pass of passes) {
    const length = rowBytes(pass.columns);
    let above = new Uint8Array(length);
    for (let row = 0; row < pass.rows; row++) {
      const line = raw.subarray(offset + 1, offset + 1 + length);
      unfilter(raw[offset], line, above, Math.max(1, (channels * depth) / 8));
      const y = pass.top + row * pass.stepY;
      for (let place = 0; place < pass.columns * channels; place++) {
        const x = pass.left + Math.floor(place / channels) * pass.stepX;
        samples[(y * width + x) * channels + (place % channels)] = sample(line, place, depth);
      }
      above = line;
      offset += 1 + length;
    }
  }
  return { width, height, depth, colour, channels, samples, palette: of("PLTE"), transparency: of("tRNS") };
}

function readChunks(bytes, view) {
  const chunks = [];
  let offset = SIGNATURE.length;
  while (offset + 12 <= bytes.length) {
    const length = view.getUint32(offset);
    const end = offset + 8 + length;
    if (end + 4 > bytes.length) throw damaged("PNG: it is cut short");
    const kind = String.fromCharCode(...bytes.subarray(offset + 4, offset + 8));
    if (view.getUint32(end) !== crc(bytes.subarray(offset + 4, end))) throw damaged(`PNG: its part ${kind} is broken`);
    if (kind === "IEND") return chunks;
    chunks.push({ kind, content: bytes.subarray(offset + 8, end) });
    offset = end + 4;
  }
  throw damaged("PNG: it is cut short");
}

/** Refuse several frames, as Python does, and turned pictures, which this page does not turn. */
function refuseWhatPythonReadsOtherwise(chunks) {
  for (const { kind, content } of chunks) {
    const text = () => String.fromCharCode(...content.subarray(0, 4096));
    if (kind === "acTL" && new DataView(content.buffer, content.byteOffset).getUint32(0) > 1) {
      throw new Unreadable("is a PNG with several frames", "save the one frame that is meant as PNG");
    }
    const isTurned =
      (kind === "eXIf" && (exifOrientation(content) ?? 1) !== 1) ||
      (["tEXt", "zTXt", "iTXt"].includes(kind) && text().startsWith("Raw profile type exif")) ||
      (kind === "iTXt" && text().startsWith("XML:com.adobe.xmp") && (content[18] || text().includes("Orientation")));
    if (isTurned) {
      throw new Unreadable("is a PNG with a note on how it is to be turned", "use predict.py, or save it upright");
    }
  }
}

/** Return the orientation that an EXIF block names, or undefined. */
function exifOrientation(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const little = content[0] === 0x49;
  const first = view.getUint32(4, little);
  if (first + 2 > content.length) return undefined;
  const count = view.getUint16(first, little);
  for (let entry = first + 2; entry + 12 <= content.length && entry < first + 2 + 12 * count; entry += 12) {
    if (view.getUint16(entry, little) === ORIENTATION_TAG) return view.getUint16(entry + 8, little);
  }
  return undefined;
}

/** Undo a row's filter in place. step: bytes from one pixel to the next. */
function unfilter(kind, line, above, step) {
  if (kind > 4) throw damaged("PNG: a row has an unknown filter");
  for (let place = 0; place < line.length; place++) {
    const left = place >= step ? line[place - step] : 0;
    const corner = place >= step ? above[place - step] : 0;
    const guesses = [0, left, above[place], (left + above[place]) >> 1];
    line[place] += kind === 4 ? paeth(left, above[place], corner) : guesses[kind];
  }
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [fromLeft, fromUp, fromCorner] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (fromLeft <= fromUp && fromLeft <= fromCorner) return left;
  return fromUp <= fromCorner ? up : corner;
}

export function sample(line, place, depth) {
  if (depth === 8) return line[place];
  if (depth === 16) return (line[2 * place] << 8) | line[2 * place + 1];
  const perByte = 8 / depth;
  const shift = 8 - depth * ((place % perByte) + 1);
  return (line[Math.floor(place / perByte)] >> shift) & ((1 << depth) - 1);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return ~value >>> 0;
}
