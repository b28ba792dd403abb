/** Makes the page's elements. */

export function make(tag, text = "", name = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className: name });
}

/** Draw a grey image, {width, height, data}; nothing where there is none. */
export function draw(canvas, image) {
  Object.assign(canvas, { width: image?.width ?? 1, height: image?.height ?? 1 });
  if (!image) return;
  const shown = new ImageData(image.width, image.height);
  image.data.forEach((value, place) => shown.data.set([value, value, value, 255], 4 * place));
  canvas.getContext("2d").putImageData(shown, 0, 0);
}
