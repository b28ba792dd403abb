/** One answer from those of a series' slices: brainq_torch/series in JavaScript, where the reasons stand. */

import { UNCERTAIN } from "./abstention.js";
import { splitSeries } from "./split.js";

export const HEALTHY = "notumor";

/** Compare {path} by the order in which Python walks folders: the files of each by name, then its folders. */
export function inOrder({ path: one }, { path: other }) {
  const [mine, others] = [one.split("/"), other.split("/")];
  const place = mine.findIndex((name, index) => name !== others[index]);
  if (place < 0) return 0;
  const [isFile, isOthersFile] = [mine, others].map(({ length }) => length === place + 1);
  if (isFile !== isOthersFile) return isFile ? -1 : 1;
  return mine[place] < others[place] ? -1 : 1;
}

/** Return files' slices as series: pictures and volumes first, then DICOM files joined by their series, a stack each. */
export function sortIntoSeries(slices) {
  const series = new Map();
  for (const slice of slices) {
    const key = slice.series || slice; // a picture stands alone
    if (!series.has(key)) series.set(key, []);
    series.get(key).push(slice);
  }
  const isScattered = ([{ series: name, path }]) => Number(Boolean(name) && !name.startsWith(path));
  return [...series.values()].toSorted((one, other) => isScattered(one) - isScattered(other)).flatMap((found) => {
    const parts = splitSeries(found.toSorted((one, other) => compare(one.place, other.place)));
    return parts.map(({ told, slices: sorted }, index) => {
      const [{ series: name, title: said, path: first }] = sorted;
      const path = sorted.every((slice) => slice.path === first) ? first : first.replace(/\/?[^/]*$/, "") || ".";
      const [place, end] = parts.length > 1 ? [`${index + 1} of ${parts.length}: `, `#${index + 1}`] : ["", ""];
      const title = [said, place + told.join(", ")].filter(Boolean).join(", ");
      return { name: name + end, title, path, slices: sorted };
    });
  });
}

function compare(one, other) {
  const place = one.findIndex((value, index) => value !== other[index]);
  return place < 0 ? 0 : one[place] - other[place];
}

/** Return a series' row. rows: those of its slices, {class, probabilities, outlier} or {error}, in their order. */
export function sumUp(series, rows, classes, rule) {
  const answered = rows.filter((row) => row.class);
  const shown = answered.filter((row) => row.probabilities);
  const fit = shown.map((row) => !series.slices[row.slice - 1].unfit && (row.outlier ?? 0) <= 1);
  const said = judgeSeries(classes, shown.map((row) => Object.values(row.probabilities)), fit, rule);
  const counts = Object.fromEntries([...classes, UNCERTAIN].map((name) => [name, answered.filter((row) => row.class === name).length]));
  const strongest = said.strongest === null ? null : shown[said.strongest];
  const reasons = series.slices.map(({ unfit }) => unfit).filter(Boolean);
  const unfit = [...new Set(reasons)].map((why) => `${counted(reasons.filter((one) => one === why).length, "slice")} left out: each ${why}`);
  const unlike = shown.filter((row) => (row.outlier ?? 0) > 1).length;
  const unread = rows.length - answered.length;
  const notes = [
    ...unfit,
    ...(unlike ? [`${counted(unlike, "slice does", "slices do")} not count: unlike the images it was trained on`] : []),
    ...(unread ? [`${counted(unread, "slice")} could not be read`] : []),
  ];
  return {
    level: "series", path: series.path, series: series.name, title: series.title,
    slices: rows.length, answered: answered.length,
    class: said.label ?? UNCERTAIN, best: said.best, reason: said.reason, tumour: said.probability,
    limits: [rule.healthy_up_to, rule.tumour_from], limits_from: "bundle.json",
    counts,
    carried_by: shown.filter((row) => row.best === said.best).map(({ slice }) => slice),
    strongest: strongest && { slice: strongest.slice, probability: strongest.probabilities[said.best] },
    notes,
  }; // prettier-ignore
}

/** Apply the rule: SeriesRule.judge of brainq_torch/series/rule.py. */
export function judgeSeries(classes, probabilities, counts, rule) {
  const none = (reason) => ({ label: null, best: null, reason, probability: null, strongest: null });
  const healthy = classes.indexOf(HEALTHY);
  if (healthy < 0) return none(`the model has no class ${HEALTHY}`);
  const used = counts.map((_, place) => place).filter((place) => counts[place]);
  if (!used.length) return none("no slice counts");
  const kept = used.map((place) => probabilities[place]);
  const smooth = kept.map((_, place) => {
    const near = kept.slice(Math.max(0, place - rule.neighbours), place + rule.neighbours + 1);
    return classes.map((_, label) => near.reduce((sum, values) => sum + values[label], 0) / near.length);
  });
  const top = argmax(smooth.map((values) => 1 - values[healthy]));
  const tumour = 1 - smooth[top][healthy];
  const likeliest = argmax(smooth[top].map((value, label) => (label === healthy ? -1 : value)));
  const best = tumour <= rule.healthy_up_to ? healthy : likeliest;
  const strongest = used[argmax(kept.map((values) => values[best]))];
  let reason = "";
  if (used.length < rule.fewest) reason = `${counted(used.length, "slice counts", "slices count")}, ${rule.fewest} are needed`;
  else if (rule.healthy_up_to < tumour && tumour < rule.tumour_from) reason = "a tumour is neither likely nor unlikely enough";
  return { label: reason ? null : classes[best], best: classes[best], reason, probability: tumour, strongest };
}

function counted(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

function argmax(values) {
  return values.indexOf(Math.max(...values));
}
