/** Turns chosen files into slices by their content, never their names: brainq_torch/data/reading/image.py in JavaScript. */

import { isDicom, listDicomSlices } from "./dicom.js";
import { isBlank } from "./head_crop.js";
import { gunzip, isGzip, isNifti, listNiftiSlices } from "./nifti.js";
import { isPicture, readPicture } from "./picture.js";
import { BLANK, Unreadable } from "./unreadable.js";

const IMAGE_SUFFIX = /\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|ima|nii|gz|mat)$/i;

/** Return a file's slices, {path, series, title, place, position, unfit, decode}; none where it is no image of a folder. */
export async function listSlices(path, file, isOfFolder, decodeJpeg) {
  const content = new Uint8Array(await (file.arrayBuffer?.() ?? file));
  if (!content.length) throw new Unreadable("has zero bytes", "copy or download it again");
  const bytes = isGzip(content) ? await gunzip(content) : content;
  if (isDicom(bytes)) {
    const slices = listDicomSlices(path, bytes);
    if (slices?.length === 1) return [{ ...slices[0], decode: () => decodeAgain(path, file) }];
    if (slices || isOfFolder) return slices ?? [];
    throw new Unreadable("is a DICOM directory, report or other file without an image", "leave it out");
  }
  if (isNifti(bytes)) return listNiftiSlices(path, bytes);
  if (isPicture(bytes)) {
    const decode = () => readPicture(bytes, decodeJpeg);
    return [{ path, series: "", title: "", place: [], position: null, unfit: "", decode }];
  }
  if (isOfFolder && !IMAGE_SUFFIX.test(path)) return [];
  throw new Unreadable("is neither PNG, JPEG, DICOM nor NIfTI", "use predict.py, which reads TIFF and others as well");
}

/** Read a DICOM file once more: a folder of them need not fit into memory. */
async function decodeAgain(path, file) {
  return listDicomSlices(path, new Uint8Array(await (file.arrayBuffer?.() ?? file)))[0].decode();
}

/** Decode a slice: {image, notes}. Throws Unreadable. */
export async function readSlice(slice) {
  const read = await slice.decode();
  if (isBlank(read.image)) throw new Unreadable(BLANK, "remove it, or export the scan again with all its grey levels");
  return read;
}
