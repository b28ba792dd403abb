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
export async function unpack(header, frame, { rows, columns, samples }) {
  const [name, unpackFrame] = COMPRESSIONS[ending(header.string("x00020010"))];
  try {
    const unpacked = await unpackFrame(frameBytes(header, frame), rows * columns, samples);
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
  const decoder = new Decoder();
  const unpacked = new Uint8Array(decoder.decompress(bytes.slice().buffer, 0, bytes.length));
  return { bytes: unpacked, width: decoder.xDim, height: decoder.yDim };
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
function unpackRle(bytes, size, samples) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const starts = Array.from({ length: view.getUint32(0, true) }, (_, part) => view.getUint32(4 + 4 * part, true));
  const step = starts.length / samples;
  const unpacked = new Uint8Array(size * starts.length);
  starts.forEach((start, part) => {
    const sample = Math.floor(part / step);
    const byte = step - 1 - (part % step);
    const held = unpackBits(bytes.subarray(start, starts[part + 1]), size);
    if (held.length < size) throw new Error("it is cut short");
    held.forEach((value, place) => (unpacked[(sample * size + place) * step + byte] = value));
  });
  return { bytes: unpacked, isPlanar: true };
}
