/** Shows a series: the slice in hand, a strip to step through with keys, and each class's probability along the slices. */

import { UNCERTAIN } from "./abstention.js";
import { draw, make } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [1000, 200];
const COLOURS = 6;
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

/** Fill an article. row: the series' answer. slices: {row, image} in order, image null of what shows nothing. */
export function showSeries(article, row, slices, classes) {
  const isUncertain = row.class === UNCERTAIN;
  const verdict = make("p", isUncertain ? `${UNCERTAIN}: ${row.reason}` : row.class, isUncertain ? "class uncertain" : "class");
  const counted = Object.entries(row.counts).filter(([, count]) => count).map(([name, count]) => `${count} ${name}`);
  const strongest = row.strongest ? `; strongest: ${row.best}, slice ${row.strongest.slice}` : "";
  const sum = make("p", `${row.slices} slices: ${counted.join(", ")}${strongest}`, "sum");
  const canvas = make("canvas");
  canvas.setAttribute("role", "img");
  const caption = make("figcaption");
  caption.setAttribute("aria-live", "polite");
  const figure = make("figure");
  figure.append(canvas, caption);
  const strip = make("div", "", "strip");
  strip.tabIndex = 0;
  strip.setAttribute("role", "listbox");
  strip.setAttribute("aria-label", "slices: step through them with the arrow keys");
  const thumbs = slices.map((slice, place) => makeThumb(slice, place));
  strip.append(...thumbs);
  const { chart, moveTo } = makeChart(slices, classes);
  let current = -1;
  const select = (place) => {
    thumbs[current]?.setAttribute("aria-selected", "false");
    current = Math.min(Math.max(place, 0), slices.length - 1);
    thumbs[current].setAttribute("aria-selected", "true");
    strip.scrollLeft = thumbs[current].offsetLeft - (strip.clientWidth - thumbs[current].offsetWidth) / 2;
    caption.textContent = describe(slices[current].row, slices.length);
    canvas.setAttribute("aria-label", `What the network saw of ${caption.textContent}`);
    draw(canvas, slices[current].image);
    moveTo(current);
    article.dataset.slice = current + 1;
  };
  strip.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    select(current + STEPS[event.key]);
  });
  strip.addEventListener("click", ({ target }) => target.closest("canvas") && select(thumbs.indexOf(target)));
  chart.addEventListener("click", ({ clientX }) => {
    const { left, width } = chart.getBoundingClientRect();
    select(Math.floor(((clientX - left) / width) * slices.length));
  });
  const title = row.title ? `${row.path} (${row.title})` : row.path;
  article.classList.add("series");
  article.replaceChildren(figure, make("h3", title), verdict, sum, chart, makeLegend(classes), strip);
  if (row.notes.length) article.append(make("p", row.notes.join("; "), "notes"));
  select((row.strongest?.slice ?? Math.floor(slices.length / 2) + 1) - 1);
}

function describe(row, count) {
  const place = typeof row.position_mm === "number" ? `, ${row.position_mm.toFixed(1)} mm` : "";
  const said = row.error ?? (row.class === UNCERTAIN ? `${UNCERTAIN}, ${row.abstained}` : `${row.class} ${(100 * row.probability).toFixed(1)} %`);
  const notes = [row.warning, ...(row.notes ?? [])].filter(Boolean).join("; ");
  return `slice ${row.slice} of ${count}${place}: ${said}${notes && ` [${notes}]`}`;
}

function makeThumb({ row, image }, place) {
  const thumb = make("canvas");
  draw(thumb, image);
  thumb.setAttribute("role", "option");
  thumb.setAttribute("aria-selected", "false");
  thumb.setAttribute("aria-label", `slice ${place + 1}: ${row.class ?? "not read"}`);
  return thumb;
}

/** Return the chart, one line a class, broken where a slice has no answer, and a function that moves its marker. */
function makeChart(slices, classes) {
  const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "chart", role: "img" });
  chart.setAttribute("aria-label", "probability of each class along the slices");
  const across = (place) => ((place + 0.5) * WIDTH) / slices.length;
  const marker = shape("line", { y1: 0, y2: HEIGHT, class: "marker" });
  chart.append(shape("line", { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: "half" }), marker);
  classes.forEach((name, label) => {
    const path = slices.map(({ row }, place) => {
      if (!row.probabilities) return "";
      const command = slices[place - 1]?.row.probabilities ? "L" : "M";
      return `${command}${across(place).toFixed(1)} ${(HEIGHT * (1 - row.probabilities[name])).toFixed(1)}`;
    });
    chart.append(shape("path", { d: path.join(""), class: `line colour-${label % COLOURS}` }));
  });
  const moveTo = (place) => ["x1", "x2"].forEach((side) => marker.setAttribute(side, across(place)));
  return { chart, moveTo };
}

function makeLegend(classes) {
  const legend = make("p", "", "legend");
  legend.append(...classes.map((name, label) => make("span", name, `colour-${label % COLOURS}`)));
  return legend;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
