/** Replays the golden images: the page must give what Python gave when the bundle was made. */

import { sha256 } from "./bundle.js";

const FLOAT_TOLERANCE = 1e-3;
const INTEGER_TOLERANCE = 1;
const OUTLIER_TOLERANCE = 1e-5;

/** Return one {name, answer, pixels, logits, isExact, wrong} for each image; wrong is empty where all is as it must be. */
export async function replay(bundle, classify) {
  const rows = [];
  for (const [name, { pixels_sha256: pixels, answers }] of Object.entries(bundle.golden)) {
    const expected = answers[bundle.about.page.file];
    const found = await classify(bundle.file(name));
    const samePixels = (await sha256(found.image.data)) === pixels;
    const difference = Math.max(...found.logits.map((value, place) => Math.abs(value - expected.logits[place])));
    const tolerance = bundle.about.page.logit_scale ? INTEGER_TOLERANCE : FLOAT_TOLERANCE;
    const sameClass = ["class", "best"].every((key) => found[key] === expected[key]);
    const apart = Math.abs((found.outlier ?? 0) - (expected.outlier ?? 0));
    const wrong = [
      samePixels ? "" : "its pixels differ",
      difference <= tolerance ? "" : `logits differ by ${difference}`,
      sameClass ? "" : `is ${found.class} (${found.best}), must be ${expected.class} (${expected.best})`,
      apart <= OUTLIER_TOLERANCE * (1 + expected.outlier) ? "" : `its outlier score differs by ${apart}`,
    ];
    rows.push({
      name,
      answer: found.class === found.best ? found.class : `${found.class} (${found.best})`,
      pixels: samePixels ? "equal" : "differ",
      logits: difference === 0 ? "equal to the last bit" : `differ by ${difference.toPrecision(2)}`,
      isExact: samePixels && difference === 0,
      wrong: wrong.filter(Boolean).join(", "),
    });
  }
  return rows;
}
