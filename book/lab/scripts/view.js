// The network as a drawing that can be taken hold of.
// Inputs, units and the weights into the chosen unit are sliders: pointer, touch and keys.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { svg, set, short } = SBN.draw;
  const PIXELS = 36; // of a drag that change a number by 1
  const ARROW = 24; // length of the largest arrow
  const STEPS = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1, PageUp: 1,
    PageDown: -1 };
  const LARGEST = 20; // of a number that is dragged, unless it was larger

  /** A number in hundredths, within `most` of 0. */
  const clipped = (value, most) => Math.max(-most, Math.min(most, Math.round(value * 100) / 100));

  /** A slider in the drawing: a drag up or a key raises `number.get()`, by way of `number.put`. */
  function handle(element, number, changed) {
    set(element, { role: "slider", tabindex: 0, "aria-label": number.name,
      "aria-orientation": "vertical" });
    let start = null;
    const most = () => Math.max(LARGEST, Math.abs(number.get()));
    const move = (value) => {
      const next = clipped(value, most());
      if (next === number.get()) return;
      number.put(next);
      changed();
    };
    // or the finger scrolls the page: touch-action is not heeded within a drawing
    element.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    element.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      event.preventDefault();
      element.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      start = { y: event.clientY, value: number.get() };
    });
    element.addEventListener("pointermove", (event) => {
      if (start) move(start.value + (start.y - event.clientY) / PIXELS);
    });
    for (const over of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(over, () => { start = null; });
    }
    element.addEventListener("keydown", (event) => {
      const step = event.key === "0" || event.key === "Home" ? -number.get()
        : STEPS[event.key] * (event.shiftKey ? 0.1 : 1);
      if (Number.isNaN(step) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      move(number.get() + step);
    });
    return { tell: () => set(element, { "aria-valuemin": -most(), "aria-valuemax": most(),
      "aria-valuenow": number.get(), "aria-valuetext": short(number.get()) }) };
  }

  /** A vertical arrow from (x, y); a length below a pixel draws a dot. */
  function arrow(x, y, length) {
    if (!(Math.abs(length) >= 1)) return `M${x - 1.5} ${y}h3`;
    const tip = Math.min(4, Math.abs(length)) * Math.sign(length);
    return `M${x} ${y}V${y - length}M${x - 3} ${y - length + tip}L${x} ${y - length}` +
      `L${x + 3} ${y - length + tip}`;
  }

  /** The drawing of a model in `box`; `changed` is called when a number was moved. */
  function network(box, changed, chosen) {
    const picture = svg("svg", { class: "sbn-net", role: "group", "aria-label":
      "The network: inputs at the left, layers of units to the right" });
    box.append(picture);
    let model, parts, selected = null, found = null, shown = null;

    const sizes = () => [model.input.length, ...model.layers.map((layer) => layer.bias.length)];

    /** Places of the columns and rows in pixels of the box. */
    function places() {
      const width = Math.max(280, box.clientWidth || 640), counts = sizes();
      const tallest = Math.max(...counts), row = tallest > 5 ? 50 : tallest > 3 ? 66 : 86;
      const height = Math.max(240, tallest * row + 44);
      const margin = Math.min(64, width / 8);
      const x = counts.map((_, k) => margin + (k * (width - 2 * margin)) / (counts.length - 1));
      const y = counts.map((count) => Array.from({ length: count }, (_, i) =>
        (height - 20) / 2 + (i - (count - 1) / 2) * row));
      return { width, height, x, y, r: Math.min(17, width / 24) };
    }

    /** Everything anew: after another model, another choice or another width. */
    function build() {
      const p = places(), counts = sizes(), focused = stops().indexOf(document.activeElement);
      set(picture, { viewBox: `0 0 ${p.width} ${p.height}`, width: p.width, height: p.height });
      parts = { edges: [], units: [], handles: [], labels: [], p };
      const under = svg("g", { class: "sbn-edges" }), over = svg("g");
      model.layers.forEach((layer, k) => layer.weight.forEach((row, j) => row.forEach((_, i) => {
        const line = svg("line", { x1: p.x[k], y1: p.y[k][i], x2: p.x[k + 1], y2: p.y[k + 1][j] });
        parts.edges.push({ k, j, i, line });
        under.append(line);
      })));
      for (let i = 0; i < counts[0]; i += 1) over.append(input(i, p));
      for (let k = 0; k < model.layers.length; k += 1) {
        for (let j = 0; j < counts[k + 1]; j += 1) over.append(...unit(k, j, p));
      }
      picture.replaceChildren(under, over, ...parts.labels, ...titles(p, counts));
      draw();
      if (focused >= 0) stops()[focused]?.focus({ preventScroll: true });
    }

    /** What the tabulator stops at, in its order. */
    const stops = () => [...picture.querySelectorAll("[tabindex]")];

    function titles(p, counts) {
      return counts.map((_, k) => svg("text", { class: "sbn-column", x: p.x[k], y: p.height - 6,
        "text-anchor": "middle" }, k ? `layer ${k}` : "input"));
    }

    function input(i, p) {
      const r = p.r * 0.95, x = p.x[0], y = p.y[0][i];
      const value = svg("text", { class: "sbn-value", x, y: y + 4, "text-anchor": "middle" });
      const group = svg("g", { class: "sbn-input" },
        svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, rx: 4 }), value);
      const number = { name: `input ${i + 1}`, get: () => model.input[i],
        put: (v) => { model.input[i] = v; } };
      parts.handles.push({ ...handle(group, number, changed), value, number });
      return group;
    }

    function unit(k, j, p) {
      const x = p.x[k + 1], y = p.y[k + 1][j], r = p.r;
      const is = selected && selected.k === k && selected.j === j;
      const level = svg("path", { class: "sbn-level" });
      const group = svg("g", { class: `sbn-unit${is ? " sbn-chosen" : ""}`, role: "button",
        tabindex: 0, "aria-pressed": String(Boolean(is)), "aria-label": "" },
        svg("circle", { cx: x, cy: y, r }), level, svg("circle", { cx: x, cy: y, r,
          class: "sbn-rim" }));
      const choose = () => select(is ? null : { k, j }, true);
      group.addEventListener("click", choose);
      group.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose();
        }
      });
      parts.units.push({ k, j, group, level, x, y, r });
      return is ? [group, ...sliders(k, j, p)] : [group];
    }

    /** Handles on what enters the chosen unit. */
    function sliders(k, j, p) {
      const layer = model.layers[k], x = p.x[k + 1], y = p.y[k + 1][j];
      const from = k ? "unit" : "input", at = `unit ${j + 1} of layer ${k + 1}`;
      const row = layer.weight[j].map((_, i) => {
        const t = 0.34;
        return slider(p.x[k] + t * (x - p.x[k]), p.y[k][i] + t * (y - p.y[k][i]), {
          name: `weight from ${from} ${i + 1} to ${at}`, get: () => layer.weight[j][i],
          put: (v) => { layer.weight[j][i] = v; },
          of: (set_) => set_[k].weight[j][i] });
      });
      const bias = slider(x + p.r + 9, y - p.r - 3, { name: `bias of ${at}`, sign: "b ",
        get: () => layer.bias[j], put: (v) => { layer.bias[j] = v; },
        of: (set_) => set_[k].bias[j], left: k === model.layers.length - 1 });
      return [...row, bias];
    }

    function slider(x, y, number) {
      const value = svg("text", number.left // where there is no room to the right
        ? { class: "sbn-value", x: x - 9, y: y - 4, "text-anchor": "end" }
        : { class: "sbn-value", x: x + 15, y: y + 4 });
      parts.labels.push(value); // over the discs
      const exact = svg("path", { class: "sbn-exact" }), mean = svg("path", { class: "sbn-mean" });
      const group = svg("g", { class: "sbn-slider" },
        svg("circle", { class: "sbn-reach", cx: x, cy: y, r: 15 }),
        svg("circle", { cx: x, cy: y, r: 6.5 }), exact, mean);
      parts.handles.push({ ...handle(group, number, changed), value, number, exact, mean, x, y });
      return group;
    }

    /** The numbers into the drawing that stands. */
    function draw() {
      for (const { k, j, i, line } of parts.edges) {
        const w = model.layers[k].weight[j][i];
        const own = selected && selected.k === k && selected.j === j;
        set(line, { "stroke-width": 0.6 + Math.min(7, 2 * Math.abs(w)),
          class: `${w < 0 ? "sbn-minus" : "sbn-plus"}${selected && !own ? " sbn-dim" : ""}` });
      }
      for (const { value, number, tell } of parts.handles) {
        value.textContent = (number.sign || "") + short(number.get());
        tell();
      }
      if (!found) return;
      const [lower, upper] = SBN.net.valuesOf(model).map((v) => String(v).replace("-", "minus "));
      for (const { k, j, group, level, x, y, r } of parts.units) {
        const state = shown && shown[k][j], p = found.chances[k][j];
        set(level, { d: filled(x, y, r, shown ? (state > 0 ? 1 : 0) : p) });
        group.classList.toggle("sbn-drawn", Boolean(shown));
        set(group, { "aria-label": `unit ${j + 1} of layer ${k + 1}, ` + (shown
          ? `state ${state > 0 ? upper : lower}` : `chance of ${upper} ${short(p)}`) });
      }
      for (const { exact, mean } of parts.handles.filter((h) => h.exact)) {
        set(exact, { d: "" });
        set(mean, { d: "" });
      }
      if (!found.mean) return;
      const largest = Math.max(...all(found.gradient).map(Math.abs),
        ...all(found.mean).map(Math.abs), 1e-12);
      for (const { number, exact, mean, x, y } of parts.handles.filter((h) => h.exact)) {
        const [g, m] = [number.of(found.gradient), number.of(found.mean)];
        set(exact, { d: arrow(x - 3.5, y, (ARROW * g) / largest) });
        set(mean, { d: arrow(x + 3.5, y, (ARROW * m) / largest) });
      }
    }

    function select(next, told) {
      selected = next;
      build();
      if (!told) return;
      const unit = parts.units.find((u) => next && u.k === next.k && u.j === next.j);
      if (unit) unit.group.focus({ preventScroll: true });
      chosen(next);
    }

    new ResizeObserver(() => {
      if (model && Math.abs(places().width - parts.p.width) > 1) build();
    }).observe(box);

    return {
      picture,
      /** Shows a model; a result of compute with it, or null while there is none. */
      show(next, result, anew) {
        const before = model && String(sizes());
        model = next;
        found = result;
        if (selected && !(model.layers[selected.k]?.bias.length > selected.j)) selected = null;
        if (anew || before !== String(sizes())) build();
        else draw();
      },
      /** Another unit is chosen, at once or, before a model is shown anew, from then on. */
      select: (unit) => select(unit, false),
      choose(unit) {
        selected = unit;
      },
      chosen: () => selected,
      /** States of a drawn path, or null for the chances. */
      path(states) {
        shown = states;
        if (parts) draw();
      },
    };
  }

  /** The part of a disc below a height: as much of it as `share` says. */
  function filled(x, y, r, share) {
    if (share <= 0.001) return "";
    const c = 1 - 2 * share, s = Math.sqrt(Math.max(0, 1 - c * c));
    const half = (way) => `a${r} ${r} 0 1 0 ${way * 2 * r} 0`;
    if (share >= 0.999) return `M${x - r} ${y}${half(1)}${half(-1)}`;
    return `M${x - r * s} ${y + r * c}A${r} ${r} 0 ${share > 0.5 ? 1 : 0} 0 ${x + r * s} ` +
      `${y + r * c}Z`;
  }

  /** All numbers of a gradient, layer by layer, weights before biases. */
  function all(gradient) {
    return gradient.flatMap(({ weight, bias }) => [...weight.flat(), ...bias]);
  }

  SBN.view = { network, all };
})();
