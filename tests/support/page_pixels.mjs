// Prints, for each picture of a job, what the browser page's own files make of it: node page_pixels.mjs JOB.json
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const job = JSON.parse(await readFile(process.argv[2], "utf8"));
const load = (name) => import(pathToFileURL(`${job.page}/${name}`));
const [files, { applySpec }, { judge }, series] = await Promise.all(["files.js", "pixels.js", "abstention.js", "series.js"].map(load));
const scripts = { dicomParser: "dicomParser.min.js", CharLSWASM: "charlswasm_decode.js", OpenJPEGWASM: "openjpegwasm_decode.js" };
for (const [name, file] of Object.entries(scripts)) {
  if (existsSync(`${job.page}/runtime/${file}`)) globalThis[name] = createRequire(import.meta.url)(`${job.page}/runtime/${file}`);
}
const hash = (data) => createHash("sha256").update(data).digest("hex");

async function answer(slice) {
  try {
    const grey = await files.readSlice(slice);
    const specs = job.specs.map((spec) => {
      const { image, notes } = applySpec(grey.image, spec);
      const judged = job.abstention ? judge(job.logits, image, job.classes, job.abstention) : undefined;
      return { sha256: hash(image.data), notes, judged };
    });
    const notes = [grey.warning, ...grey.notes].filter(Boolean); // one list in Python
    return { shape: [grey.image.height, grey.image.width], sha256: hash(grey.image.data), notes, specs };
  } catch (error) {
    return { error: error.message };
  }
}

const answers = {};
const slices = [];
const paths = job.paths.map((path) => ({ path })).sort(series.inOrder);
const beside = new Map(job.paths.map((path) => [path, { open: () => readFile(path) }]));
for (const { path } of paths) {
  try {
    const found = await files.listSlices({ path, file: await readFile(path), isAlone: !job.together, beside, classes: job.classes });
    if (job.series) slices.push(...found);
    else if (found.length) answers[path] = await answer(found[0]);
  } catch (error) {
    answers[path] = { error: error.message };
  }
}
for (const { path, title, slices: found } of series.sortIntoSeries(slices)) {
  answers[path] ??= []; // of volumes in one file
  for (const slice of found) answers[path].push({ ...(await answer(slice)), title, position: slice.position, unfit: slice.unfit });
}
if (job.rule) answers.rule = job.rule.map(({ classes, probabilities, counts, rule }) => series.judgeSeries(classes, probabilities, counts, rule));
console.log(JSON.stringify(answers));
