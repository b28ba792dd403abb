/** The exported ONNX file in ONNX Runtime's WebAssembly build; the only file here that knows that library. */

import * as runtime from "./runtime/ort.wasm.bundle.min.mjs";

import { scalePixels } from "./pixels.js";

/** Return a function that maps an image to the file's own logits: integers where it has a logit scale. */
export async function loadNetwork(model, wasm, logitScale) {
  runtime.env.wasm.wasmBinary = wasm;
  runtime.env.wasm.numThreads = 1;
  // Integer files run as they are written: their sums are exact, and no fused kernel may round otherwise.
  const graphOptimizationLevel = logitScale ? "disabled" : "all";
  const options = { executionProviders: ["wasm"], graphOptimizationLevel, logSeverityLevel: 3 };
  const session = await runtime.InferenceSession.create(model, options);
  return async ({ width, height, data }) => {
    const input = new runtime.Tensor("float32", scalePixels(data), [1, 1, height, width]);
    const output = (await session.run({ [session.inputNames[0]]: input }))[session.outputNames[0]];
    const logits = [...output.data];
    if (!logitScale) return logits;
    return logits.map((value) => Math.round(value / Math.fround(logitScale.scale)) + logitScale.zero_point);
  };
}

/** Turn the file's own logits into real ones, in single precision as Python does. */
export function dequantize(logits, logitScale) {
  if (!logitScale) return logits;
  return logits.map((value) => Math.fround((value - logitScale.zero_point) * Math.fround(logitScale.scale)));
}
