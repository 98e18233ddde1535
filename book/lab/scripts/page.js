// The lab's page: fields, drawing, pictures and numbers around one model.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { html, set, short, fileOf, save } = SBN.draw;
  const { choice, range, line, button } = SBN.controls;
  const MEAN = "reinforce, mean"; // REINFORCE with the exact expected loss as its baseline
  const MOST_PATHS = 1000, MOST_STEPS = 400; // of one frame; of one walk
  const RANGES = { s: [-1, 2, 0.05], omega: [0, 20, 0.1], baseline: [-5, 15, 0.1] };
  const NUMBERS = [["value", "expected loss"], ["length", "length of its gradient"],
    ["bias", "length of the bias, over that"], ["spread", "standard deviation, over that"],
    ["angle", "angle of the mean with the gradient"]];

  const HOW = "Choose a unit, and drag what enters it up or down.";
  const MEND = "There is no loss to go by: mend the formula first.";

  const copy = (model) => JSON.parse(JSON.stringify(model));
  const slug = (name) => `lab-${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  const widths = (model) => [model.input.length, ...model.layers.map(({ bias }) => bias.length)];
  const last = (model) => model.layers[model.layers.length - 1].bias.length;

  /** A model whose loss is a formula, as the page has it. */
  function withFormula(model) {
    const own = copy(model);
    own.loss = { kind: "formula", text: SBN.losses.textOf(own.loss, last(own)) };
    return own;
  }

  /** The same model at other sizes: what there was stays, what is new is drawn small. */
  function resized(model, sizes) {
    const uniform = SBN.walk.random(sizes.reduce((seed, n) => 31 * seed + n, 7));
    const fresh = () => Math.round(200 * uniform() - 100) / 100;
    const own = copy(model);
    own.input = Array.from({ length: sizes[0] }, (_, i) => model.input[i] ?? 1);
    own.layers = sizes.slice(1).map((n, k) => ({
      weight: Array.from({ length: n }, (_, i) => Array.from({ length: sizes[k] }, (__, j) =>
        model.layers[k]?.weight[i]?.[j] ?? fresh())),
      bias: Array.from({ length: n }, (_, i) => model.layers[k]?.bias[i] ?? 0),
    }));
    try {
      SBN.formula.parse(own.loss.text, SBN.net.namesOf(last(own)));
      if (last(own) > last(model)) throw new RangeError("the new units would not count");
    } catch {
      own.loss = { kind: "formula", text: SBN.losses.formulaOf("distance", last(own)) };
    }
    return own;
  }

  /** What the address asks for: a model of its own, a preset, or the first preset. */
  function asked() {
    const text = location.hash.slice(1);
    const known = SBN.net.PRESETS.find(({ name }) => slug(name) === text);
    if (known) return { named: known, note: "" };
    const read = /^\d/.test(text) ? SBN.net.decode(text) : { note: "" };
    if (read.model && !read.note) return read;
    return { named: SBN.net.PRESETS[0], note: text.startsWith("lab-")
      ? "There is no such example, so this is the network of chapter 2." : read.note };
  }

  /** The units that the noise cannot turn after some, but not after all states below, by name. */
  function partly(model) {
    const [, edge] = SBN.noise.make(model.noise, model.scale).support;
    const values = SBN.net.valuesOf(model), all = SBN.net.saturated(model).map(({ name }) => name);
    const most = (row, b, sign) => row.reduce((sum, w) =>
      sum + Math.max(...values.map((v) => sign * w * v)), sign * b);
    return model.layers.flatMap(({ weight, bias }, k) => weight.flatMap((row, i) =>
      (k && Math.max(most(row, bias[i], 1), most(row, bias[i], -1)) >= edge
        ? [`unit ${i + 1} of layer ${k + 1}`] : []))).filter((name) => !all.includes(name));
  }

  /** Zero for what is rounding. */
  const clean = (value) => (Math.abs(value) < 1e-9 ? 0 : value);

  /** Angle of two vectors in degrees, also where it is small. */
  function angleOf(g, m) {
    const [u, v] = [g, m].map((a) => a.map((value) => value / Math.hypot(...a)));
    const length = (sign) => Math.hypot(...u.map((value, i) => value + sign * v[i]));
    return (360 / Math.PI) * Math.atan2(length(-1), length(1));
  }

  function page(box) {
    let model, found = null, failed = "", note = "", anew = true, waiting = false, hasMoved = false,
      walk = null, going = null, later = null, preset = null;
    const sampler = SBN.walk.sampler();

    // ---- parts of the page -------------------------------------------------------------------

    const netBox = html("div", { class: "sbn-lab-net" });
    const lawBox = html("div"), stripBox = html("div"), walkBox = html("div");
    const status = html("p", { class: "sbn-lab-note", role: "status" });
    const net = SBN.view.network(netBox, () => own(model), (unit) => {
      if (unit) shownLayer.write(String(unit.k));
      changed(false);
    });
    const law = SBN.charts.law(lawBox), walkChart = SBN.charts.walk(walkBox);
    const strip = SBN.charts.strip(stripBox, (unit) => net.select(unit));
    const told = Object.fromEntries(NUMBERS.map(([key]) => [key, html("dd", {}, "–")]));
    const numbers = html("dl", { class: "sbn-lab-numbers" }, ...NUMBERS.map(([key, words]) =>
      html("div", {}, html("dt", {}, words), told[key])));
    const table = html("tbody"), states = html("tbody"), drawn = html("span");
    const says = html("p", { class: "sbn-lab-says" });
    const tableOf = (name, body, ...heads) => html("div", {},
      html("table", { "aria-label": name }, html("thead", {}, html("tr", {},
        ...heads.map((words) => html("th", { scope: "col" }, words)))), body));
    const details = html("details", { class: "sbn-lab-table" },
      html("summary", {}, "All numbers as tables"),
      tableOf("Parameters and gradients", table,
        "parameter", "value", "gradient", "mean", "standard deviation"),
      tableOf("States", states, "layer", "state", "probability", "share in the drawn paths"));
    details.addEventListener("toggle", () => found && fillTables());

    // ---- fields ------------------------------------------------------------------------------

    const presets = choice("example", [["", "your own"], ...SBN.net.PRESETS.map(({ name, chapter },
      k) => [String(k), `${name} (chapter ${chapter})`])], (k) => k && open(SBN.net.PRESETS[k]));
    const counts = (from, none) => [...(none ? [["0", "none"]] : []), ...Array.from({ length: 9 -
      from }, (_, i) => [String(i + from), String(i + from)])];
    const sizes = ["inputs", "layer 1", "layer 2", "layer 3"].map((words, k) => choice(words,
      counts(1, k > 1), () => {
        const asks = sizes.map(({ control }) => Number(control.value));
        if (!asks[2]) asks[3] = 0;
        own(resized(model, asks.filter(Boolean)));
      }));
    const noise = choice("noise", SBN.noise.NAMES.map((name) => [name,
      SBN.noise.make(name).label.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase()]),
    (name) => own({ ...model, noise: name }));
    const scale = range("scale of the noise", { min: 0.05, max: 3, step: 0.05 }, (value) =>
      own({ ...model, scale: value }));
    const coding = choice("states", [["signs", "−1 and +1"], ["bits", "0 and 1"]], (value) =>
      own({ ...model, coding: value }));
    const kinds = choice("loss", [["", "as typed"], ...Object.entries(SBN.losses.KINDS).map(([key,
      [words]]) => [key, words])], (kind) => kind && own({ ...model, loss: { kind: "formula",
      text: SBN.losses.formulaOf(kind, last(model)) } }));
    const formula = line("L =", (text) => own({ ...model, loss: { kind: "formula", text } }));
    const estimators = SBN.estimators.NAMES.flatMap((name) => {
      const { label } = SBN.estimators.ESTIMATORS[name];
      return [[name, label], ...(name === "reinforce" ? [[MEAN, `${label}, baseline E L`]] : [])];
    });
    const estimator = choice("estimator", estimators, (name) => {
      const { parameter, start } = SBN.estimators.ESTIMATORS[name === MEAN ? "reinforce" : name];
      own({ ...model, estimator: name === MEAN ? { name: "reinforce", baseline: "mean" }
        : parameter ? { name, [parameter]: start } : name });
    });
    let parameterName = "s";
    const parameter = range("its number", { min: -1, max: 2, step: 0.05 }, (value) =>
      own({ ...model, estimator: { ...model.estimator, [parameterName]: value } }));
    const shownLayer = choice("states of", [["0", "layer 1"]], () => changed(false));

    // ---- chance ------------------------------------------------------------------------------

    const one = button("Draw a path", () => draws(1));
    const many = button("Keep drawing", () => run(many, () => draws(Math.min(MOST_PATHS,
      Math.ceil((sampler.total() + 20) / 20)))), true);
    const forget = button("Forget the paths", () => {
      stop();
      sampler.clear();
      net.path(null);
      changed(false);
    });
    const rate = range("step size", { min: 0.05, max: 2, step: 0.05 }, () => backToStart());
    const samples = choice("the estimator's steps take", [["1", "one sample"], ["10",
      "the mean of ten"], ["0", "its exact mean"]], () => backToStart());
    const step = button("One step", () => steps());
    const walking = button("Walk", () => run(walking, steps), true);
    const take = button("Take the end of the estimator's walk", () => {
      if (walk) own(rounded(walk.at.estimated));
      else say("There is no walk yet whose end could be taken.");
    });

    /** Another kind of walk is to begin where the network stands. */
    function backToStart() {
      walk = null;
      showWalk();
    }

    function showWalk() {
      const { exact, estimated } = walk ? walk.losses : { exact: [], estimated: [] };
      walkChart.show(exact, estimated);
    }

    function rounded(end) {
      return { ...end, layers: end.layers.map(({ weight, bias }) => ({ weight: weight.map((row) =>
        row.map(near)), bias: bias.map(near) })) };
    }
    const near = (value) => Math.round(1000 * value) / 1000;

    /** Runs `work` once a frame until the button is pressed again or a model comes. */
    function run(control, work) {
      const stops = going && going.control === control;
      stop();
      if (stops) return;
      going = { control };
      set(control, { "aria-pressed": "true" });
      const own_ = going;
      const tick = () => {
        if (going !== own_) return;
        work();
        requestAnimationFrame(tick);
      };
      tick();
    }

    function stop() {
      if (going) set(going.control, { "aria-pressed": "false" });
      going = null;
    }

    function draws(paths) {
      if (!found) return;
      net.path(sampler.draw(model, paths));
      pictures();
      if (details.open) fillStates();
    }

    function steps() {
      if (failed) {
        stop();
        say(MEND);
        return;
      }
      try {
        walk = walk || SBN.walk.descent(copy(model), { rate: Number(rate.control.value),
          samples: Number(samples.control.value) });
        walk.step();
      } catch (error) {
        stop();
        say(error.message);
        return;
      }
      showWalk();
      if (walk.losses.exact.length > MOST_STEPS) stop();
    }

    function say(words) {
      if (status.textContent !== words) status.textContent = words;
    }

    // ---- changes -----------------------------------------------------------------------------

    /** Takes over another model, which is the reader's own. */
    function own(next) {
      const before = String(widths(model));
      model = next;
      preset = null; // but its words stay, as they say what to try
      presets.write("");
      note = "";
      anew = anew || before !== String(widths(model));
      changed();
    }

    /** Shows an example, or a model of an address, from its beginning. */
    function open(next, words = "") {
      show(next.chapter ? next : null);
      model = withFormula(next.chapter ? next.model : next);
      note = words;
      anew = true;
      net.choose({ k: 0, j: 0 });
      changed();
    }

    /** Says which example the model is, if it is one. */
    function show(example) {
      preset = example;
      presets.write(example ? String(SBN.net.PRESETS.indexOf(example)) : "");
      says.textContent = example ? `${example.says} (Chapter ${example.chapter}.)` : HOW;
    }

    /** Computes and shows once a frame, however many changes there were. */
    function changed(moved = true) {
      if (moved) {
        stop();
        sampler.clear();
        net.path(null);
        walk = null;
      }
      hasMoved = hasMoved || moved;
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        refresh();
      });
    }

    /** What can be known of the model: without a loss the probabilities of its states. */
    function compute() {
      failed = "";
      try {
        found = SBN.lab.compute(model);
      } catch (error) {
        failed = error.message.replace(/^loss\.text, at/, "At character");
        found = { laws: SBN.lab.exact({ ...model, loss: { kind: "formula", text: "0" } }).laws };
      }
      found.chances = found.laws.map(chances);
    }

    function refresh() {
      compute();
      fields();
      formula.say(failed);
      net.show(model, found, anew);
      anew = false;
      charts();
      tell();
      if (details.open) fillTables();
      say(note || stuck());
      if (hasMoved && started && !failed) keep();
      hasMoved = false;
    }

    /** What saturated units mean, if there are any. */
    function stuck() {
      const always = SBN.net.saturated(model).map((unit) => unit.name), some = partly(model);
      return (always.length ? `Saturated: ${always.join(", ")}. Whatever comes from below, the ` +
        "noise cannot turn the state, the density there is 0, and no gradient passes. " : "") +
        (some.length ? `Saturated after some of the states below: ${some.join(", ")}. After ` +
          "those the state is certain, and no gradient passes." : "");
    }

    const code = () => (preset ? slug(preset.name) : SBN.net.encode(model));

    /** The model into the address, not more often than browsers like it. */
    function keep() {
      clearTimeout(later);
      later = setTimeout(() => failed || history.replaceState(null, "", `#${code()}`), 250);
    }

    /** What stands beside the network, as wide as its place is. */
    function charts() {
      pictures();
      strip.show(found, net.chosen());
      showWalk();
    }

    function pictures() {
      const k = Math.min(Number(shownLayer.control.value) || 0, model.layers.length - 1);
      const paths = sampler.total();
      law.show(found.laws[k], sampler.counts(k), SBN.net.valuesOf(model));
      drawn.textContent = !paths ? "" : paths === 1 ? " and the share in one drawn path"
        : ` and the shares in ${paths} drawn paths`;
    }

    /** P(unit is up) for each unit of a layer. */
    function chances(probabilities) {
      const n = Math.log2(probabilities.length);
      return Array.from({ length: n }, (_, j) => probabilities.reduce((sum, p, r) =>
        sum + ((r >> (n - 1 - j)) & 1 ? p : 0), 0));
    }

    function fields() {
      sizes.forEach(({ write, control }, k) => {
        write(String(widths(model)[k] || 0));
        control.disabled = k === 3 && model.layers.length < 2;
      });
      noise.write(model.noise);
      scale.write(model.scale);
      coding.write(model.coding);
      formula.write(model.loss.text);
      kinds.write(Object.keys(SBN.losses.KINDS).find((kind) =>
        SBN.losses.formulaOf(kind, last(model)) === model.loss.text) || "");
      const given = SBN.estimators.asObject(model.estimator), isMean = given.baseline === "mean";
      estimator.write(isMean ? MEAN : given.name);
      const entry = SBN.estimators.ESTIMATORS[given.name];
      parameter.box.hidden = !entry.parameter || isMean;
      if (entry.parameter && !isMean) {
        parameterName = entry.parameter;
        const [min, max, by] = RANGES[parameterName];
        set(parameter.control, { min, max, step: by });
        parameter.box.querySelector("label").textContent = parameterName;
        parameter.write(given[parameterName]);
      }
      box.style.setProperty("--sbn-estimator", entry.colour);
      if (shownLayer.control.options.length !== model.layers.length) {
        const before = shownLayer.control.value;
        shownLayer.control.replaceChildren(...model.layers.map((_, k) =>
          html("option", { value: k }, `layer ${k + 1}`)));
        shownLayer.write(before < model.layers.length ? before : String(model.layers.length - 1));
      }
    }

    function tell() {
      if (failed) {
        NUMBERS.forEach(([key]) => { told[key].textContent = "–"; });
        return;
      }
      const [g, m, v] = [found.gradient, found.mean, found.variance].map(SBN.view.all);
      const length = Math.hypot(...g), mean = Math.hypot(...m);
      const over = (value) => (length > 1e-12 ? clean(value / length) : NaN);
      told.value.textContent = short(found.value, 4);
      told.length.textContent = short(length);
      told.bias.textContent = short(over(Math.hypot(...m.map((value, i) => value - g[i]))));
      told.spread.textContent = short(over(Math.sqrt(v.reduce((a, b) => a + b, 0))));
      told.angle.textContent = length > 1e-12 && mean > 1e-12
        ? `${short(clean(angleOf(g, m)))}°` : "–";
    }

    function fillTables() {
      fillTable();
      fillStates();
    }

    /** A body of a table anew: the first words of a row name it. */
    function fill(body, rows) {
      body.replaceChildren(...rows.map(([name_, ...values]) => html("tr", {},
        html("th", { scope: "row" }, name_), ...values.map((v) => html("td", {}, v)))));
    }

    function fillStates() {
      fill(states, found.laws.flatMap((probabilities, k) => Array.from(probabilities, (p, r) => [
        `layer ${k + 1}`, SBN.charts.nameOf(r, probabilities.length, SBN.net.valuesOf(model)),
        short(p, 4), sampler.total() ? short(sampler.counts(k)[r] / sampler.total(), 4) : "–"])));
    }

    function fillTable() {
      if (failed) {
        table.replaceChildren();
        return;
      }
      const rows = model.layers.flatMap(({ weight, bias }, k) => bias.flatMap((b, j) => {
        const at = `unit ${j + 1} of layer ${k + 1}`, from = k ? "unit" : "input";
        const cells = (get) => [found.gradient, found.mean].map((set_) => get(set_[k]))
          .concat(Math.sqrt(get(found.variance[k])));
        return [...weight[j].map((w, i) => [`weight from ${from} ${i + 1} to ${at}`, w,
          ...cells((part) => part.weight[j][i])]), [`bias of ${at}`, b,
          ...cells((part) => part.bias[j])]];
      }));
      fill(table, rows.map(([words, ...values]) => [words, ...values.map((v) => short(v, 4))]));
    }

    // ---- the page ----------------------------------------------------------------------------

    const all = [net.picture, law.picture, strip.picture, walkChart.picture];
    const share = button("Copy the link", async () => {
      if (failed) {
        say(MEND);
        return;
      }
      const address = `${location.href.split("#")[0]}#${SBN.net.encode(model)}`;
      try {
        await navigator.clipboard.writeText(address);
        say("The link is copied; who opens it sees this network.");
      } catch {
        history.replaceState(null, "", address);
        say("The address of this page is the link; copy it from there.");
      }
    });
    const picture = button("Save the pictures", () => save(fileOf(all), "lab.svg"));
    const again = button("Begin anew", () => open(SBN.net.PRESETS[0]));
    const part = (title, ...children) => html("fieldset", {}, html("legend", {}, title),
      ...children);
    const figure = (words, ...children) => html("figure", {}, html("figcaption", {}, ...words),
      ...children);
    const key = (name, words) => html("span", { class: `sbn-key ${name}` }, words);

    box.replaceChildren(
      html("div", { class: "sbn-lab-top" }, presets.box, says),
      netBox,
      numbers,
      html("div", { class: "sbn-lab-fields" },
        part("network", ...sizes.map((field) => field.box), noise.box, scale.box, coding.box),
        html("div", {}, part("loss", kinds.box, formula.box),
          part("estimator", estimator.box, parameter.box))),
      status,
      html("div", { class: "sbn-lab-pictures" },
        figure([key("sbn-key-g", "gradient"), ", ", key("sbn-key-m", "mean of the estimator"),
          " and ", key("sbn-key-s", "its standard deviation"), ", of each parameter"], stripBox),
        figure(["Probabilities of the ", shownLayer.control, drawn], lawBox,
          html("div", { class: "sbn-lab-buttons" }, one, many, forget)),
        figure(["Expected loss on the way down: by the ", key("sbn-key-g", "gradient"), ", by ",
          key("sbn-key-m", "the estimator")], walkBox, html("div", { class: "sbn-lab-fields" },
          rate.box, samples.box), html("div", { class: "sbn-lab-buttons" }, step, walking, take))),
      html("div", { class: "sbn-lab-buttons" }, share, picture, again),
      details);
    set(shownLayer.control, { "aria-label": "states of which layer" });
    rate.write(0.3);

    let started = false;
    function start() {
      const from = asked();
      open(from.named || from.model, from.note);
      requestAnimationFrame(() => { started = true; });
    }
    const comes = () => {
      if (!/^#(lab-|\d)/.test(location.hash)) return;
      start();
      box.scrollIntoView();
    };
    addEventListener("hashchange", comes);
    for (const link of document.querySelectorAll('a[href^="#lab-"]')) {
      link.addEventListener("click", () => { // which is no change of the address if it is there
        if (link.hash === location.hash) setTimeout(comes);
      });
    }
    let wide = 0;
    new ResizeObserver(() => {
      if (found && Math.abs(lawBox.clientWidth - wide) > 1) charts(); // before it is painted
      wide = lawBox.clientWidth;
    }).observe(lawBox);
    start();
    if (/^#lab-/.test(location.hash)) {
      const toBox = () => requestAnimationFrame(() => box.scrollIntoView());
      if (document.readyState === "complete") toBox();
      else addEventListener("load", toBox);
    }
    return { model: () => model, found: () => found, file: () => fileOf(all), code };
  }

  document.addEventListener("DOMContentLoaded", () => {
    const box = document.getElementById("sbn-lab");
    if (box) SBN.page = page(box);
  });
})();
