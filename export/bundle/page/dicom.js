/**
 * Lists the frames of a DICOM MR file: brainq_torch/data/reading/dicom.py and what stands beside it, in JavaScript. With
 * compressed.js the only file here that knows dicomParser, which is loaded by the page.
 */

import { isCompressed, unpack } from "./compressed.js";
import { general, makeSquare, refuseGigantic, rescaleToUint8 } from "./grey.js";
import { inflate } from "./inflate.js";
import { luma, take } from "./picture.js";
import { roundHalfEven } from "./resize.js";
import { damaged, LeftOut, Unreadable } from "./unreadable.js";

const FEWEST_SHOWN = 0.01;
const MOST_FRAMES = 65_535;
const IMPLICIT = "1.2.840.10008.1.2";
const [EXPLICIT, BIG_ENDIAN, DEFLATED] = [".1", ".2", ".1.99"].map((end) => IMPLICIT + end);
const IMAGELESS =
  /DICM.*\x02\0\x02\0UI..1\.(2\.840\.10008\.(1\.3\.10[\0\x02]|5\.1\.4\.1\.1\.(88|11|104|66|9|4\.2|481\.[358])[.\0\x02])|3\.12\.2\.1107\.5\.9\.1\0)/s;
/** What storage classes of MR and secondary capture images begin with. */
const IMAGES = ["1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"];
const PER_FRAME = "x52009230";
const SHARED = "x52009229";
const [FLOATS, DOUBLES] = ["x7fe00008", "x7fe00009"];
const PIXELS = "x7fe00010"; // what stands before them is parsed: where they are cut short, it is a slice that cannot be read
/** Pixel measures, VOI, pixel value transformation, plane position and orientation, frame type, echo, modifier, diffusion, content. */
const GROUPS = [
  "x00289110", "x00289132", "x00289145", "x00209113", "x00209116", "x00189226", "x00189114", "x00189115", "x00189117", "x00209111",
]; // prettier-ignore
/** What may tell stacks of a series apart: tags, those of enhanced files first. */
const TRAITS = {
  PatientID: ["x00100020"], EchoNumbers: ["x00180086"], StudyInstanceUID: ["x0020000d"], SeriesNumber: ["x00200011"],
  ImageType: ["x00089007", "x00080008"],
  ComplexImageComponent: ["x00089208"], EchoTime: ["x00189082", "x00180081"], InversionTime: ["x00189079", "x00180082"],
  DiffusionBValue: ["x00189087"], SequenceName: ["x00180024"], RepetitionTime: ["x00180080"], FlipAngle: ["x00181314"], StackID: ["x00209056"],
  TemporalPositionIdentifier: ["x00209128", "x00200100"], AcquisitionNumber: ["x00209156", "x00200012"],
  AcquisitionTime: ["x00080032"], ContentTime: ["x00080033"],
}; // prettier-ignore
const BINARY = { x00189082: "double", x00189079: "double", x00189087: "double", x00209128: "uint32", x00209156: "uint16" };
const DECIMAL = ["x00180086", "x00180080", "x00180081", "x00180082", "x00181314", "x00200100", "x00200011", "x00200012"];
const HEAD =
  /HEAD|BRAIN|SKULL|NEURO|CEREB|PITUITAR|SELLA|ORBIT|\bIAC|TEMPORAL|CRAN|FACE|KOPF|SCH(A|AE|Ä)DEL|HIRN|HYPOPHYS|T[EÊ]TE|CERVEAU|CERVELLO|ENCE(PH|F)AL|TESTA|CABE[CÇZ]A|HOOFD|HERSEN|SCHEDEL/;
const UNSAID = ["", "UNKNOWN", "OTHER", "UNSPECIFIED", "NONE", "NA", "N/A"];
const LOCALIZER = /LOCALI[SZ]|LOKALI|SCOUT|SURVEY|PILOT|(^|[^A-Z])LOC([^A-Z]|$)/;
const UNFIT = {
  "a localizer": ["LOCALIZER", "SCOUT"],
  "a phase map": ["P", "PHASE", "PHASE MAP", "PHASE MAP B0"],
  "a velocity map": ["V", "VELOCITY", "VELOCITY MAP", "VELOCITY_MAP", "FLOW_ENCODED", "PHASE CONTRAST M"],
  "an imaginary part": ["IMAGINARY"],
  "a projection": ["PROJECTION IMAGE", "MIP", "MAXIP", "MINIP", "MAX_IP", "MIN_IP", "MNIP"],
};
/** Numbers of SpecificCharacterSet, ISO_IR or ISO 2022 IR, and browsers' names of them. */
const CHARACTER_SETS = {
  13: "shift_jis", 58: "gb18030", 87: "iso-2022-jp", 101: "iso-8859-2", 109: "iso-8859-3", 110: "iso-8859-4",
  126: "iso-8859-7", 127: "iso-8859-6", 138: "iso-8859-8", 144: "iso-8859-5", 148: "windows-1254", 149: "euc-kr",
  166: "tis-620", 192: "utf-8", 203: "iso-8859-15", 18030: "gb18030", GBK: "gbk",
}; // prettier-ignore
const GREYS = ["MONOCHROME1", "MONOCHROME2"];
const COLOURS = ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"];
/** What the chromas, of blue and of red, give of red, green and blue. */
const YBR_TO_RGB = [[0, 1.402], [(-0.114 * 1.772) / 0.587, (-0.299 * 1.402) / 0.587], [1.772, 0]].map((row) => row.map(Math.fround)); // prettier-ignore
const NEEDED = {
  Rows: "x00280010", Columns: "x00280011", BitsAllocated: "x00280100", BitsStored: "x00280101",
  PixelRepresentation: "x00280103", PhotometricInterpretation: "x00280004",
}; // prettier-ignore

export function isDicom(bytes) {
  return latin(bytes, 128, 132) === "DICM" || /^(?:[\x02\x08]\0.\0(?:[A-Z]{2}|.\0\0\0)|\0\x08\0.[A-Z]{2})/s.test(latin(bytes, 0, 8));
}

/** Return the slices, or null for a directory, a report or another file without an image. */
export async function listDicomSlices(path, bytes) {
  if (IMAGELESS.test(latin(bytes, 0, 1024))) return null; // however damaged it is behind
  const header = await parse(bytes);
  const said = Number(header.string("x00280008") ?? 0);
  const count = said === 0 ? countFrames(header) : said;
  if (!Number.isInteger(count) || count < 1 || count > MOST_FRAMES) {
    throw new Unreadable(`says that it has ${count} frames; read are 1 to ${MOST_FRAMES}`, "copy or download it again, or remove it");
  }
  const series = header.string("x0020000e") || path;
  const title = readText(header, "x0008103e");
  const numbered = Number(header.string("x00200013"));
  const number = Number.isInteger(numbered) ? numbered : 0;
  const uid = header.string("x00080018") ?? "";
  const { dataOffset, length } = header.elements[PIXELS] ?? {};
  const pixels = dataOffset && header.byteArray.subarray(dataOffset, dataOffset + length);
  return Array.from({ length: count }, (_, frame) => {
    const find = functionalGroups(header, frame);
    const { axes, position } = planeOf(find);
    const place = [position ?? 0, number, frame];
    const unfit = whyUnfit((tag) => find(tag).string(tag));
    const traits = Object.fromEntries(Object.entries(TRAITS).map(([name, tags]) => [name, readTrait(find, tags)]));
    const instance = position === null ? null : uid; // files that do not say where they are may share a placeholder
    return { path, series, title, place, position, unfit, instance, pixels, axes, traits, decode: () => decode(header, frame) };
  });
}

/** Return how many whole frames there are pixels for, of a file that does not say it. */
function countFrames(header) {
  const [rows, columns, bits] = [NEEDED.Rows, NEEDED.Columns, NEEDED.BitsAllocated].map((tag) => header.uint16(tag));
  const { length = 0, hadUndefinedLength } = pixelsOf(header) ?? {};
  const samples = header.uint16("x00280002") || (COLOURS.includes(header.string("x00280004")) ? 3 : 1);
  return hadUndefinedLength ? 1 : Math.floor((8 * length) / (rows * columns * bits * samples)) || 1;
}

/** Return the value of the first of these tags that is there, as text. */
function readTrait(find, tags) {
  const tag = tags.find((one) => find(one).elements[one]);
  if (!tag) return "";
  const dataset = find(tag);
  if (BINARY[tag]) {
    const count = dataset.elements[tag].length / { double: 8, uint32: 4, uint16: 2 }[BINARY[tag]];
    return Array.from({ length: count }, (_, place) => general(dataset[BINARY[tag]](tag, place))).join("\\");
  }
  const parts = readText(dataset, tag).split("\\").map((part) => part.trim());
  const said = parts.map((part) => (DECIMAL.includes(tag) && part ? general(Number(part)) : part)).join("\\");
  return DECIMAL.includes(tag) && said.includes("NaN") ? "" : said;
}

/** Return a text in the file's character set (PS3.3 C.12.1.1.2), which dicomParser takes for Latin-1. */
function readText(header, tag) {
  const bytes = Uint8Array.from(header.string(tag) ?? "", (letter) => letter.charCodeAt(0));
  const set = (header.string("x00080005") ?? "").match(/(?:\d+|GBK)\s*$/)?.[0].trim(); // of several the last, which adds letters
  return new TextDecoder(CHARACTER_SETS[set] ?? "iso-8859-1").decode(bytes).replaceAll("\x1b$)C", "").trim();
}

function latin(bytes, start, end) {
  return String.fromCharCode(...bytes.subarray(start, end));
}

/** Return the header of an MR file. */
async function parse(bytes) {
  try {
    const header = await readHeader(bytes);
    requireMr(header);
    return header;
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    throw damaged(`DICOM file (${error?.exception ?? error?.message ?? error})`);
  }
}

async function readHeader(bytes) {
  const { parseDicom, readPart10Header } = globalThis.dicomParser;
  let whole = bytes;
  let untilTag = PIXELS;
  if (latin(bytes, 128, 132) !== "DICM") {
    untilTag = undefined; // as in Python, a file without preamble is whole or damaged
    if (bytes[0] !== 2) {
      const isExplicit = /^[A-Z]{2}$/.test(latin(bytes, 4, 6));
      return parseDicom(bytes, { TransferSyntaxUID: bytes[0] === 0 ? BIG_ENDIAN : isExplicit ? EXPLICIT : IMPLICIT });
    }
    whole = new Uint8Array(132 + bytes.length); // the preamble alone is missing
    whole.set([..."DICM"].map((letter) => letter.charCodeAt(0)), 128);
    whole.set(bytes, 132);
  }
  const meta = readPart10Header(whole);
  const declared = meta.string("x00020010");
  if (declared === DEFLATED) {
    return parseDicom(await inflateRest(whole.subarray(meta.position)), { TransferSyntaxUID: EXPLICIT });
  }
  const isExplicit = /^[A-Z]{2}$/.test(latin(whole, meta.position + 4, meta.position + 6));
  if (declared && isExplicit === (declared !== IMPLICIT)) return parseDicom(renameOv(whole), { untilTag });
  const found = isExplicit ? EXPLICIT : IMPLICIT; // as in Python, what the first element shows is believed
  const header = parseDicom(whole.subarray(meta.position), { TransferSyntaxUID: found, untilTag });
  header.elements.x00020010.Value = declared ?? found;
  return header;
}

/** Call OB the extended table of offsets before compressed pixels: dicomParser does not know its type OV, and reads on within it. */
function renameOv(bytes) {
  let renamed = bytes;
  for (let at = bytes.indexOf(0xe0); at >= 0; at = bytes.indexOf(0xe0, at + 1)) {
    if (bytes[at + 1] !== 0x7f || !/^[\x01\x02]\0OV\0\0$/.test(latin(bytes, at + 2, at + 8))) continue;
    if (renamed === bytes) renamed = bytes.slice();
    renamed[at + 5] = "B".charCodeAt(0);
  }
  return renamed;
}

/** Inflate a data set, which a byte may follow that makes its length even (PS3.5 A.5). */
function inflateRest(bytes) {
  return inflate([bytes], "deflate-raw", "DICOM file").catch((error) => {
    if (bytes.at(-1) !== 0) throw error;
    return inflate([bytes.subarray(0, -1)], "deflate-raw", "DICOM file");
  });
}

/** Return a function of a tag: the dataset that says it of a frame, its group first, then that of all frames. */
function functionalGroups(header, frame) {
  const groups = [header.elements[PER_FRAME]?.items?.[frame], header.elements[SHARED]?.items?.[0]];
  const held = groups.flatMap((group) => GROUPS.map((name) => group?.dataSet?.elements[name]?.items?.[0]?.dataSet));
  return (tag) => [...held, header].find((dataset) => dataset?.elements[tag]) ?? header;
}

function numbers(dataset, tag) {
  const text = dataset.string(tag);
  return text ? text.split("\\").map((part) => (part.trim() ? Number(part) : NaN)) : [];
}

function planeOf(find) {
  const corner = numbers(find("x00200032"), "x00200032");
  const axes = numbers(find("x00200037"), "x00200037");
  if (axes.length !== 6 || !axes.every(Number.isFinite)) return { axes: [], position: null };
  const [a, b, c, d, e, f] = axes;
  const normal = [b * f - c * e, c * d - a * f, a * e - b * d];
  const position = corner.length === 3 ? normal.reduce((sum, value, place) => sum + value * corner[place], 0) : NaN;
  return { axes, position: Number.isFinite(position) ? roundHalfEven(position * 1000) / 1000 : null };
}

function whyUnfit(text) {
  const types = (text("x00089007") || text("x00080008") || "").split("\\");
  const kinds = new Set([...types, text("x00089208") ?? ""].map((kind) => kind.trim().toUpperCase()));
  for (const [what, values] of Object.entries(UNFIT)) {
    const found = values.filter((value) => kinds.has(value)).sort();
    if (found.length) return `is ${what} (ImageType ${found.join(", ")})`;
  }
  if (LOCALIZER.test((text("x0008103e") ?? "").toUpperCase())) return "is a localizer (SeriesDescription)";
  const part = (text("x00180015") ?? "").trim().toUpperCase();
  return UNSAID.includes(part) || HEAD.test(part) ? "" : `shows ${part} (BodyPartExamined)`;
}

/** Decode one frame the way a viewer shows it: {image, notes, warning}. */
async function decode(header, frame) {
  requireSlice(header);
  const find = functionalGroups(header, frame);
  const text = (tag) => find(tag).string(tag);
  const unfit = whyUnfit(text);
  const warning = unfit && `${unfit}, no slice through a head: do not rely on the answer`;
  const stored = await readStored(header, frame);
  const { rows, columns, notes } = stored;
  if (stored.isColour) {
    const image = take({ width: columns, height: rows, channels: 3, samples: stored.values }, luma);
    return { image, notes: ["DICOM colours converted to grey", ...notes], warning };
  }
  const isMeasured = findMeasured(header, stored);
  const shown = show({ text, find, header, stored, isMeasured, width: columns });
  const darkest = shown.data.reduce((least, value, place) => (isMeasured && !isMeasured[place] ? least : Math.min(least, value)), 255);
  const data = isMeasured ? shown.data.map((value, place) => (isMeasured[place] ? value : darkest)) : shown.data;
  const padding = isMeasured ? ["padding pixels shown as the darkest"] : [];
  const spacing = numbers(find("x00280030"), "x00280030");
  const [rowSpacing, columnSpacing] = spacing.length === 2 ? spacing : [1, 1];
  const square = makeSquare({ width: columns, height: rows, data }, rowSpacing, columnSpacing);
  return { image: square.image, notes: [...shown.notes, ...padding, ...square.notes, ...notes], warning };
}

function requireMr(header) {
  const modality = header.string("x00080060") ?? "";
  const hasPixels = Object.keys(header.elements).some((tag) => tag.startsWith("x7fe0"));
  if (!hasPixels && "MR".startsWith(modality)) {
    const kind = header.string("x00080016") ?? "";
    const isImage = IMAGES.some((image) => kind.startsWith(image) || image.startsWith(kind));
    if (isImage) throw damaged("DICOM file (it has no pixels)"); // cut off in its header
    throw new LeftOut("is a DICOM file without an image (by its SOPClassUID)", "choose an MR series");
  }
  if (!modality) throw new Unreadable("names no modality (tag 0008,0060); only MR images are read", "leave it out");
  if (!/^[A-Z0-9_ ]{1,16}$/.test(modality)) throw damaged("DICOM file (its modality is none)"); // no code string, PS3.5 6.2
  if (modality !== "MR") throw new LeftOut(`has modality '${modality}'; only MR images are read`, "choose an MR series");
}

function requireSlice(header) {
  if ((header.string("x00080008") ?? "").split("\\").includes("MOSAIC")) {
    throw new Unreadable("is a mosaic: many slices side by side in one picture", "convert its series to NIfTI, e.g. with dcm2niix");
  }
  const needed = Object.entries(NEEDED).filter(([name]) => !isFloat(header) || !["BitsStored", "PixelRepresentation"].includes(name));
  const missing = needed.filter(([, tag]) => !header.elements[tag]?.length).map(([name]) => name);
  if (missing.length) throw new Unreadable(`has no ${missing.join(", ")}`, "export it again from the scanner or archive");
}

function pixelsOf({ elements }) {
  return elements[PIXELS] ?? elements[FLOATS] ?? elements[DOUBLES];
}

function isFloat({ elements }) {
  return Boolean(!elements[PIXELS] && (elements[FLOATS] || elements[DOUBLES]));
}

/** Return {rows, columns, values, isColour, isSigned, bits, allocated, notes}: values as they are stored, or red, green and blue of each pixel. */
async function readStored(header, frame) {
  const [rows, columns, allocated, said, sign] = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"].map((name) => header.uint16(NEEDED[name]));
  const [bits, signed] = isFloat(header) ? [allocated, 0] : [said, sign];
  refuseGigantic(columns, rows);
  const kind = header.string("x00280004");
  const isColour = COLOURS.includes(kind);
  if (!isColour && !GREYS.includes(kind)) {
    throw new Unreadable(`has PhotometricInterpretation ${kind}; read are ${[...GREYS, ...COLOURS].join(", ")}`, "save it as PNG");
  }
  const shape = { rows, columns, size: rows * columns, samples: isColour ? 3 : 1 };
  const samples = header.uint16("x00280002") || shape.samples;
  if (samples !== shape.samples) throw new Unreadable(`has ${samples} samples in each pixel of ${kind}`, "use predict.py, or save it as PNG");
  if (bits < 1 || bits > allocated || signed > 1) throw damaged("DICOM file: its bits make no sense");
  const syntax = header.string("x00020010") ?? IMPLICIT;
  const isPacked = isCompressed(syntax);
  const widths = isColour ? [8] : isFloat(header) ? [header.elements[FLOATS] ? 32 : 64] : [8, 16, 32, 64];
  const isPlain = [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN].includes(syntax);
  if (!(isPlain || isPacked) || !widths.includes(allocated)) {
    throw new Unreadable(`has pixels that this page does not decode (${isPlain || isPacked ? kind : syntax}, ${allocated} bits)`, "use predict.py");
  }
  if (!pixelsOf(header)) throw new Unreadable("has no pixels", "leave it out");
  const isHalved = kind === "YBR_FULL_422" && !isPacked;
  const held = isPacked ? await unpack(header, frame, shape) : takeFrame(header, frame, isHalved ? { ...shape, samples: 2 } : shape, allocated / 8);
  const tooManyBits = () => damaged("DICOM file: its pixels have more bits than its header says");
  if (8 * held.step > allocated) throw tooManyBits();
  const view = new DataView(held.bytes.buffer, held.bytes.byteOffset);
  const read = (isFloat(header) ? { 4: "getFloat32", 8: "getFloat64" } : { 1: "getUint8", 2: "getUint16", 4: "getUint32", 8: "getBigUint64" })[held.step];
  const top = Math.max(bits, !isPacked && header.elements.x00280102?.length ? header.uint16("x00280102") + 1 : 0); // HighBit of old files
  const [above, unused] = [32 - top, 32 - bits];
  const values = Float64Array.from({ length: shape.size * shape.samples }, (_, place) => {
    const sample = isHalved ? sampleOfPair(place) : isColour && held.isPlanar ? (place % 3) * shape.size + Math.floor(place / 3) : place;
    const value = view[read](held.step * sample, syntax !== BIG_ENDIAN);
    if (isFloat(header)) return value;
    if (held.step === 8) return Number((signed ? BigInt.asIntN : BigInt.asUintN)(top, value) >> BigInt(top - bits));
    if (held.width && !signed && value >= 2 ** bits) throw tooManyBits();
    return signed ? (value << above) >> unused : (value << above) >>> unused;
  });
  if (["YBR_FULL", "YBR_FULL_422"].includes(kind) && !held.isRgb) toRgb(values);
  return { rows, columns, values, isColour, isSigned: Boolean(signed), bits, allocated, notes: held.notes };
}

/** Return what is stored of a frame, {bytes, step, isPlanar, notes}, where it is not compressed. */
function takeFrame(header, frame, { size, samples }, step) {
  const { dataOffset, length, vr } = pixelsOf(header);
  const [start, end] = [frame, frame + 1].map((place) => place * size * samples * step);
  let held = header.byteArray.subarray(dataOffset, dataOffset + length);
  if (end > held.length) throw damaged("DICOM file");
  if (step === 1 && vr === "OW" && header.string("x00020010") === BIG_ENDIAN) held = held.map((_, place) => held[place ^ 1]);
  const isPlanar = header.elements.x00280006?.length > 0 && header.uint16("x00280006") === 1;
  return { bytes: held.subarray(start, end), step, isPlanar, notes: [] };
}

/** Return where a sample of a colour image lies whose chromas two pixels share (PS3.3 C.7.6.3.1.2): luma, luma, blue, red. */
function sampleOfPair(place) {
  const [pixel, sample] = [Math.floor(place / 3), place % 3];
  return 4 * (pixel >> 1) + (sample ? 1 + sample : pixel & 1);
}

/** Turn luma and two chromas into red, green and blue (PS3.3 C.7.6.3.1.2), in single precision as pydicom does. */
function toRgb(values) {
  for (let place = 0; place < values.length; place += 3) {
    const [bright, blue, red] = [values[place], values[place + 1] - 128, values[place + 2] - 128];
    const mixed = YBR_TO_RGB.map(([ofBlue, ofRed]) => Math.fround(Math.fround(bright + Math.fround(ofBlue * blue)) + Math.fround(ofRed * red)));
    values.set(mixed.map((value) => Math.min(Math.max(Math.floor(value + 0.5), 0), 255)), place);
  }
}

/** Tell which pixels are measured: null where none, or each, is padding. */
function findMeasured(header, { values, isSigned, allocated }) {
  const kind = !isFloat(header) ? "uint16" : allocated === 32 ? "float" : "double";
  const tags = { uint16: ["x00280120", "x00280121"], float: ["x00280122", "x00280124"], double: ["x00280123", "x00280125"] }[kind];
  const ends = tags.filter((tag) => header.elements[tag]?.length >= 2).map((tag) => {
    if (isFloat(header)) return header[kind](tag);
    const unused = 32 - Math.min(allocated, 16); // its bits are those of the pixels, whatever type it claims to have
    const value = header.uint16(tag) << unused;
    return isSigned ? value >> unused : value >>> unused;
  });
  if (!header.elements[tags[0]]?.length) return null;
  const isMeasured = Uint8Array.from(values, (value) => (value >= Math.min(...ends) && value <= Math.max(...ends) ? 0 : 1));
  return isMeasured.includes(0) && isMeasured.includes(1) ? isMeasured : null;
}

/** Apply the modality and the VOI transform: {data, notes}. */
function show({ text, find, stored, isMeasured, width }) {
  const modality = lookUp(find("x00283000").elements.x00283000, "Modality", stored.values, stored.isSigned);
  const [slope, intercept] = [Number(text("x00281053") || 1), Number(text("x00281052") || 0)];
  if (!modality.mapped && slope === 0) throw new Unreadable("has RescaleSlope 0, which erases the image", "copy it again");
  const values = modality.mapped ?? stored.values.map((value) => value * slope + intercept);
  const isInverted = text("x00280004") === "MONOCHROME1";
  const inverted = isInverted ? ["MONOCHROME1 (white is zero) inverted"] : [];
  const [dark, bright] = stored.isSigned ? [-(2 ** (stored.bits - 1)), 2 ** (stored.bits - 1) - 1] : [0, 2 ** stored.bits - 1];
  const voi = lookUp(find("x00283010").elements.x00283010, "VOI", values, stored.isSigned);
  const table = voi.mapped && { fractions: voi.mapped.map((value) => value / voi.most), notes: ["VOI look-up table applied"] };
  const { fractions, notes: said } = table ?? applyWindow({ text, find, values, dark, bright });
  const notes = [...modality.notes, ...voi.notes, ...said];
  if (fractions) {
    const grey = (value) => roundHalfEven(Math.min(Math.max(isInverted ? 1 - value : value, 0), 1) * 255);
    return { data: Uint8Array.from(fractions, grey), notes: [...notes, ...inverted] };
  }
  const turned = isInverted ? values.map((value) => -value) : values;
  const { data, note } = rescaleToUint8(turned, width, "DICOM values", isMeasured);
  return { data, notes: [...notes, note, ...inverted] };
}

/** Return what a look-up table, Modality or VOI, makes of values: {mapped, most, notes}, mapped null where it is empty (PS3.3 C.11.1.1.1). */
function lookUp(sequence, kind, values, isSigned) {
  const table = sequence?.items?.[0]?.dataSet;
  const { x00283002: descriptor, x00283006: data } = table?.elements ?? {};
  if (!data?.length || descriptor?.length !== 6) {
    return { mapped: null, notes: table ? [`${kind} look-up table without entries ignored`] : [] };
  }
  const [count, bits] = [table.uint16("x00283002", 0) || 65_536, table.uint16("x00283002", 2)];
  const first = (descriptor.vr ? descriptor.vr === "SS" : isSigned) ? table.int16("x00283002", 1) : table.uint16("x00283002", 1);
  if (bits < 8 || bits > 16) throw new Unreadable(`has a look-up table of ${bits} bits; allowed are 8 to 16`, "copy it again");
  const word = (place) => table.uint16("x00283006", place);
  const isPacked = bits === 8 && data.length / 2 < count; // two in a word; else each in one of its own
  const held = isPacked ? data.length : data.length / 2;
  if (held < count) throw new Unreadable(`has ${held} of its look-up table's ${count} entries`, "copy it again");
  const entries = Array.from({ length: count }, (_, place) => (isPacked ? (word(place >> 1) >> (8 * (place & 1))) & 255 : word(place)));
  const most = entries.reduce((highest, entry) => Math.max(highest, entry), 2 ** bits - 1);
  return { mapped: values.map((value) => entries[Math.trunc(Math.min(Math.max(value - first, 0), count - 1))]), most, notes: [] };
}

/** Return the first window's {fractions, notes}, fractions null where there is no useful one (PS3.3 C.11.2.1.2). */
function applyWindow({ text, find, values, dark, bright }) {
  const [centres, widths] = ["x00281050", "x00281051"].map((tag) => numbers(find(tag), tag));
  if (!["x00281050", "x00281051"].some((tag) => find(tag).elements[tag])) return { fractions: null, notes: [] };
  const [centre, width] = [centres[0], widths[0]];
  if (centre === undefined || width === undefined || Number.isNaN(centre) || Number.isNaN(width)) {
    return { fractions: null, notes: ["VOI window without centre or width ignored"] };
  }
  const named = (text("x00281056") ?? "").toUpperCase();
  const kind = ["LINEAR_EXACT", "SIGMOID"].includes(named) ? named : "LINEAR"; // of an empty or unknown name, too
  const name = `VOI window centre ${general(centre)} width ${general(width)}`;
  if (width < (kind === "LINEAR" ? 1 : 0) || width <= 0) return { fractions: null, notes: [`${name} is impossible, ignored`] };
  const notes = centres.length > 1 ? [`first of ${centres.length} VOI windows`] : [];
  const range = bright - dark;
  const [middle, span] = kind === "LINEAR" ? [centre - 0.5, width - 1] : [centre, width];
  const linear = (value) => {
    if (value <= middle - span / 2) return dark;
    return value > middle + span / 2 ? bright : ((value - middle) / span + 0.5) * range + dark;
  };
  const sigmoid = (value) => range / (1 + Math.exp((-4 * (value - centre)) / width)) + dark;
  const fractions = values.map((value) => ((kind === "SIGMOID" ? sigmoid : linear)(value) - dark) / range);
  const shown = fractions.reduce((sum, value) => sum + (value > 0 && value < 1), 0);
  if (shown / values.length < FEWEST_SHOWN) return { fractions: null, notes: [...notes, `${name} misses nearly all pixels, ignored`] };
  return { fractions, notes: [...notes, `${name} applied`] };
}
