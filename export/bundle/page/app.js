/** The page: checks the bundle, replays the golden images, and answers the user's images. */

import { judge, UNCERTAIN } from "./abstention.js";
import { BundleError, loadBundle } from "./bundle.js";
import { draw, make } from "./elements.js";
import { listSlices, readSlice } from "./files.js";
import { replay } from "./golden.js";
import { decodeJpeg } from "./jpeg.js";
import { dequantize, loadNetwork } from "./network.js";
import { applySpec } from "./pixels.js";
import { HEALTHY, inOrder, sortIntoSeries, sumUp } from "./series.js";
import { showSeries } from "./strip.js";
import { BLANK, LeftOut, Unreadable } from "./unreadable.js";

const find = (id) => document.getElementById(id);
let answering = null;

/** Check everything; until that is done, and where anything is wrong, no image is answered. */
async function verify() {
  setState("checking", "Checking the files ...", "");
  try {
    const bundle = await loadBundle((done, all) => {
      find("status-text").textContent = `${done} of ${all} files`;
    });
    const network = await loadNetwork(bundle.model, bundle.wasm, bundle.about.page.logit_scale);
    const classify = (slice) => answerSlice(bundle, network, slice);
    describe(bundle);
    find("status-text").textContent = "Replaying the golden images ...";
    const rows = await replay(bundle, async (bytes) => classify((await listSlices({ path: "golden", file: bytes }, decodeJpeg))[0]));
    showGolden(bundle, rows);
    const wrong = rows.filter((row) => row.wrong).map((row) => `${row.name}: ${row.wrong}`);
    if (wrong.length) {
      throw new BundleError(`Golden images differ in this browser, so it must not be used:\n${wrong.join("\n")}`);
    }
    answering = { classify, classes: bundle.classes, rule: bundle.about.series_rule };
    const exact = rows.filter((row) => row.isExact).length;
    const text = `${bundle.count} files are as they were made; ${rows.length} golden images answered as in Python`;
    setState("ready", "Ready", `${text}, ${exact} of them equal to the last bit.`);
  } catch (error) {
    setState("refused", "Refused", error instanceof BundleError ? error.message : `The model cannot be used: ${error}`);
  }
}

/** Read and classify one slice. Throws Unreadable. */
async function answerSlice({ about, classes, spec }, network, slice) {
  const { metadata, logit_scale: logitScale } = about.page;
  const grey = await readSlice(slice);
  const { image, notes } = applySpec(grey.image, spec);
  const logits = await network(image);
  const judged = judge(dequantize(logits, logitScale), image, classes, metadata.abstention);
  return { ...judged, logits, image, warning: grey.warning ?? "", notes: [...grey.notes, ...notes] };
}

/** Answer chosen files, {path, file, isOfFolder}, in Python's order: single images each, slices of a series together. */
async function answerFiles(files) {
  const slices = [];
  const before = find("answers").firstChild; // what is answered already stays below
  files.sort(inOrder);
  const refused = new Map();
  const refuse = (error, path) => {
    const text = explain(error);
    if (!refused.has(text)) refused.set(text, { paths: [], error });
    refused.get(text).paths.push(path);
  };
  const isAlone = files.length === 1;
  const beside = new Map(files.map(({ path, file }) => [path, file]));
  const known = new Map();
  const progress = makeArticle("Reading", before);
  for (const [place, file] of files.entries()) {
    await say(progress, `${place + 1} of ${files.length} files`);
    try {
      slices.push(...(await listSlices({ ...file, isAlone, beside, known, classes: answering.classes }, decodeJpeg)));
    } catch (error) {
      refuse(error, file.path);
    }
  }
  const damaged = slices.filter(({ fault }) => fault);
  damaged.forEach(({ fault, path }) => refuse(fault, path));
  progress.remove();
  const [below] = [...refused.values()].map(({ paths, error }) => {
    const article = makeArticle(paths[0], before);
    showError(article, paths, error, isAlone);
    return article;
  });
  if (!slices.length && !refused.size) makeArticle("No image", before).querySelector("p").textContent = "in these files";
  for (const series of sortIntoSeries(slices.filter(({ path }) => !damaged.some((one) => one.path === path)))) {
    const article = makeArticle(series.title || series.path, below ?? before);
    await (series.slices.length > 1 ? answerSeries(article, series) : answerImage(article, series.slices[0]));
  }
}

async function answerImage(article, slice) {
  await say(article, "...");
  try {
    show(article, slice, await answering.classify(slice));
  } catch (error) {
    showError(article, [slice.path], error);
  }
}

async function answerSeries(article, series) {
  const answers = [];
  let failed;
  for (const [place, slice] of series.slices.entries()) {
    await say(article, `slice ${place + 1} of ${series.slices.length}`);
    const row = { path: slice.path, slice: place + 1, position_mm: slice.position };
    try {
      const { image, ...answer } = await answering.classify(slice);
      answers.push({ row: { ...row, ...answer }, image });
    } catch (error) {
      const text = explain(error);
      failed ??= error;
      const isBlank = error instanceof Unreadable && text.startsWith(BLANK); // above the head, or below it
      answers.push({ row: { ...row, ...(isBlank ? { class: UNCERTAIN, abstained: BLANK } : { error: text }) }, image: null });
    }
  }
  const rows = answers.map(({ row }) => row);
  if (!rows.some((row) => row.class)) {
    showError(article, [...new Set(rows.map(({ path }) => path))], failed);
    return;
  }
  const said = sumUp(series, rows, answering.classes, answering.rule);
  showSeries(article, said, answers, answering.classes);
  article.dataset.answer = JSON.stringify({ ...said, rows });
}

function makeArticle(title, before = find("answers").firstChild) {
  const article = make("article");
  article.append(make("h3", title), make("p", "...", "class"));
  find("answers").insertBefore(article, before);
  return article;
}

async function say(article, text) {
  article.querySelector(".class").textContent = text;
  await new Promise((resolve) => setTimeout(resolve)); // lets the browser draw
}

function explain(error) {
  return error instanceof Unreadable ? error.message : `cannot be read: ${error}`;
}

/** Show what is wrong with files, once for all of them. */
function showError(article, paths, error, isAlone = true) {
  const text = explain(error);
  const isLeftOut = error instanceof LeftOut && !isAlone;
  const title = paths.length > 1 ? `${paths[0]} and ${paths.length - 1} more` : paths[0];
  const which = `${isLeftOut ? "Left out" : "Not read"}: ${paths.length > 1 ? "each" : "this file"}`;
  const line = make("p", `${which} ${text}.`, isLeftOut ? "notes" : "class error");
  article.replaceChildren(make("h3", title), line);
  article.dataset.answer = JSON.stringify({ path: paths[0], files: paths.length, error: text, left_out: isLeftOut });
}

function show(article, { path: name }, answer) {
  const { image, ...plain } = answer;
  const figure = make("figure");
  const canvas = make("canvas");
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
  const verdictLine = make("p", verdict, answer.warning ? "sum" : isUncertain ? "class uncertain" : "class");
  const warning = answer.warning ? [make("p", answer.warning, "class error")] : [];
  article.replaceChildren(figure, make("h3", name), verdictLine, ...warning, bars);
  if (answer.notes.length) article.append(make("p", answer.notes.join("; "), "notes"));
  article.dataset.answer = JSON.stringify({ path: name, ...plain });
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
  const short = (limit) => Number(limit.toPrecision(4));
  const limits = [about.series_rule.healthy_up_to, about.series_rule.tumour_from].map(short);
  const lines = {
    model: `${file}, ${model.length.toLocaleString("en")} bytes`,
    classes: classes.join(", "),
    "what it sees": `${spec.size} x ${spec.size} grey pixels, fit ${spec.fit}`,
    "when it does not answer": metadata.abstention
      ? `below a probability of ${short(metadata.abstention.threshold)}, or where the image is unlike its training images`
      : "it always answers",
    "a whole series": classes.includes(HEALTHY)
      ? `${HEALTHY} where a tumour's probability is at most ${limits[0]}, a tumour from ${limits[1]}, else uncertain`
      : `no answer of its own, only its slices': there is no class ${HEALTHY}`,
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
  for (const input of document.querySelectorAll("#drop input")) input.disabled = state !== "ready";
  find("verify").hidden = state === "checking";
  if (state !== "ready") answering = null;
}

let queue = Promise.resolve(); // of checks and answers: none begins before the one before has ended
const verifyLater = () => {
  queue = queue.then(verify);
};
const answerLater = (files) => {
  const answer = async () => answering && answerFiles(await files);
  queue = queue.then(answer).catch((error) => showError(makeArticle(""), ["What was chosen"], error)); // the next is answered
};
for (const input of document.querySelectorAll("#drop input")) {
  input.addEventListener("change", () => {
    const isOfFolder = input.webkitdirectory;
    answerLater([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file, isOfFolder })));
    input.value = ""; // the same file may be chosen again
  });
}
find("verify").addEventListener("click", verifyLater);
const drop = find("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a missed drop would open the image in place of the page
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") answerLater(listEntries([...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()), false));
  });
}

/** Return the files of what was dropped, {path, file, isOfFolder}, folders at any depth. */
async function listEntries(entries, isOfFolder) {
  const found = [];
  for (const entry of entries.filter(Boolean)) {
    if (!entry.name) { // no UTF-8: Chromium takes the folder that it lies in for it, which would be listed for ever
      const unnamed = new Unreadable("holds a file or folder with a name that the browser cannot read", "rename it, or use predict.py");
      found.push({ path: entry.fullPath.slice(1), file: { open: () => Promise.reject(unnamed) }, isOfFolder });
      continue;
    }
    if (entry.isFile) {
      const open = () => new Promise((...done) => entry.file(...done));
      found.push({ path: entry.fullPath.slice(1), file: { open }, isOfFolder });
      continue;
    }
    const reader = entry.createReader();
    for (let some = [null]; some.length; found.push(...(await listEntries(some, true)))) {
      some = await new Promise((...done) => reader.readEntries(...done));
    }
  }
  return found;
}

verifyLater();
