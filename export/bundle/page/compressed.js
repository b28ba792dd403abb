/**
 * Unpacks compressed frames of DICOM files. The only file here that knows the codecs: of JPEG Lossless in JavaScript,
 * of JPEG-LS and JPEG 2000 in WebAssembly, which the page loads, and the browser's own of JPEG.
 */

import { decodeJpeg } from "./jpeg.js";
import { hasEnd, JPEG_NOTE, jpegFrame } from "./picture.js";
import { unpackBits } from "./tiff.js";
import { damaged, Unreadable } from "./unreadable.js";

/** What the number of a transfer syntax ends with: the compression, and what unpacks it. */
const COMPRESSIONS = {
  "4.50": ["JPEG", unpackJpeg], "4.51": ["JPEG", unpackJpeg], "4.57": ["JPEG Lossless", unpackLossless],
  "4.70": ["JPEG Lossless", unpackLossless], "4.80": ["JPEG-LS", unpackJpegLs], "4.81": ["JPEG-LS", unpackJpegLs],
  "4.90": ["JPEG 2000", unpackJpeg2000], "4.91": ["JPEG 2000", unpackJpeg2000], 5: ["RLE", unpackRle],
}; // prettier-ignore
const loaded = {};

export function isCompressed(syntax) {
  return ending(syntax) in COMPRESSIONS;
}

function ending(syntax) {
  return syntax.replace("1.2.840.10008.1.2.", "");
}

/**
 * Return a frame's little-endian samples, {bytes, step, isPlanar, isRgb, notes}: step bytes each, those of a plane together
 * or those of a pixel. shape: {rows, columns, samples}, the last in each pixel.
 */
export async function unpack(header, frame, shape) {
  const { rows, columns, samples } = shape;
  const [name, unpackFrame] = COMPRESSIONS[ending(header.string("x00020010"))];
  try {
    const unpacked = await unpackFrame(frameBytes(header, frame), shape);
    const { bytes, width = columns, height = rows } = unpacked;
    const step = bytes.length / (width * height * samples);
    if (width !== columns || height !== rows || ![1, 2, 4].includes(step)) throw new Error("other sides than its header says");
    return { notes: [], step, ...unpacked };
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    throw damaged(`DICOM file (${name}: ${error?.exception ?? error?.message ?? error})`);
  }
}

/** Return what is stored of a frame, in one fragment or several (PS3.5 A.4). */
function frameBytes(header, frame) {
  const { dicomParser } = globalThis;
  const stream = new dicomParser.ByteStream(dicomParser.littleEndianByteArrayParser, header.byteArray, header.elements.x7fe00010.dataOffset - 12);
  const element = dicomParser.readDicomElementExplicit(stream, []);
  const { fragments, basicOffsetTable } = element;
  const count = header.intString("x00280008") || 1;
  if (count === 1 || count === fragments.length) {
    return dicomParser.readEncapsulatedPixelDataFromFragments(header, element, frame, fragments.length / count);
  }
  const table = basicOffsetTable.length ? basicOffsetTable : dicomParser.createJPEGBasicOffsetTable(header, element);
  return dicomParser.readEncapsulatedImageFrame(header, element, frame, table);
}

async function unpackJpeg(bytes) {
  const { width, height, components } = jpegFrame(bytes);
  const { data } = await decodeJpeg(bytes);
  return { bytes: data.filter((_, place) => place % 4 < components), width, height, isRgb: true, notes: [JPEG_NOTE] };
}

async function unpackLossless(bytes) {
  if (!hasEnd(bytes)) throw new Error("it is cut short");
  const { Decoder } = await import("./runtime/lossless-min.js");
  const unpacked = [];
  let [width, height] = [0, 0];
  for (const strip of splitAtRestarts(bytes)) {
    const decoder = new Decoder();
    const held = await strip.arrayBuffer();
    unpacked.push(decoder.decompress(held, 0, held.byteLength));
    if (decoder.yLoc !== decoder.yDim) throw new Error("it is cut short"); // the rest would be black
    [width, height] = [decoder.xDim, height + decoder.yDim];
  }
  return { bytes: new Uint8Array(await new Blob(unpacked).arrayBuffer()), width, height };
}

/**
 * Return JPEG Lossless as images of the rows between its restarts (ITU-T T.81, H.1.2.1): the decoder predicts the first
 * row alone as it should. Bits that are all 1 stand before their end, or it takes the end for what stands before it.
 */
function splitAtRestarts(bytes) {
  const word = (at) => (bytes[at] << 8) | bytes[at + 1];
  const head = [bytes.slice(0, 2)];
  let [at, rows, columns, interval] = [2, 0, 0, 0];
  for (let marker = 0; marker !== 0xffda; ) {
    marker = word(at);
    const length = marker === 0xffff ? -1 : word(at + 2);
    if (marker >> 8 !== 0xff || at >= bytes.length) throw new Error("its header is damaged");
    if (marker === 0xffc3) [rows, columns] = [word(at + 5), word(at + 7)];
    if (marker === 0xffdd) interval = word(at + 4);
    else head.push(bytes.slice(at, at + 2 + length));
    at += 2 + length;
  }
  const most = interval ? interval / columns : rows;
  if (!Number.isInteger(most)) throw new Error("it restarts within a row");
  const strips = [];
  for (let start = at, place = at; strips.length * most < rows; place++) {
    if (place >= bytes.length) throw new Error("it is cut short");
    if (bytes[place] !== 0xff || bytes[place + 1] === 0) continue;
    const frame = head.find((part) => part[1] === 0xc3);
    new DataView(frame.buffer).setUint16(5, Math.min(most, rows - strips.length * most));
    strips.push(new Blob([...head, bytes.subarray(start, place), Uint8Array.of(0xff, 0, 0xff, 0xd9)]));
    start = place + 2;
  }
  return strips;
}

function unpackJpegLs(bytes) {
  return run("CharLSWASM", "JpegLSDecoder", bytes, (decoder) => ({ isPlanar: decoder.getInterleaveMode() === 0 }));
}

function unpackJpeg2000(bytes) {
  return run("OpenJPEGWASM", "J2KDecoder", bytes, () => ({}));
}

/** Decode in WebAssembly; where that fails its memory may be anything, so it is loaded anew. */
async function run(codec, kind, bytes, describe) {
  loaded[codec] ??= globalThis[codec]({ print: () => {}, printErr: () => {} });
  try {
    const decoder = new (await loaded[codec])[kind]();
    decoder.getEncodedBuffer(bytes.length).set(bytes);
    decoder.decode();
    const { width, height } = decoder.getFrameInfo();
    const unpacked = { bytes: decoder.getDecodedBuffer().slice(), width, height, ...describe(decoder) };
    decoder.delete();
    return unpacked;
  } catch (error) {
    delete loaded[codec];
    throw error;
  }
}

/** Unpack the bytes of samples, those of a place together, the highest place first (PS3.5 G). */
function unpackRle(bytes, { rows, columns, samples }) {
  const size = rows * columns;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const starts = Array.from({ length: view.getUint32(0, true) }, (_, part) => view.getUint32(4 + 4 * part, true));
  const step = starts.length / samples;
  const unpacked = new Uint8Array(size * starts.length);
  if (measure(bytes.subarray(starts[0], starts[1])) - size >= Math.min(rows, columns)) throw new Error("it has more pixels than its header says");
  starts.forEach((start, part) => {
    const sample = Math.floor(part / step);
    const byte = step - 1 - (part % step);
    const held = unpackBits(bytes.subarray(start, starts[part + 1]), size);
    if (held.length < size) throw new Error("it is cut short");
    held.forEach((value, place) => (unpacked[(sample * size + place) * step + byte] = value));
  });
  return { bytes: unpacked, isPlanar: true };
}

/** Return how many bytes a part is when it is unpacked, its padding as far as it goes. */
function measure(part) {
  let size = 0;
  for (let place = 0; place < part.length; ) {
    const count = part[place] < 128 ? part[place] + 1 : (257 - part[place]) % 129;
    size += part[place] < 128 ? Math.min(count, part.length - place - 1) : count;
    place += part[place] < 128 ? 1 + count : part[place] > 128 ? 2 : 1;
  }
  return size;
}
