// The lab's page: fields, drawing, pictures and numbers around one model.
(() => {
  "use strict";
  const { html, svg, set, short, save } = SBN.draw;
  const { choice, range, line, button } = SBN.controls;

  const NOISES = [["logistic", "logistic"], ["uniform", "uniform"], ["triangular", "triangular"],
    ["gaussian", "Gaussian"], ["cauchy", "Cauchy"], ["fast_sigmoid", "fast sigmoid"]];
  const LOSSES = [
    ["", "as typed below"],
    ["distance", "squared distance to a target"],
    ["coupled", "quadratic, with neighbours coupled"],
    ["product", "product of all states"],
    ["exponential", "exponential of the mean"],
    ["classes", "cross-entropy of two classes"],
  ];

  /** A loss of n states as the formula that a reader could have typed. */
  function formulaOf(kind, n) {
    const x = Array.from({ length: n }, (_, i) => `x${i + 1}`);
    if (kind === "distance") {
      return `(${x.map((v, i) => `(${v} ${i % 2 ? "+" : "-"} 1)^2`).join(" + ")}) / 2`;
    }
    if (kind === "coupled") {
      const pairs = x.slice(1).map((v, i) => `${x[i]}*${v}`);
      return `(${x.map((v) => `${v}^2`).join(" + ")}) / 2${pairs.map((p) => ` + ${p}`).join("")}`;
    }
    if (kind === "product") return x.join("*");
    if (kind === "exponential") return n > 1 ? `exp((${x.join(" + ")}) / ${n})` : "exp(x1)";
    return `log(1 + exp(-2*(${x.join(" + ")})))`;
  }

  /** Estimators of the lab: what the field shows, and what compute takes. */
  const ESTIMATORS = SBN.estimators.LIST;

  function page(box) {
    let model, found, note = "", anew = true, waiting = false;
    const saved = SBN.net.decode(location.hash.slice(1));
    model = saved.model;
    note = saved.note;

    box.replaceChildren();
    const netBox = html("div", { class: "sbn-lab-net" });
    const status = html("p", { class: "sbn-lab-note", "aria-live": "polite" });
    const numbers = html("dl", { class: "sbn-lab-numbers" });
    const lawBox = html("div"), stripBox = html("div"), walkBox = html("div", { hidden: true });

    // What is shown -------------------------------------------------------------------------------

    const net = SBN.view.network(netBox, changed, () => {});
    const law = SBN.charts.law(lawBox), strip = SBN.charts.strip(stripBox, (unit) => net.select(unit));
    const walkChart = SBN.charts.walk(walkBox);
    const told = {};
    for (const [key, words] of [["value", "expected loss"], ["length", "length of its gradient"],
      ["bias", "bias of the estimator, over that"], ["spread", "its standard deviation, over that"],
      ["angle", "angle of its mean with the gradient"]]) {
      told[key] = html("dd", {}, "–");
      numbers.append(html("div", {}, html("dt", {}, words), told[key]));
    }

    /** After every change: once a frame, however many changes there were. */
    function changed(structure = false) {
      anew = anew || structure === true;
      forget();
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        refresh();
      });
    }

    function refresh() {
      const wrong = SBN.net.check(model);
      let failed = wrong[0] || "";
      if (!failed) {
        try {
          found = SBN.lab.compute(model);
          found.chances = found.laws.map(chances);
        } catch (error) {
          failed = error.message;
        }
      }
      lossLine.say(failed);
      if (!failed) {
        net.show(model, found, anew);
        anew = false;
        law.show(found.laws[layerShown()], sampler.counts(layerShown()));
        strip.show(found);
        tell();
        table();
      }
      status.textContent = note || SBN.net.saturated(model).join(" ");
      history.replaceState(null, "", `#${SBN.net.encode(model)}`);
    }

    /** P(x_j = +1) of each unit, from the law of the layer. */
    function chances(probabilities) {
      const n = Math.log2(probabilities.length);
      return Array.from({ length: n }, (_, j) => probabilities.reduce((sum, p, r) =>
        sum + ((r >> (n - 1 - j)) & 1 ? p : 0), 0));
    }

    function tell() {
      const [g, m, v] = [found.gradient, found.mean, found.variance].map(SBN.view.all);
      const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
      const length = Math.sqrt(dot(g, g)), mean = Math.sqrt(dot(m, m));
      const apart = m.map((value, i) => value - g[i]);
      const over = (value) => (length > 1e-12 ? value / length : NaN);
      told.value.textContent = short(found.value, 4);
      told.length.textContent = short(length);
      told.bias.textContent = short(over(Math.sqrt(dot(apart, apart))));
      told.spread.textContent = short(over(Math.sqrt(v.reduce((a, b) => a + b, 0))));
      const cosine = dot(g, m) / (length * mean);
      told.angle.textContent = length > 1e-12 && mean > 1e-12
        ? `${short((Math.acos(Math.max(-1, Math.min(1, cosine))) * 180) / Math.PI)}°` : "–";
    }
