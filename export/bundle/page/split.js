/** Tells apart the stacks that share one SeriesInstanceUID: brainq_torch/series/split.py in JavaScript, where the reasons stand. */

import { roundHalfEven } from "./resize.js";

const NUMBERS = ["AcquisitionNumber", "volume"];
const ALWAYS = ["PatientID", "orientation", "EchoNumbers"];
const TILT = 0.1;
const MOST_PLANES = 3;
const PLANES = ["sagittal", "coronal", "axial"];

/** Return each stack of a series' slices in order, {told, slices}; told: the words that tell it from the others. */
export function splitSeries(slices) {
  const traits = Object.keys(slices[0].traits ?? {});
  let parts = [{ told: [], slices }];
  for (const name of traits.length ? new Set([...ALWAYS, ...traits, "volume"]) : []) parts = parts.flatMap((part) => split(name, part));
  return parts;
}

function split(name, { told, slices }) {
  const groups = groupBy(slices, valueOf(name, slices));
  if (groups.size === 1 || !(ALWAYS.includes(name) || isRepeated(name, [...groups.values()]))) return [{ told, slices }];
  if (name === "PatientID" && isNewInEach(slices)) return [{ told: [...told, "PatientID is a new one in each file, ignored"], slices }];
  if (name === "orientation" && groups.size === slices.length && groups.size > MOST_PLANES) return [{ told, slices }];
  const word = (value, [{ axes }]) => (name === "orientation" ? planeOf(axes) : value) || "unknown";
  return [...groups].map(([value, group]) => ({ told: [...told, `${name} ${word(value, group)}`], slices: group }));
}

function valueOf(name, slices) {
  const planes = name === "orientation" ? numberPlanes(slices) : null;
  const counts = new Map();
  return (slice) => {
    if (planes) return planes.get(slice.axes.join()).number;
    if (name !== "volume") return slice.traits[name];
    const spot = spotOf(slice);
    counts.set(spot, (counts.get(spot) ?? 0) + Number(slice.position !== null));
    return Math.max(1, counts.get(spot));
  };
}

/** Number orientations; those that are near each other, or near one between them, have one number. */
function numberPlanes(slices) {
  const planes = new Map();
  for (const { axes } of slices) {
    if (planes.has(axes.join())) continue;
    const isNear = (known) => known.length === axes.length && known.every((value, place) => Math.abs(value - axes[place]) < TILT);
    const near = new Set([...planes.values()].filter((known) => isNear(known.axes)).map(({ number }) => number));
    const number = planes.size;
    for (const known of planes.values()) if (near.has(known.number)) known.number = number;
    planes.set(axes.join(), { axes, number });
  }
  return planes;
}

function planeOf(axes) {
  if (!axes.length) return "";
  const [a, b, c, d, e, f] = axes;
  const normal = [b * f - c * e, c * d - a * f, a * e - b * d].map(Math.abs);
  return PLANES[normal.indexOf(Math.max(...normal))];
}

function spotOf({ axes, position }) {
  return [...axes.map((cosine) => roundHalfEven(10 * cosine)), position].join();
}

function isRepeated(name, groups) {
  const all = groups.map((group) => group.filter(({ position }) => position !== null).map(spotOf));
  const places = all.map((spots) => new Set(spots));
  if (NUMBERS.includes(name) && new Set(all.flat()).size < 2) return false;
  if (name === "volume") return 2 * places[1].size >= places[0].size;
  const most = Math.max(0, ...count(all.flat()));
  const shared = count(places.flatMap((spots) => [...spots])).filter((number) => number > 1).length;
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
