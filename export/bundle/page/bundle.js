/** Reads the bundle's files from the server, and refuses a folder that was damaged or changed. */

const SUMS = "SHA256SUMS";
const RUNTIME = "page/runtime/ort-wasm-simd-threaded.wasm";

/** A folder that must not be used. */
export class BundleError extends Error {}

/** Return {about, classes, spec, golden, model, wasm, file, count} once every file is as SHA256SUMS says. */
export async function loadBundle(progress) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("This address is not secure, so checksums cannot be computed: open http://localhost:8000.");
  }
  const sums = new TextDecoder().decode(await read(SUMS)).trim().split("\n").map((line) => line.split("  "));
  const files = new Map();
  const wrong = [];
  for (const [digest, name] of sums) {
    progress(files.size, sums.length);
    try {
      const bytes = await read(name);
      files.set(name, bytes);
      if ((await sha256(bytes)) !== digest) wrong.push(`${name} has changed`);
    } catch (error) {
      if (!(error instanceof BundleError)) throw error;
      wrong.push(error.message);
    }
  }
  if (wrong.length) {
    throw new BundleError(`This folder was damaged or changed: ${wrong.join("; ")}. Copy the whole folder again.`);
  }
  const file = (name) => {
    if (!files.has(name)) throw new BundleError(`${name} is not listed in ${SUMS}. Copy the whole folder again.`);
    return files.get(name);
  };
  const json = (name) => JSON.parse(new TextDecoder().decode(file(name)));
  const about = json("bundle.json");
  return {
    about,
    classes: new TextDecoder().decode(file("labels.txt")).trim().split("\n"),
    spec: json("pixels.json"),
    golden: json("golden.json"),
    model: file(about.page.file),
    wasm: file(RUNTIME),
    file,
    count: sums.length,
  };
}

/** Return the SHA-256 of bytes as hexadecimal digits. */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function read(name) {
  let response;
  try {
    response = await fetch(name.split("/").map(encodeURIComponent).join("/"), { cache: "no-store" });
  } catch {
    throw new BundleError(`${name} cannot be fetched: is the server still running?`);
  }
  if (!response.ok) throw new BundleError(`${name} is missing`);
  return new Uint8Array(await response.arrayBuffer());
}
