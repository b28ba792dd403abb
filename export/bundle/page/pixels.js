/** How a grey image becomes the network's input: brainq_torch/data/pixels.py in JavaScript, bit for bit. */

import { findHead } from "./head_crop.js";
import { crop, resize, roundHalfEven } from "./resize.js";

const NO_HEAD = "no head found, the whole frame is used";
const MIDDLE_GREY = 128;

/** Return {image, notes}: the spec.size x spec.size image that the network sees. */
export function applySpec(image, spec) {
  if (spec.fit === "stretch") return { image: resize(image, spec.size, spec.size, "bilinear"), notes: [] };
  if (spec.fit === "pad") return { image: pad(image, spec.size), notes: [] };
  if (spec.fit !== "head") throw new Error(`pixels.json says fit ${spec.fit}; this page knows stretch, pad and head`);
  const head = findHead(image);
  if (head === null) return { image: pad(image, spec.size), notes: [NO_HEAD] };
  return { image: pad(crop(image, head), spec.size), notes: [] };
}

/** Scale 8-bit grey to the network's input, (pixel - 128) / 128. */
export function scalePixels(data) {
  return Float32Array.from(data, (value) => (value - MIDDLE_GREY) / MIDDLE_GREY);
}

/** Resize the longer side to size and centre the image on black. */
function pad(image, size) {
  const scale = size / Math.max(image.width, image.height);
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, roundHalfEven(side * scale)));
  const left = -Math.floor((size - width) / 2);
  const top = -Math.floor((size - height) / 2);
  return crop(resize(image, width, height, "bilinear"), { left, top, right: left + size, bottom: top + size });
}
