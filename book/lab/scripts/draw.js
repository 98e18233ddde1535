// Small tools of the drawings: elements, numbers in few characters, a picture as a file.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const SVG = "http://www.w3.org/2000/svg";

  /** An element with attributes and children; strings become text, null is left out. */
  function make(space, tag, attributes = {}, children = []) {
    const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
    set(element, attributes);
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const svg = (tag, attributes, ...children) => make(SVG, tag, attributes, children);
  const html = (tag, attributes, ...children) => make(null, tag, attributes, children);

  /** Attributes of an element; undefined and false take one away, true leaves it empty. */
  function set(element, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === false) element.removeAttribute(name);
      else element.setAttribute(name, value === true ? "" : value);
    }
  }

  /** A number in at most seven characters, with a true minus sign. */
  function short(value, digits = 3) {
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    const whole = size < 1 ? 0 : Math.floor(Math.log10(size)) + 1;
    const text = size !== 0 && (size < 1e-3 || size >= 1e5)
      ? value.toExponential(1).replace("e+", "e")
      : value.toFixed(Math.max(0, digits - whole));
    return (Number(text) === 0 ? text.replace("-", "") : text).replaceAll("-", "−");
  }

  const KEPT = ["fill", "stroke", "stroke-width", "opacity", "font-size", "font-family",
    "text-anchor", "paint-order", "stroke-linejoin", "stroke-dasharray", "stroke-linecap",
    "fill-opacity", "stroke-opacity"];

  /** A copy that needs no style sheet, without what only a pointer or a reader of screens needs. */
  function copyOf(picture) {
    const copy = picture.cloneNode(true);
    const ours = [picture, ...picture.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((element, k) => {
      const style = getComputedStyle(ours[k]);
      KEPT.forEach((key) => element.style.setProperty(key, style.getPropertyValue(key)));
      for (const key of [...element.attributes].map(({ name }) => name)) {
        if (/^(class|tabindex|role|aria-.*|data-.*)$/.test(key)) element.removeAttribute(key);
      }
    });
    [...copy.querySelectorAll("*")].filter(({ style }) => style.fillOpacity === "0")
      .forEach((element) => element.remove());
    return copy;
  }

  /** Pictures, one under the other, as the text of an SVG file. */
  function fileOf(pictures) {
    const shown = pictures.filter((picture) => picture.getBoundingClientRect().height > 0);
    const sizes = shown.map((picture) => ["width", "height"].map((key) =>
      Number(picture.getAttribute(key))));
    const width = Math.max(...sizes.map(([w]) => w));
    let y = 0;
    const copies = shown.map((picture, k) => {
      const copy = copyOf(picture);
      set(copy, { y });
      y += sizes[k][1] + 16;
      return copy;
    });
    const paper = getComputedStyle(document.body).backgroundColor;
    return new XMLSerializer().serializeToString(svg("svg", { xmlns: SVG, width, height: y,
      viewBox: `0 0 ${width} ${y}` }, svg("rect", { width, height: y, fill: paper }), ...copies));
  }

  /** Offers a text as a file. */
  function save(text, name) {
    const link = html("a", { download: name,
      href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  SBN.draw = { svg, html, set, short, fileOf, save };
})();
