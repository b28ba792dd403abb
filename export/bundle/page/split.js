/** Tells apart the stacks that share one SeriesInstanceUID: brainq_torch/series/split.py in JavaScript, where the reasons stand. */

const NUMBERS = ["AcquisitionNumber", "volume"];
const ALWAYS = ["PatientID", "orientation", "EchoNumbers"];
const TILT = 0.1;
const PLANES = ["sagittal", "coronal", "axial"];

/** Return each stack of a series' slices in order, {told, slices}; told: the words that tell it from the others. */
export function splitSeries(slices) {
  const traits = Object.keys(slices[0].traits ?? {});
  let parts = [{ told: [], slices }];
  for (const name of traits.length ? new Set([...ALWAYS, ...traits, "volume"]) : []) parts = parts.flatMap((part) => split(name, part));
  return parts;
}

function split(name, { told, slices }) {
  const groups = groupBy(slices, valueOf(name));
  if (groups.size === 1 || !(ALWAYS.includes(name) || isRepeated(name, [...groups.values()]))) return [{ told, slices }];
  if (name === "PatientID" && isNewInEach(slices)) return [{ told: [...told, "PatientID is a new one in each file, ignored"], slices }];
  return [...groups].map(([value, group]) => ({ told: [...told, `${name} ${word(name, value)}`], slices: group }));
}

function valueOf(name) {
  const known = [];
  const counts = new Map();
  return ({ axes, position, traits }) => {
    if (name === "orientation") {
      const near = known.find((one) => one.length === axes.length && one.every((value, place) => Math.abs(value - axes[place]) < TILT));
      if (!near) known.push(axes);
      return near ?? axes;
    }
    if (name !== "volume") return traits[name];
    counts.set(position, (counts.get(position) ?? 0) + Number(position !== null));
    return Math.max(1, counts.get(position));
  };
}

function word(name, value) {
  if (name !== "orientation" || !value.length) return value.length === 0 ? "unknown" : value;
  const [a, b, c, d, e, f] = value;
  const normal = [b * f - c * e, c * d - a * f, a * e - b * d].map(Math.abs);
  return PLANES[normal.indexOf(Math.max(...normal))];
}

function isRepeated(name, groups) {
  const all = groups.map((group) => group.map(({ position }) => position).filter((position) => position !== null));
  const places = all.map((positions) => new Set(positions));
  if (NUMBERS.includes(name) && new Set(all.flat()).size < 2) return false;
  if (name === "volume") return 2 * places[1].size >= places[0].size;
  const most = Math.max(0, ...count(all.flat()));
  const shared = count(places.flatMap((positions) => [...positions])).filter((number) => number > 1).length;
  return groups.length <= most && 2 * shared >= Math.max(1, Math.min(...places.map(({ size }) => size)));
}

function count(values) {
  return [...groupBy(values, (value) => value).values()].map(({ length }) => length);
}

function groupBy(values, keyOf) {
  const groups = new Map();
  for (const value of values) {
    const key = keyOf(value);
    groups.set(key, [...(groups.get(key) ?? []), value]);
  }
  return groups;
}

function isNewInEach(slices) {
  const different = (value) => new Set(slices.map(value)).size;
  const places = different(({ axes, position, place }) => [axes, ...place.slice(0, position === null ? 2 : 1)].join());
  const isOne = slices[0].traits.StudyInstanceUID && different(({ traits }) => traits.StudyInstanceUID) === 1;
  const patients = different(({ traits }) => traits.PatientID);
  return isOne && places === slices.length && patients === different(({ path }) => path) && patients > 2;
}
