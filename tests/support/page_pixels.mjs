// Prints, for each picture of a job, what the browser page's own files make of it: node page_pixels.mjs JOB.json
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const job = JSON.parse(await readFile(process.argv[2], "utf8"));
const load = (name) => import(pathToFileURL(`${job.page}/${name}`));
const [{ readGrey }, { applySpec }, { judge }] = await Promise.all(["picture.js", "pixels.js", "abstention.js"].map(load));
const hash = (data) => createHash("sha256").update(data).digest("hex");

const answers = {};
for (const path of job.paths) {
  try {
    const grey = await readGrey(new Uint8Array(await readFile(path)));
    const specs = job.specs.map((spec) => {
      const { image, notes } = applySpec(grey.image, spec);
      const judged = job.abstention ? judge(job.logits, image, job.classes, job.abstention) : undefined;
      return { sha256: hash(image.data), notes, judged };
    });
    answers[path] = { shape: [grey.image.height, grey.image.width], sha256: hash(grey.image.data), notes: grey.notes, specs };
  } catch (error) {
    answers[path] = { error: error.message };
  }
}
console.log(JSON.stringify(answers));
