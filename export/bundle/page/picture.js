/** Reads one PNG, TIFF or JPEG file to 8-bit grey: brainq_torch/data/reading/raster.py in JavaScript. */

import { refuseGigantic, rescaleToUint8 } from "./grey.js";
import { decodePng, isPng } from "./png.js";
import { decodeTiff, isTiff } from "./tiff.js";
import { damaged, Unreadable } from "./unreadable.js";

export const JPEG_NOTE = "JPEG decoded by this browser: pixels may differ by 1 from Python's";

const COLOUR_SPREAD = 32;
const COLOUR_FRACTION = 0.001;
const SMALL_SIDE = 32;
const GREY = 0;
const PALETTE = 3;

export function isPicture(bytes) {
  return isPng(bytes) || isTiff(bytes) || isJpeg(bytes);
}

/** Return {image, notes} of a file's bytes. decodeJpeg: maps bytes to {width, height, data: RGBA}. */
export async function readPicture(bytes, decodeJpeg) {
  const decode = isTiff(bytes) ? decodeTiff : decodePng;
  const read = isJpeg(bytes) ? await readJpeg(bytes, decodeJpeg) : toGrey(await decode(bytes, refuseGigantic));
  const { width, height } = read.image;
  const size = Math.min(width, height) < SMALL_SIDE ? [`only ${width} x ${height} pixels`] : [];
  return { image: read.image, notes: [...size, ...read.notes] };
}

function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
}

async function readJpeg(bytes, decodeJpeg) {
  const { width, height, components } = jpegFrame(bytes);
  refuseGigantic(width, height);
  if (components !== 1 && components !== 3) {
    throw new Unreadable(`is a JPEG of ${components} colours`, "use predict.py, or save it as PNG");
  }
  const decoded = await decodeJpeg(bytes);
  const pixels = { ...decoded, channels: 4, depth: 8, samples: decoded.data };
  if (components === 1) return { image: take(pixels, ([value]) => value), notes: [JPEG_NOTE] };
  return { image: take(pixels, luma), notes: [...colourNotes(pixels), JPEG_NOTE] };
}

/** Find the frame header (ITU-T T.81, B.2.2), and that the file has an end. */
export function jpegFrame(bytes) {
  let offset = 2;
  while (offset + 9 < bytes.length && bytes[offset] === 0xff) {
    const marker = bytes[offset + 1];
    const length = (bytes[offset + 2] << 8) | bytes[offset + 3];
    if (marker === 0xff) {
      offset += 1;
    } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      if (bytes[offset + 4] !== 8) throw new Unreadable("is a JPEG of more than 8 bits", "use predict.py");
      const [height, width] = [5, 7].map((step) => (bytes[offset + step] << 8) | bytes[offset + step + 1]);
      if (hasEnd(bytes.subarray(offset)) && width && height) return { width, height, components: bytes[offset + 9] };
      break;
    } else {
      offset += 2 + length;
    }
  }
  throw damaged("JPEG");
}

/** Tell whether a JPEG's last marker is there; coded pixels never look like it. */
export function hasEnd(bytes) {
  return bytes.some((byte, place) => byte === 0xff && bytes[place + 1] === 0xd9);
}

/** Turn a decoded PNG or TIFF grey and upright, by its own rules for each kind. */
function toGrey(raw) {
  const isWide = raw.depth > 8;
  const { pixels, notes } = isWide ? rescale(raw) : { pixels: toEightBits(raw), notes: [] };
  const { turn, note } = upright(raw.orientation);
  if (note) notes.splice(isWide && raw.colour !== GREY ? notes.length : 0, 0, note);
  const alpha = alphaOf(raw, pixels);
  const grey = take(pixels, pixels.channels < 3 ? ([value]) => value : luma);
  if (alpha?.some((value) => value < 255)) {
    const data = grey.data.map((value, place) => Math.trunc((value * alpha[place]) / 255));
    return { image: turn({ ...grey, data }), notes: [...notes, "transparency composited on black"] };
  }
  if (raw.colour === PALETTE && !alpha) notes.push("palette converted to grey");
  else if (pixels.channels > 2) notes.push(...colourNotes(pixels));
  else if (raw.depth === 1) notes.push("1-bit black and white converted to grey");
  return { image: turn(grey), notes };
}

/** Return what turns a picture of an EXIF orientation upright, and the note of it. */
function upright(orientation) {
  if (!(orientation > 1 && orientation < 9)) return { turn: (image) => image, note: "" };
  const isTransposed = orientation > 4;
  const isMirrored = [2, 3, 7, 8].includes(orientation);
  const isUpsideDown = [3, 4, 6, 7].includes(orientation);
  const turn = ({ width, height, data }) => {
    const [across, down] = isTransposed ? [height, width] : [width, height];
    const turned = data.map((_, place) => {
      const [x, y] = [place % across, Math.floor(place / across)];
      const [column, row] = isTransposed ? [y, x] : [x, y];
      return data[(isUpsideDown ? height - 1 - row : row) * width + (isMirrored ? width - 1 - column : column)];
    });
    return { width: across, height: down, data: turned };
  };
  return { turn, note: `EXIF orientation ${orientation} applied` };
}

/** Rescale more than 8 bits of grey or colours, by the one scale of all that their channels hold. */
function rescale({ colour, channels, samples, transparency, isFloat, isWhiteZero, ...raw }) {
  const colours = colour >= 4 ? channels - 1 : channels;
  const what = colour !== GREY ? "16-bit colours" : isFloat ? "float pixels" : "16-bit or 32-bit pixels";
  const isColour = Uint8Array.from(samples, (_, place) => place % channels < colours);
  const { data, note } = rescaleToUint8(samples, raw.width * channels, what, isColour);
  const scaled = data.map((value, place) => (isColour[place] ? (isWhiteZero ? 255 - value : value) : samples[place] >> 8));
  const notes = [note];
  if (transparency) notes.push("transparency ignored");
  if (isWhiteZero) notes.push("white is zero in this TIFF, inverted");
  return { pixels: { ...raw, channels, samples: scaled }, notes };
}

/** Scale fewer bits up to 8, and look a palette's colours up. */
function toEightBits(png) {
  if (png.colour === PALETTE) return lookUp(png);
  const factor = 255 / ((1 << png.depth) - 1);
  return { ...png, samples: Uint8Array.from(png.samples, (value) => value * factor) };
}

function lookUp(png) {
  const { palette, samples } = png;
  if (!palette || samples.some((value) => 3 * value + 2 >= palette.length)) {
    throw new Unreadable("is a PNG that uses colours not in its palette", "save it as a grey PNG");
  }
  const colours = new Uint8Array(3 * samples.length);
  samples.forEach((value, place) => colours.set(palette.subarray(3 * value, 3 * value + 3), 3 * place));
  return { ...png, samples: colours, channels: 3 };
}

/** Return the opacity of each pixel, or null for a picture that has none. */
function alphaOf(png, { channels, samples }) {
  const count = png.width * png.height;
  if (png.colour >= 4) return Uint8Array.from({ length: count }, (_, place) => samples[(place + 1) * channels - 1]);
  if (!png.transparency || png.depth === 16) return null;
  if (png.colour === PALETTE) return Uint8Array.from(png.samples, (value) => png.transparency[value] ?? 255);
  if (png.depth !== 8) {
    throw new Unreadable(`is a PNG of ${png.depth} bits with a transparent colour`, "use predict.py, or save it without");
  }
  const clear = Array.from({ length: channels }, (_, channel) => png.transparency[2 * channel + 1]);
  const isClear = (place) => clear.every((value, channel) => samples[place * channels + channel] === value);
  return Uint8Array.from({ length: count }, (_, place) => (isClear(place) ? 0 : 255));
}

/** Make a grey image of what a function gives for each pixel. */
export function take({ width, height, channels, samples }, grey) {
  const data = new Uint8Array(width * height);
  for (let place = 0; place < data.length; place++) {
    data[place] = grey(samples.subarray(place * channels, (place + 1) * channels));
  }
  return { width, height, data };
}

/** ITU-R 601-2 luma in Pillow's fixed point (libImaging/Convert.c, L24). */
export function luma([red, green, blue]) {
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
}

/** Note a picture that is no grey scan: a photograph, or a scan with coloured marks. */
function colourNotes({ width, height, channels, samples }) {
  let coloured = 0;
  for (let place = 0; place < width * height; place++) {
    const [red, green, blue] = samples.subarray(place * channels, place * channels + 3);
    coloured += Math.max(red, green, blue) - Math.min(red, green, blue) > COLOUR_SPREAD;
  }
  return coloured / (width * height) > COLOUR_FRACTION ? ["coloured pixels converted to grey"] : [];
}
