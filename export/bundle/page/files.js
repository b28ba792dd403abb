/** Turns chosen files into slices by their content, never their names: brainq_torch/data/reading/image.py in JavaScript. */

import { sha256 } from "./bundle.js";
import { isDicom, listDicomSlices } from "./dicom.js";
import { isBlank } from "./head_crop.js";
import { gunzip, isGzip, isNifti, isNiftiHeader, joinPair, listNiftiSlices } from "./nifti.js";
import { isPicture, readPicture } from "./picture.js";
import { BLANK, LeftOut, Unreadable } from "./unreadable.js";

const IMAGE_SUFFIX = /\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|ima|nii|gz|mat)$/i;
const MASK = /[^/][_-](mask|seg|segmentation)s?(\.nii)?\.[a-z0-9]+[^/]*$/i;
const MASK_FOLDER = /(?:^|\/)(masks?|segmentations?|annotations?)\/[^/]*$/i;
const HEADER = /\.hdr(\.gz)?$/i;
const VOXELS = /\.img(\.gz)?$/i;
const HEAD_BYTES = 1024;
const ARCHIVE = /^(PK\x03\x04|7z\xbc\xaf|Rar!)/; // zip, as portals and Office make them, 7z, rar

/**
 * Return a file's slices, {path, series, title, place, position, unfit, decode}; none where it is no image of a folder.
 * file: a File, what opens one, or bytes. isAlone: it is all that was chosen. beside: path -> file of what was chosen.
 * known: of the files before, so that a copy does not count twice; a damaged one gets the attribute fault. classes: of the model; a folder of such a name holds no masks.
 */
export async function listSlices({ path, file, isOfFolder, isAlone, beside = new Map(), known = new Map(), classes = [] }, decodeJpeg) {
  if (["hdr", "HDR", "hdr.gz", "HDR.gz"].some((end) => VOXELS.test(path) && beside.has(path.replace(VOXELS, `.${end}`)))) return [];
  const isNamed = IMAGE_SUFFIX.test(path);
  if (isOfFolder && (path.includes("/.") || !(isNamed || isImage(await read(file, HEAD_BYTES))))) return [];
  if (isMaskByName(path, classes) && !isAlone) throw new LeftOut("is a mask by its name", "choose it alone to have it answered");
  const bytes = await readInflated(file);
  if (!bytes.length) throw new Unreadable("has zero bytes", "copy or download it again");
  if (isGzip(await read(file, HEAD_BYTES)) && !isNifti(bytes) && !isNiftiHeader(bytes)) {
    throw new Unreadable("is a gzip file of something else than NIfTI", "remove it or unpack it");
  }
  if (isDicom(bytes)) {
    const slices = await listDicomSlices(path, bytes);
    if (slices?.length) {
      const [{ series, instance, pixels, place, axes, traits }] = slices;
      const first = JSON.stringify([series, instance ?? (pixels && (await sha256(pixels))), place, axes, Object.values(traits)]);
      const before = known.get(first);
      if (before && before.fault === undefined) before.fault = await findFault(before);
      if (before && !before.fault) throw new LeftOut("is a copy: an image of its SOPInstanceUID, at its place, or of its pixels is answered", "choose it alone");
      if (slices.length === 1) slices[0] = { ...slices[0], pixels: null, decode: () => decodeAgain(path, file) };
      if (instance || pixels) known.set(first, slices[0]);
    }
    if (slices || isOfFolder) return slices ?? [];
    throw new Unreadable("is a DICOM directory, report or other file without an image", "choose the folder of the images");
  }
  if (isNifti(bytes)) return listNiftiSlices(path, bytes);
  if (isNiftiHeader(bytes)) {
    const names = [".img", ".img.gz", ".IMG", ".IMG.gz"].map((end) => path.replace(HEADER, end));
    const voxels = beside.get(names.find((name) => name !== path && beside.has(name)));
    if (!voxels) throw new Unreadable("is one half of a NIfTI pair (.hdr/.img)", "choose its .img with it, or save both as one .nii");
    return listNiftiSlices(path, joinPair(bytes, await readInflated(voxels)));
  }
  if (isPicture(bytes)) {
    const decode = () => readPicture(bytes, decodeJpeg);
    return [{ path, series: "", title: "", place: [], position: null, unfit: "", decode }];
  }
  if (ARCHIVE.test(String.fromCharCode(...bytes.subarray(0, 4)))) throw new Unreadable("is an archive", "unpack it, and choose its folder");
  throw new Unreadable("is neither PNG, TIFF, JPEG, DICOM nor NIfTI", "use predict.py, which reads BMP, WebP and others as well");
}

/** Return why a slice of which there is a copy cannot be read, null of a sound one: a damaged one must not hide the other. */
async function findFault(slice) {
  try {
    await slice.decode();
    return null;
  } catch (error) {
    return error;
  }
}

function isMaskByName(path, classes) {
  const folder = path.match(MASK_FOLDER)?.[1].toLowerCase();
  return MASK.test(path) || (folder && !classes.some((name) => name.toLowerCase() === folder));
}

function isImage(head) {
  return isDicom(head) || isNifti(head) || isNiftiHeader(head) || isPicture(head) || isGzip(head);
}

/** Return a file's bytes, up to an end. */
async function read(file, end) {
  const opened = await (file.open?.() ?? file);
  return new Uint8Array(await (opened.slice(0, end).arrayBuffer?.() ?? opened));
}

/** Return a file's bytes, inflated where it is gzipped. */
async function readInflated(file) {
  const bytes = await read(file);
  return isGzip(bytes) ? gunzip(bytes) : bytes;
}

/** Read a DICOM file once more: a folder of them need not fit into memory. */
async function decodeAgain(path, file) {
  return (await listDicomSlices(path, await read(file)))[0].decode();
}

/** Decode a slice: {image, notes, warning}, the last where it is no slice through a head. Throws Unreadable. */
export async function readSlice(slice) {
  const read = await slice.decode();
  if (isBlank(read.image)) throw new Unreadable(BLANK, "remove it, or export the scan again with all its grey levels");
  return read;
}
