// Small tools of the drawings: elements, numbers in few characters, a picture as a file.
(() => {
  "use strict";
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

  /** The drawing as a file of its own: colours as they are now, the page's fonts by name. */
  function save(picture, name) {
    const copy = picture.cloneNode(true);
    const ours = [picture, ...picture.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((element, k) => {
      const style = getComputedStyle(ours[k]);
      for (const key of ["fill", "stroke", "stroke-width", "opacity", "font-size", "font-family",
        "text-anchor", "stroke-dasharray", "stroke-linecap", "fill-opacity", "stroke-opacity"]) {
        element.style.setProperty(key, style.getPropertyValue(key));
      }
      for (const key of ["class", "tabindex", "role"]) element.removeAttribute(key);
    });
    copy.querySelectorAll("[data-handle]").forEach((element) => element.remove());
    set(copy, { xmlns: SVG });
    const paper = getComputedStyle(document.body).backgroundColor;
    copy.prepend(svg("rect", { width: "100%", height: "100%", fill: paper }));
    const link = html("a", { download: name, href: URL.createObjectURL(new Blob(
      [new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  globalThis.SBN = Object.assign(globalThis.SBN || {}, { draw: { svg, html, set, short, save } });
})();
