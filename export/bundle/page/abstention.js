/** When an answer is not given: Abstention.judge of brainq_torch/abstention/policy.py in JavaScript. */

import { distance } from "./typicality.js";

export const UNCERTAIN = "uncertain";

/**
 * Name the class of an image.
 *
 * logits: one per class. image: the pixels they were computed from. abstention: as a file's metadata has it, or absent.
 * Returns {class, best, probability, probabilities, abstained, outlier}; abstained is empty where the answer is given.
 */
export function judge(logits, image, classes, abstention) {
  const values = softmax(logits.map((value) => value / (abstention ? abstention.temperature : 1)));
  const place = values.indexOf(Math.max(...values));
  const answer = {
    best: classes[place],
    probability: values[place],
    probabilities: Object.fromEntries(classes.map((name, index) => [name, values[index]])),
  };
  if (!abstention) return { ...answer, class: answer.best, abstained: "", outlier: null };
  const far =
    rank(energy(logits), abstention.energy) + rank(distance(image, abstention.typicality), abstention.distance);
  const outlier = far / abstention.limit;
  const unsure = answer.probability >= abstention.threshold ? "" : "not sure enough";
  const abstained = outlier > 1 ? "unlike the images it was trained on" : unsure;
  return { ...answer, class: abstained ? UNCERTAIN : answer.best, abstained, outlier };
}

/** Say where a score lies among validation images: the median at 0, the 99 % quantile at 1. */
function rank(score, { median, inside }) {
  return Math.max(score - median, 0) / (inside - median);
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

function energy(logits) {
  const largest = Math.max(...logits);
  return -largest - Math.log(logits.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}
