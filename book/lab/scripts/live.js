// Live figures of the chapters. Where SBN.figures has a figure, its sliders get all its positions,
// and its lines move to where SBN.figures says; the rest of the picture stays what Matplotlib drew.
//
// What is in the page works without this script, with one frame for each of some positions. The
// stored data say which lines move and how data become points of the picture:
//     {sliders: {name: [positions]}, axes: [{box, x, y}],
//      lines: {name: {axes, marks?, x?, y?}}}
// box is [left, bottom, right, top] in the picture, a side x or y is [from, to, "linear" or "log"];
// marks are the points that carry a marker.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const NEAR = 1e-9;

  /** The positions of a slider: those of SBN.figures, and all that the frames have. */
  function positions(fine, stored) {
    const others = fine.filter((v) => !stored.some((s) => Math.abs(v - s) < NEAR));
    return [...others, ...stored].sort((one, other) => one - other);
  }

  /** A text for each number, all with as many decimals as the numbers need. */
  function texts(numbers) {
    const shown = (d) => numbers.every((v) => Math.abs(v - v.toFixed(d)) < NEAR);
    const digits = [0, 1, 2, 3].find(shown) ?? 4;
    return numbers.map((v) => v.toFixed(digits).replace("-", "\u2212"));
  }

  /** From a number to its place between `begin` and `end`. */
  function place(side, begin, end) {
    const on = side[2] === "log" ? Math.log : (v) => v;
    const [from, to] = [on(side[0]), on(side[1])];
    return (value) => begin + ((on(value) - from) / (to - from)) * (end - begin);
  }

  /** Where the points of a line lie in the picture. */
  function points({ x, y }, line, axes) {
    const { box } = axes;
    const across = place(line.x || axes.x, box[0], box[2]);
    const up = place(line.y || axes.y, box[1], box[3]);
    return x.map((v, i) => [across(v), up(y[i])]);
  }

  const drawn = (point) => point.every(Number.isFinite);
  const words = (point) => point.map((v) => v.toFixed(2)).join(" ");

  /** The path through the points; it has a gap where one is no number. */
  function path(all) {
    const piece = (point, i) => (i && drawn(all[i - 1]) ? "L" : "M") + words(point);
    return all.map((point, i) => (drawn(point) ? piece(point, i) : "")).join("");
  }

  /** How to move one line of the picture: a function of what SBN.figures says of it. */
  function mover(group, line, axes) {
    const [curve, mark] = [group.querySelector(":scope > path"), group.querySelector("use")];
    const marks = mark?.parentNode;
    return (given) => {
      const all = points(given, line, axes);
      if (curve) curve.setAttribute("d", path(all));
      if (curve && "width" in given) curve.style.strokeWidth = given.width;
      if (!mark) return;
      for (const use of marks.querySelectorAll(":scope > use")) use.remove();
      const places = line.marks.map((i) => all[i]).filter(drawn);
      marks.append(...places.map((at) => put(mark, at)));
    };
  }

  function put(mark, [x, y]) {
    const copy = mark.cloneNode();
    copy.setAttribute("x", x.toFixed(2));
    copy.setAttribute("y", y.toFixed(2));
    return copy;
  }

  /** The sliders with all their positions; returns {element, values}, a function. */
  function widen(panel, names, stored, fine) {
    // a copy: what the frames listen to goes with the original
    const element = panel.cloneNode(true);
    const inputs = [...element.querySelectorAll("input")];
    const all = names.map((name) => positions(fine[name], stored[name]));
    const shown = all.map(texts);
    inputs.forEach((input, k) => {
      const at = all[k].indexOf(stored[names[k]][input.value]);
      input.max = all[k].length - 1;
      input.value = at;
    });
    const values = () => Object.fromEntries(names.map((name, k) => [name, all[k][inputs[k].value]]));
    const say = () => inputs.forEach((input, k) => label(input, shown[k][input.value]));
    return { element, values, say };
  }

  function label(input, text) {
    input.setAttribute("aria-valuetext", text);
    const output = input.nextElementSibling;
    if (output.textContent !== text) output.textContent = text;
  }

  /** The picture as it was stored, whatever frame is shown. */
  function startFrame(root, data) {
    const lines = root.querySelector('script[type="text/plain"]').textContent.split("\n");
    return data.base.map((i) => lines[i]).join("");
  }

  const same = (one, other) => String(Object.keys(one).sort()) === String(Object.keys(other).sort());

  /** Take a figure over, if SBN.figures knows its sliders and its lines. */
  function takeOver(root) {
    const source = root.querySelector('script[type="application/json"]');
    const figure = (SBN.figures || {})[root.dataset.live];
    if (!source || !figure) return;
    const data = JSON.parse(source.textContent);
    const { sliders, axes, lines } = data.live;
    const start = Object.fromEntries(Object.keys(sliders).map((name) => [name, sliders[name][0]]));
    if (!same(figure.sliders, sliders) || !same(figure.lines(start), lines)) return;

    const [panel, frame] = [root.querySelector(".sbn-panel"), root.querySelector(".sbn-frame")];
    const wide = widen(panel, Object.keys(sliders), sliders, figure.sliders);
    frame.innerHTML = startFrame(root, data);
    const moves = Object.entries(lines).map(([name, line]) => {
      const group = frame.querySelector(`[data-line="${name}"]`);
      return [name, mover(group, line, axes[line.axes])];
    });
    const update = () => {
      const found = figure.lines(wide.values());
      for (const [name, move] of moves) move(found[name]);
      wide.say();
    };
    wide.element.addEventListener("input", () => {
      update();
      const answer = root.closest(".sbn-figure").querySelector(".sbn-answer");
      if (answer) answer.open = true;
    });
    update();
    panel.replaceWith(wide.element);
    wide.element.hidden = false;
  }

  SBN.live = { positions, texts, takeOver };
  document.querySelectorAll("[data-live]").forEach(takeOver);
})();
