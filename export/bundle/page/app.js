/** The page: checks the bundle, replays the golden images, and answers the user's images. */

import { judge, UNCERTAIN } from "./abstention.js";
import { BundleError, loadBundle } from "./bundle.js";
import { replay } from "./golden.js";
import { decodeJpeg } from "./jpeg.js";
import { dequantize, loadNetwork } from "./network.js";
import { readGrey } from "./picture.js";
import { applySpec } from "./pixels.js";
import { Unreadable } from "./unreadable.js";

const find = (id) => document.getElementById(id);
let classify = null;

/** Check everything; until that is done, and where anything is wrong, no image is answered. */
async function verify() {
  setState("checking", "Checking the files ...", "");
  try {
    const bundle = await loadBundle((done, all) => {
      find("status-text").textContent = `${done} of ${all} files`;
    });
    const network = await loadNetwork(bundle.model, bundle.wasm, bundle.about.page.logit_scale);
    const answer = (bytes) => answerImage(bundle, network, bytes);
    describe(bundle);
    find("status-text").textContent = "Replaying the golden images ...";
    const rows = await replay(bundle, answer);
    showGolden(bundle, rows);
    const wrong = rows.filter((row) => row.wrong).map((row) => `${row.name}: ${row.wrong}`);
    if (wrong.length) {
      throw new BundleError(`Golden images differ in this browser, so it must not be used:\n${wrong.join("\n")}`);
    }
    classify = answer;
    const exact = rows.filter((row) => row.isExact).length;
    const text = `${bundle.count} files are as they were made; ${rows.length} golden images answered as in Python`;
    setState("ready", "Ready", `${text}, ${exact} of them equal to the last bit.`);
  } catch (error) {
    setState("refused", "Refused", error instanceof BundleError ? error.message : `The model cannot be used: ${error}`);
  }
}

/** Read and classify one image. Throws Unreadable. */
async function answerImage({ about, classes, spec }, network, bytes) {
  const { metadata, logit_scale: logitScale } = about.page;
  const grey = await readGrey(bytes, decodeJpeg);
  const { image, notes } = applySpec(grey.image, spec);
  const logits = await network(image);
  const judged = judge(dequantize(logits, logitScale), image, classes, metadata.abstention);
  return { ...judged, logits, image, notes: [...grey.notes, ...notes] };
}

async function answerFiles(files) {
  for (const file of files) {
    const article = make("article");
    find("answers").prepend(article);
    article.append(make("h3", file.name), make("p", "...", "class"));
    await new Promise((resolve) => setTimeout(resolve)); // lets the browser draw
    try {
      show(article, file.name, await classify(new Uint8Array(await file.arrayBuffer())));
    } catch (error) {
      const text = error instanceof Unreadable ? error.message : `cannot be read: ${error}`;
      article.replaceChildren(make("h3", file.name), make("p", `This file ${text}.`, "class error"));
      article.dataset.answer = JSON.stringify({ path: file.name, error: text });
    }
  }
}

function show(article, name, answer) {
  const { image, ...plain } = answer;
  const figure = make("figure");
  const canvas = Object.assign(make("canvas"), { width: image.width, height: image.height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `What the network saw of ${name}`);
  draw(canvas, image);
  figure.append(canvas, make("figcaption", "what the network saw"));
  const isUncertain = answer.class === UNCERTAIN;
  const verdict = isUncertain ? `${UNCERTAIN}: ${answer.abstained}` : answer.class;
  const bars = make("dl", "", "bars");
  for (const [label, value] of Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1])) {
    const percent = `${(100 * value).toFixed(1)} %`;
    const meter = Object.assign(make("meter"), { value });
    meter.setAttribute("aria-label", `${label} ${percent}`);
    const bar = make("dd");
    bar.append(meter, make("span", percent));
    bars.append(make("dt", label), bar);
  }
  const verdictLine = make("p", verdict, isUncertain ? "class uncertain" : "class");
  article.replaceChildren(figure, make("h3", name), verdictLine, bars);
  if (answer.notes.length) article.append(make("p", answer.notes.join("; "), "notes"));
  article.dataset.answer = JSON.stringify({ path: name, ...plain });
}

function draw(canvas, { width, height, data }) {
  const shown = new ImageData(width, height);
  data.forEach((value, place) => shown.data.set([value, value, value, 255], 4 * place));
  canvas.getContext("2d").putImageData(shown, 0, 0);
}

function showGolden(bundle, rows) {
  const { file, matches, runtime } = bundle.about.page;
  find("checks-text").textContent = `${file} (${runtime}) stands for ${matches}, which predict.py runs.`;
  find("golden").replaceChildren(
    ...rows.map((row) => {
      const line = make("tr", "", row.wrong ? "bad" : "good");
      line.append(...[row.name, row.answer, row.pixels, row.wrong || row.logits].map((text) => make("td", text)));
      return line;
    }),
  );
  find("checks").hidden = false;
}

function describe({ about, classes, spec, model }) {
  const { file, metadata, runtime } = about.page;
  const lines = {
    model: `${file}, ${model.length.toLocaleString("en")} bytes`,
    classes: classes.join(", "),
    "what it sees": `${spec.size} x ${spec.size} grey pixels, fit ${spec.fit}`,
    "when it does not answer": metadata.abstention
      ? `below a probability of ${metadata.abstention.threshold}, or where the image is unlike its training images`
      : "it always answers",
    "runs in": runtime,
  };
  find("about").replaceChildren(
    ...Object.entries(lines).flatMap(([term, text]) => [make("dt", term), make("dd", text)]),
  );
}

function setState(state, line, text) {
  document.documentElement.dataset.state = state;
  find("status-line").textContent = line;
  find("status-text").textContent = text;
  find("files").disabled = state !== "ready";
  find("verify").hidden = state === "checking";
  if (state !== "ready") classify = null;
}

function make(tag, text = "", name = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className: name });
}

let queue = Promise.resolve();
const answerLater = (files) => {
  queue = queue.then(() => classify && answerFiles([...files]));
};
find("files").addEventListener("change", ({ target }) => {
  answerLater([...target.files]);
  target.value = ""; // the same file may be chosen again
});
find("verify").addEventListener("click", verify);
const drop = find("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a missed drop would open the image in place of the page
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") answerLater([...event.dataTransfer.files]);
  });
}
verify();
