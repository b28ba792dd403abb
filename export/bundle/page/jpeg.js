/** Decodes JPEG files by the browser's own decoder, as plainly as it lets us. */

import { damaged, Unreadable } from "./unreadable.js";

const STRIP_ROWS = 512; // a phone hands back an empty canvas where one is too large

/** Map a file's bytes to {width, height, data: RGBA}. EXIF orientation is applied, colour profiles are not. */
export async function decodeJpeg(bytes) {
  if (!readsBackWhatItDraws()) {
    throw new Unreadable("is a JPEG, and this browser alters the pixels that it decodes", "use PNG, or predict.py");
  }
  let bitmap;
  try {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }), options);
  } catch {
    throw damaged("JPEG");
  }
  const { width, height } = bitmap;
  const data = new Uint8ClampedArray(4 * width * height);
  const context = makeContext(width, Math.min(STRIP_ROWS, height));
  for (let top = 0; top < height; top += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, height - top);
    context.drawImage(bitmap, 0, -top);
    data.set(context.getImageData(0, 0, width, rows).data, 4 * width * top);
  }
  bitmap.close();
  return { width, height, data };
}

/** Tell whether the canvas is honest: some browsers change pixels, lest pages recognise their user. */
function readsBackWhatItDraws() {
  const drawn = new ImageData(256, 4);
  drawn.data.forEach((_, place) => (drawn.data[place] = place % 4 === 3 ? 255 : (place >> 2) & 255));
  const context = makeContext(256, 4);
  context.putImageData(drawn, 0, 0);
  return context.getImageData(0, 0, 256, 4).data.every((value, place) => value === drawn.data[place]);
}

function makeContext(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
}
