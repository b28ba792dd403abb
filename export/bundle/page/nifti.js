/** Lists the slices of a NIfTI volume: brainq_torch/data/reading/nifti.py in JavaScript. */

import { makeSquare, refuseGigantic, rescaleToUint8 } from "./grey.js";
import { inflate, MOST_BYTES } from "./inflate.js";
import { damaged, Unreadable } from "./unreadable.js";

const MOST_EXTENSION_BYTES = 1024 * 1024;
const MOST_VOLUMES = 8;
const ONE_FILE_START = 352;
const READERS = {
  2: ["getUint8", 1], 4: ["getInt16", 2], 8: ["getInt32", 4], 16: ["getFloat32", 4], 64: ["getFloat64", 8],
  256: ["getInt8", 1], 512: ["getUint16", 2], 768: ["getUint32", 4], 1024: ["getBigInt64", 8], 1280: ["getBigUint64", 8],
}; // prettier-ignore

/** Of both versions' headers: by its size, where a field stands, and of what numbers. The codes are the quaternion's and the rows'. */
const LAYOUTS = {
  348: {
    dim: [40, "getInt16", 2], type: [70, "getInt16"], zooms: [76, "getFloat32", 4], start: [108, "getFloat32"],
    slope: [112, "getFloat32", 4], codes: [252, "getInt16", 2], quaternion: [256, "getFloat32", 4], rows: [280, "getFloat32", 4],
  },
  540: {
    dim: [16, "getBigInt64", 8], type: [12, "getInt16"], zooms: [104, "getFloat64", 8], start: [168, "getBigInt64"],
    slope: [176, "getFloat64", 8], codes: [344, "getInt32", 4], quaternion: [352, "getFloat64", 8], rows: [400, "getFloat64", 8],
  },
}; // prettier-ignore

export function isGzip(bytes) {
  return bytes[0] === 0x1f && bytes[1] === 0x8b;
}

export function isNifti(bytes) {
  return magic(bytes) === "n+1" || magic(bytes, 4) === "n+2";
}

/** Whether it is the header (.hdr) of a volume whose voxels lie in a second file (.img). */
export function isNiftiHeader(bytes) {
  return magic(bytes) === "ni1";
}

function magic(bytes, start = 344) {
  return String.fromCharCode(...bytes.subarray(start, start + 3));
}

/** Return a header and its voxels as the one file that they could have been. */
export function joinPair(header, voxels) {
  const joined = new Uint8Array(ONE_FILE_START + voxels.length);
  joined.set(header.subarray(0, ONE_FILE_START));
  joined.set(voxels, ONE_FILE_START);
  const view = new DataView(joined.buffer);
  const little = view.getInt32(0, true) === 348;
  view.setFloat32(108, view.getFloat32(108, little) + ONE_FILE_START, little);
  return joined;
}

/** Inflate a gzip file to its end, where its checksum stands. */
export function gunzip(bytes) {
  return inflate([bytes], "gzip", "gzip file");
}

/** Return the axial slices (of a single slice its own) of each volume: {series, title, place, position, decode}. */
export function listNiftiSlices(path, bytes) {
  const volume = readHeader(bytes);
  const { shape, count, orientation, affine } = volume;
  const single = [2, 1, 0].find((axis) => shape[axis] === 1);
  const axis = single ?? orientation.findIndex(([world]) => world === 2);
  const across = affine[orientation[axis][0]];
  const slices = [];
  for (let number = 0; number < (count <= MOST_VOLUMES ? count : 1); number++) {
    for (let index = 0; index < shape[axis]; index++) {
      const middle = shape.map((side, other) => (other === axis ? index : (side - 1) / 2));
      const position = Math.round((across[3] + middle.reduce((sum, value, other) => sum + across[other] * value, 0)) * 1000) / 1000;
      slices.push({
        path, unfit: "", position,
        series: count > 1 ? `${path}#${number + 1}` : path,
        title: count > 1 ? `volume ${number + 1} of ${count}` : "",
        place: [number, position, index],
        decode: () => readSlice(volume, axis, index, number),
      }); // prettier-ignore
    }
  }
  return slices;
}

function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerBytes = magic(bytes, 4) === "n+2" ? 540 : 348;
  const little = view.getInt32(0, true) === headerBytes;
  const field = (name, place = 0) => {
    const [offset, reader, width = 0] = LAYOUTS[headerBytes][name];
    return Number(view[reader](offset + width * place, little));
  };
  const dimensions = field("dim");
  const sides = Array.from({ length: Math.max(0, Math.min(dimensions, 7)) }, (_, place) => field("dim", 1 + place));
  if (dimensions > 7 || sides.length < 2 || Math.min(...sides) < 1) throw damaged("NIfTI file: its sides make no sense");
  const [read, step] = READERS[field("type")] ?? [];
  if (!read) throw new Unreadable(`has voxels of NIfTI type ${field("type")}`, "use predict.py, or save one channel of it");
  const start = Math.trunc(field("start"));
  const size = sides.reduce((product, side) => product * side, step);
  if (!(start > headerBytes && start <= MOST_EXTENSION_BYTES) || size > MOST_BYTES) throw damaged("NIfTI file: its header makes no sense");
  if (bytes.length < start + size) throw damaged(`NIfTI file: ${start + size - bytes.length} bytes are missing`);
  const zooms = [0, 1, 2].map((place) => {
    const zoom = place < sides.length ? Math.abs(field("zooms", 1 + place)) : 1;
    return zoom === 0 ? 1 : zoom; // as nibabel mends them
  });
  const shape = [sides[0], sides[1], sides[2] ?? 1];
  const { affine, isKnown } = bestAffine(field, zooms, shape, headerBytes === 540 ? 2 ** -52 : 2 ** -23);
  const slope = field("slope");
  const isScaled = Number.isFinite(slope) && slope !== 0;
  const inter = isScaled ? field("slope", 1) : 0;
  if (!Number.isFinite(inter)) throw damaged("NIfTI file: its scaling makes no sense");
  return {
    view, little, read, step, start, shape, zooms, affine, inter,
    slope: isScaled ? slope : 1,
    count: sides.slice(3).reduce((product, side) => product * side, 1),
    orientation: orientationOf(affine),
    notes: isKnown ? [] : ["no orientation in the file, taken as left, anterior, superior"],
  }; // prettier-ignore
}

/** epsilon: of the header's floats. */
function bestAffine(field, zooms, shape, epsilon) {
  const [quaternionCode, rowsCode] = [field("codes"), field("codes", 1)].map((code) => (code >= 0 && code <= 5 ? code : 0)); // as nibabel mends them
  if (rowsCode > 0) {
    const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => field("rows", 4 * row + column)));
    return { affine, isKnown: true };
  }
  if (quaternionCode > 0) {
    const [b, c, d] = [0, 1, 2].map((place) => field("quaternion", place));
    const rest = 1 - b * b - c * c - d * d;
    if (rest <= -3 * epsilon) throw damaged("NIfTI file: its orientation makes no sense");
    const a = Math.sqrt(Math.max(0, rest));
    const turn = [
      [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
      [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
      [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    const steps = [zooms[0], zooms[1], field("zooms") === -1 ? -zooms[2] : zooms[2]];
    const affine = turn.map((row, place) => [...row.map((value, column) => value * steps[column]), field("quaternion", 3 + place)]);
    return { affine, isKnown: true };
  }
  const steps = [-zooms[0], zooms[1], zooms[2]];
  const affine = steps.map((step, row) => [0, 1, 2].map((column) => (row === column ? step : 0)));
  affine.forEach((row, place) => row.push((-steps[place] * (shape[place] - 1)) / 2));
  return { affine, isKnown: Boolean(quaternionCode || rowsCode) };
}

/** Return per array axis the world axis nearest to it and its direction, as nibabel's io_orientation does. */
function orientationOf(affine) {
  const lengths = [0, 1, 2].map((column) => Math.hypot(...affine.map((row) => row[column])) || 1);
  let turn = affine.map((row) => [0, 1, 2].map((column) => row[column] / lengths[column]));
  for (let round = 0; round < 100; round++) {
    const inverse = cofactors(turn); // Newton's iteration to the nearest rotation (Higham 1986)
    turn = turn.map((row, y) => row.map((value, x) => (value + inverse[y][x]) / 2));
  }
  if (!turn.flat().every(Number.isFinite)) {
    throw new Unreadable("has an orientation that makes no sense (its affine is singular)", "copy or download it again");
  }
  const free = [true, true, true];
  const found = [];
  const strength = (column) => Math.max(...turn.map((row) => row[column] ** 2));
  for (const column of [0, 1, 2].sort((one, other) => strength(other) - strength(one))) {
    const sizes = turn.map((row, world) => (free[world] ? Math.abs(row[column]) : -1));
    const world = sizes.indexOf(Math.max(...sizes));
    free[world] = false;
    found[column] = [world, turn[world][column] < 0 ? -1 : 1];
  }
  return found;
}

/** Return the inverse of a 3 x 3 matrix, transposed. */
function cofactors(m) {
  const minor = (y, x) => m[(y + 1) % 3][(x + 1) % 3] * m[(y + 2) % 3][(x + 2) % 3] - m[(y + 1) % 3][(x + 2) % 3] * m[(y + 2) % 3][(x + 1) % 3];
  const determinant = [0, 1, 2].reduce((sum, x) => sum + m[0][x] * minor(0, x), 0);
  return m.map((row, y) => row.map((_, x) => minor(y, x) / determinant));
}

/** Decode one slice upright: patient's right on the left, anterior or superior up. */
function readSlice({ view, little, read, step, start, shape, zooms, slope, inter, orientation, notes }, axis, index, number) {
  const sides = [0, 1, 2].filter((other) => other !== axis);
  if (orientation[sides[0]][0] < orientation[sides[1]][0]) sides.reverse(); // the higher world axis goes up the picture
  const [height, width] = sides.map((side) => shape[side]);
  refuseGigantic(width, height);
  const values = new Float64Array(width * height);
  const strides = [1, shape[0], shape[0] * shape[1]];
  const flips = sides.map((side) => orientation[side][1] > 0);
  const first = number * shape[0] * shape[1] * shape[2] + index * strides[axis];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const row = flips[0] ? height - 1 - y : y;
      const column = flips[1] ? width - 1 - x : x;
      const voxel = first + row * strides[sides[0]] + column * strides[sides[1]];
      values[y * width + x] = Number(view[read](start + step * voxel, little)) * slope + inter;
    }
  }
  const { data, note } = rescaleToUint8(values, width, "NIfTI values");
  const square = makeSquare({ width, height, data }, zooms[sides[0]], zooms[sides[1]]);
  return { image: square.image, notes: [...notes, note, ...square.notes] };
}
