// The three pictures beside the network: laws of states, gradients of all parameters, a walk.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { svg, set, short } = SBN.draw;
  const HEIGHT = 150, LEFT = 44, RIGHT = 8, TOP = 12, BOTTOM = 22;

  /** An empty chart in a box with its frame: `size()` tells the place for marks. */
  function chart(box, label) {
    const picture = svg("svg", { class: "sbn-chart", role: "img", "aria-label": label });
    box.append(picture);
    return {
      picture,
      size: () => ({ x0: LEFT, y0: HEIGHT - BOTTOM, y1: TOP,
        x1: Math.max(240, box.clientWidth || 420) - RIGHT }),
      /** All marks anew: the frame, the ticks of the axes and what is given. */
      put(ticks, ...marks) {
        const { x0, x1, y0 } = this.size();
        set(picture, { viewBox: `0 0 ${x1 + RIGHT} ${HEIGHT}`, width: x1 + RIGHT, height: HEIGHT });
        picture.replaceChildren(
          svg("path", { class: "sbn-axis", d: `M${x0} ${TOP}V${y0}H${x1}` }),
          ...ticks.map(({ x = x0 - 5, y = y0 + 15, text, anchor }) => svg("text", {
            class: "sbn-tick", x, y, "text-anchor": anchor || (x < x0 ? "end" : "middle") }, text)),
          ...marks);
      },
    };
  }

  /** A state of a layer in signs, or in the digits 0 and 1. */
  function nameOf(r, n, [lower]) {
    const [down, up] = lower ? "−+" : "01";
    return [...r.toString(2).padStart(Math.log2(n), "0")].map((b) => (b === "1" ? up : down))
      .join("");
  }

  /** Law of a layer as bars; the shares of samples, where there are some, as a line of steps. */
  function law(box) {
    const own = chart(box, "Probabilities of the states of a layer");
    return {
      picture: own.picture,
      show(probabilities, counts, values) {
        const { x0, x1, y0, y1 } = own.size(), n = probabilities.length;
        const drawn = counts ? counts.reduce((a, b) => a + b, 0) : 0;
        const share = (r) => counts[r] / drawn;
        let top = 0;
        for (let r = 0; r < n; r += 1) {
          top = Math.max(top, probabilities[r], drawn ? share(r) : 0);
        }
        const wide = (x1 - x0) / n, at = (p) => y0 - ((y0 - y1) * p) / top;
        const gap = wide > 6 ? 1.5 : wide > 3 ? 0.5 : 0;
        let bars = "", steps = "";
        for (let r = 0; r < n; r += 1) {
          const x = x0 + r * wide;
          bars += `M${x + gap} ${y0}V${at(probabilities[r])}H${x + wide - gap}V${y0}Z`;
          if (drawn) steps += `${r ? "L" : "M"}${x} ${at(share(r))}H${x + wide}`;
        }
        const name = (r) => nameOf(r, n, values);
        const ticks = n <= 16 && wide > 8 * Math.log2(n) + 4
          ? Array.from({ length: n }, (_, r) => ({ x: x0 + (r + 0.5) * wide, text: name(r) }))
          : [{ x: x0, text: name(0), anchor: "start" }, { x: x1, text: name(n - 1),
            anchor: "end" }];
        own.put([...ticks, { y: at(top) + 4, text: short(top, 2) }, { y: y0, text: "0" }],
          svg("path", { class: "sbn-bars", d: bars }),
          svg("path", { class: "sbn-steps", d: steps }));
      },
    };
  }

  /** Exact gradient, mean and one standard deviation of one sample, for every parameter. */
  function strip(box, choose) {
    const own = chart(box, "Gradient of each parameter, and mean and spread of the estimator");
    let places = [];
    own.picture.addEventListener("click", (event) => {
      const { left } = own.picture.getBoundingClientRect(), x = event.clientX - left;
      const near = places.find((p) => x < p.end);
      if (near) choose({ k: near.k, j: near.j });
    });
    return {
      picture: own.picture,
      show({ gradient = [], mean, variance }, chosen) {
        const { x0, x1, y0, y1 } = own.size();
        const rows = gradient.flatMap(({ bias, weight }, k) => bias.map((b, j) => ({ k, j,
          g: [...weight[j], b], m: [...mean[k].weight[j], mean[k].bias[j]],
          s: [...variance[k].weight[j], variance[k].bias[j]].map(Math.sqrt) })));
        const count = rows.reduce((sum, row) => sum + row.g.length, 0) + rows.length;
        const every = (x1 - x0) / count;
        const spread = (row, i) => Math.abs(row.m[i]) + row.s[i];
        const sizes = rows.flatMap((row) => row.g.map((g, i) => Math.max(Math.abs(g),
          Math.min(spread(row, i), 1e300))));
        const top = Math.max(...sizes, 1e-12), middle = (y0 + y1) / 2;
        const at = (v) => middle - (((y0 - y1) / 2) * Math.max(-top, Math.min(top, v))) / top;
        let x = x0 + every, exact = "", bars = "", dots = "", marks = "", band = "";
        const half = Math.max(0.6, every * 0.36), layers = [];
        places = [];
        for (const row of rows) {
          if (chosen && row.k === chosen.k && row.j === chosen.j) {
            band = `M${x - every} ${y1}H${x + row.g.length * every}V${y0}H${x - every}Z`;
          }
          if (!row.j) layers.push({ x, text: `layer ${row.k + 1}`, anchor: "start" });
          row.g.forEach((g, i) => {
            exact += `M${x - half} ${at(g)}h${2 * half}`;
            bars += `M${x} ${at(row.m[i] - row.s[i])}V${at(row.m[i] + row.s[i])}`;
            dots += `M${x} ${at(row.m[i])}h0`;
            x += every;
          });
          places.push({ k: row.k, j: row.j, end: x + every / 2 });
          marks += `M${x} ${y0}v3`;
          x += every;
        }
        own.put([...layers, { y: y1 + 4, text: short(top, 2) }, { y: middle + 4, text: "0" },
          { y: y0, text: short(-top, 2) }],
        svg("path", { class: "sbn-band", d: band }),
        svg("path", { class: "sbn-axis", d: `M${x0} ${middle}H${x1}${marks}` }),
        svg("path", { class: "sbn-spread", d: bars, "stroke-width": Math.min(4, every * 0.4) }),
        svg("path", { class: "sbn-exact", d: exact }),
        svg("path", { class: "sbn-dots", d: dots, "stroke-width": Math.min(6, every * 0.8) }));
      },
    };
  }

  /** Two lines of losses against steps. */
  function walk(box) {
    const own = chart(box, "Expected loss along the two walks");
    return {
      picture: own.picture,
      show(exact, estimated) {
        const { x0, x1, y0, y1 } = own.size(), values = [...exact, ...estimated];
        const low = Math.min(...values), high = Math.max(...values, low + 1e-9);
        const steps = Math.max(exact.length - 1, 20);
        if (exact.length < 2) {
          const text = "no steps yet";
          own.put([{ x: (x0 + x1) / 2, y: (y0 + y1) / 2, text }]);
          return;
        }
        const at = (v, t) => `${x0 + ((x1 - x0) * t) / steps} ` +
          `${y0 - ((y0 - y1) * (v - low)) / (high - low)}`;
        const line = (losses) => losses.map((v, t) => (t ? "L" : "M") + at(v, t)).join("");
        own.put([{ y: y1 + 4, text: short(high, 3) }, { y: y0, text: short(low, 3) },
          { x: x0, text: "0" }, { x: x1, text: `${steps} steps`, anchor: "end" }],
        svg("path", { class: "sbn-walk sbn-exact", d: line(exact) }),
        svg("path", { class: "sbn-walk sbn-mean", d: line(estimated) }));
      },
    };
  }

  SBN.charts = { law, strip, walk, nameOf };
})();
