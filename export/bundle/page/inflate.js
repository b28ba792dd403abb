/** Inflates zlib and gzip streams by the browser's own inflater, which reads to the end, where the checksum stands. */

import { damaged, Unreadable } from "./unreadable.js";

export const MOST_BYTES = 512 * 1024 * 1024;

/** Return the bytes of a stream in parts. format: "deflate", "deflate-raw" or "gzip". what: names it where it is damaged. */
export async function inflate(parts, format, what) {
  const inflated = [];
  let size = 0;
  try {
    const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream(format)).getReader();
    for (let part = await reader.read(); !part.done && size <= MOST_BYTES; part = await reader.read()) {
      inflated.push(part.value);
      size += part.value.length;
    }
  } catch {
    throw damaged(what);
  }
  if (size > MOST_BYTES) throw new Unreadable("inflates to more than is read", "use predict.py");
  return new Uint8Array(await new Blob(inflated).arrayBuffer());
}
