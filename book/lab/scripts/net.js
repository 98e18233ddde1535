// The model that the lab shows: what is allowed, presets, and the address that keeps it.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  const LIMITS = { layers: 3, units: 8, inputs: 8, classes: 10, number: 1000, finest: 0.001 };
  const WHY =
    "the sums run over all 2^n states of a layer of n units and over the transitions between " +
    "neighbours, 2^16 for 8 and 8";
  const KINDS = ["quadratic", "cross_entropy", "formula"];
  const CODINGS = ["signs", "bits"];

  /** The two states of a unit. */
  const valuesOf = (model) => (model.coding === "bits" ? [0, 1] : [-1, 1]);

  /** The names of the last layer's states in a formula. */
  const namesOf = (n) => Array.from({ length: n }, (_, i) => `x${i + 1}`);

  // ---- checks --------------------------------------------------------------------------------

  /** What is wrong with a model, a sentence each: the argument, what is allowed, what was given. */
  function check(model) {
    const says = [];
    if (!isObject(model)) return [`model must be an object, got ${show(model)}`];
    const { layers, input, noise, scale = 1, coding = "signs", loss, estimator } = model;
    if (!checkLayers(says, layers)) return says;
    const n = layers[layers.length - 1].bias.length;
    checkNumbers(says, "input", input, layers[0].weight[0].length);
    checkName(says, "noise", noise, SBN.noise.NAMES);
    checkNumber(says, "scale", scale, LIMITS.finest);
    checkName(says, "coding", coding, CODINGS);
    checkLoss(says, loss, n);
    checkEstimator(says, estimator);
    return says;
  }

  function checkLayers(says, layers) {
    const { units, inputs } = LIMITS;
    if (!isCount(layers, LIMITS.layers)) {
      says.push(`layers must be an array of 1 to ${LIMITS.layers}, got ${size(layers)}: ${WHY}`);
      return false;
    }
    let width = null;
    layers.forEach((layer, k) => {
      const { weight, bias } = isObject(layer) ? layer : {};
      const name = `layers[${k}].weight`;
      if (says.length) return;
      if (!isCount(weight, units)) {
        says.push(`${name} must be an array of 1 to ${units} rows, got ${size(weight)}: ${WHY}`);
      } else if (k === 0 && !isCount(weight[0], inputs)) {
        says.push(`${name}[0] must be 1 to ${inputs} numbers, an input each, got ${size(weight[0])}`);
      } else {
        checkMatrix(says, name, weight, weight.length, width || weight[0].length);
        checkNumbers(says, `layers[${k}].bias`, bias, weight.length);
        width = weight.length;
      }
    });
    return says.length === 0;
  }

  function checkLoss(says, loss, n) {
    const kind = isObject(loss) ? loss.kind : loss;
    if (!checkName(says, "loss.kind", kind, KINDS)) return;
    if (kind === "quadratic") {
      checkMatrix(says, "loss.A", loss.A, n, n);
      checkNumbers(says, "loss.c", loss.c, n);
    } else if (kind === "cross_entropy") {
      checkHead(says, loss, n);
    } else if (typeof loss.text !== "string") {
      says.push(`loss.text must be a formula in ${namesOf(n).join(", ")}, got ${show(loss.text)}`);
    } else {
      checkFormula(says, loss.text, n);
    }
  }

  function checkHead(says, { weight, bias, target }, n) {
    const { classes } = LIMITS;
    if (!isCount(weight, classes, 2)) {
      says.push(`loss.weight must be 2 to ${classes} rows, a class each, got ${size(weight)}`);
      return;
    }
    checkMatrix(says, "loss.weight", weight, weight.length, n);
    checkNumbers(says, "loss.bias", bias, weight.length);
    if (!namesOf(weight.length).some((_, k) => k === target)) {
      const last = weight.length - 1;
      says.push(`loss.target must be a class from 0 to ${last}, got ${show(target)}`);
    }
  }

  function checkFormula(says, text, n) {
    try {
      SBN.formula.parse(text, namesOf(n));
    } catch (error) {
      if (!(error instanceof SBN.formula.FormulaError)) throw error;
      says.push(`loss.text, ${error.message}`);
    }
  }

  function checkEstimator(says, estimator) {
    const given = SBN.estimators.asObject(estimator);
    const name = isObject(given) ? given.name : estimator;
    if (!checkName(says, "estimator", name, SBN.estimators.NAMES)) return;
    const { parameter } = SBN.estimators.ESTIMATORS[name];
    if (!parameter || (name === "reinforce" && given.baseline === "mean")) return;
    const or = name === "reinforce" ? ' or "mean"' : "";
    const least = name === "shrinkage" ? 0 : -LIMITS.number;
    checkNumber(says, `estimator.${parameter}`, given[parameter], least, or);
  }

  function checkName(says, name, value, names) {
    const known = names.includes(value);
    if (!known) says.push(`${name} must be one of ${names.join(", ")}, got ${show(value)}`);
    return known;
  }

  function checkNumber(says, name, value, least = -LIMITS.number, or = "") {
    if (Number.isFinite(value) && value >= least && value <= LIMITS.number) return;
    const range = `a number from ${least} to ${LIMITS.number}${or}`;
    says.push(`${name} must be ${range}, got ${show(value)}`);
  }

  function checkNumbers(says, name, value, length) {
    if (Array.isArray(value) && value.length === length) {
      value.forEach((number, i) => checkNumber(says, `${name}[${i}]`, number));
    } else {
      says.push(`${name} must be an array of ${length} numbers, got ${size(value)}`);
    }
  }

  function checkMatrix(says, name, value, rows, columns) {
    if (Array.isArray(value) && value.length === rows) {
      value.forEach((row, i) => checkNumbers(says, `${name}[${i}]`, row, columns));
    } else {
      says.push(`${name} must be an array of ${rows} rows, got ${size(value)}`);
    }
  }

  const isObject = (value) => typeof value === "object" && value !== null;
  const isCount = (value, most, least = 1) =>
    Array.isArray(value) && value.length >= least && value.length <= most;

  /** What was given, in a few characters. */
  function show(value) {
    const text = typeof value === "number" ? String(value) : JSON.stringify(value);
    return text && text.length > 40 ? `${text.slice(0, 37)}...` : String(text);
  }

  const size = (value) => (Array.isArray(value) ? `${value.length}` : show(value));

  // ---- saturation ----------------------------------------------------------------------------

  /**
   * The units of a checked model whose pre-activation is outside the support of the noise at every
   * state below, so that f = 0 and no gradient passes: [{layer, unit, name}], counted from 0 but in
   * the name from 1.
   */
  function saturated(model) {
    const [, edge] = SBN.noise.make(model.noise, model.scale).support;
    return model.layers.flatMap(({ weight, bias }, k) => {
      const width = weight[0].length;
      const below = k ? SBN.exact.allStates(width, valuesOf(model)) : Float64Array.from(model.input);
      const outside = (row, i) => {
        for (let at = 0; at < below.length; at += width) {
          const a = row.reduce((sum, w, j) => sum + w * below[at + j], bias[i]);
          if (Math.abs(a) < edge) return false;
        }
        return true;
      };
      return weight.flatMap((row, i) =>
        outside(row, i) ? [{ layer: k, unit: i, name: `unit ${i + 1} of layer ${k + 1}` }] : [],
      );
    });
  }

  // ---- the address ---------------------------------------------------------------------------
  //
  // A version, whole numbers of five bits a character (the sixth says that more follow, the least
  // first), and 32 bits that depend on all of it. Numbers are kept in thousandths.

  const VERSION = "1";
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const CHECK = 6;
  const PARTS = 1000;

  class Writer {
    constructor() {
      this.text = VERSION;
    }

    count(value) {
      for (; value > 31; value >>>= 5) this.text += DIGITS[32 + (value & 31)];
      this.text += DIGITS[value];
    }

    index(value, among) {
      this.count(among.indexOf(value));
    }

    number(value) {
      const whole = Math.round(value * PARTS);
      this.count(whole < 0 ? -2 * whole - 1 : 2 * whole);
    }

    numbers(values) {
      values.forEach((value) => this.number(value));
    }
  }

  class Unreadable extends Error {}

  class Parser {
    constructor(text) {
      [this.text, this.at] = [text, VERSION.length];
    }

    count() {
      for (let value = 0, shift = 0; shift < 30; shift += 5) {
        const digit = DIGITS.indexOf(this.text.charAt(this.at++) || " ");
        if (digit < 0) throw new Unreadable();
        value += (digit & 31) << shift;
        if (digit < 32) return value;
      }
      throw new Unreadable();
    }

    index(among) {
      const value = among[this.count()];
      if (value === undefined) throw new Unreadable();
      return value;
    }

    number() {
      const whole = this.count();
      return (whole & 1 ? -(whole + 1) / 2 : whole / 2) / PARTS;
    }

    numbers(length) {
      return Array.from({ length }, () => this.number());
    }

    matrix(rows, columns) {
      return Array.from({ length: rows }, () => this.numbers(columns));
    }
  }

  /** FNV-1a: changed by every change of one character. */
  function checksum(text) {
    let hash = 0x811c9dc5;
    for (const letter of text) hash = Math.imul(hash ^ letter.charCodeAt(0), 0x01000193);
    return Array.from({ length: CHECK }, (_, k) => DIGITS[(hash >>> (6 * k)) & 63]).join("");
  }

  /** A checked model as a short text of letters, digits, - and _, for location.hash. */
  function encode(model) {
    const [wrong] = check(model);
    if (wrong) throw new RangeError(wrong);
    const { layers, input, noise, scale = 1, coding = "signs", loss, estimator } = model;
    const out = new Writer();
    out.count(layers.length);
    [input.length, ...layers.map(({ bias }) => bias.length)].forEach((n) => out.count(n));
    out.index(noise, SBN.noise.NAMES);
    out.number(scale);
    out.index(coding, CODINGS);
    out.numbers([...input, ...layers.flatMap(({ weight, bias }) => [...weight.flat(), ...bias])]);
    writeLoss(out, loss);
    writeEstimator(out, SBN.estimators.asObject(estimator));
    return out.text + checksum(out.text);
  }

  function writeLoss(out, loss) {
    out.index(loss.kind, KINDS);
    if (loss.kind === "quadratic") out.numbers([...loss.A.flat(), ...loss.c]);
    if (loss.kind === "cross_entropy") {
      out.count(loss.weight.length);
      out.numbers([...loss.weight.flat(), ...loss.bias]);
      out.count(loss.target);
    }
    if (loss.kind === "formula") {
      out.count(loss.text.length);
      [...loss.text].forEach((_, at) => out.count(loss.text.charCodeAt(at)));
    }
  }

  function writeEstimator(out, given) {
    const { parameter } = SBN.estimators.ESTIMATORS[given.name];
    out.index(given.name, SBN.estimators.NAMES);
    if (given.name === "reinforce") out.count(+(given.baseline === "mean"));
    if (parameter && given.baseline !== "mean") out.number(given[parameter]);
  }

  /** What `encode` wrote, with a note that is empty if it could be read; else the first preset. */
  function decode(text) {
    try {
      return { model: readModel(String(text).replace(/^#/, "")), note: "" };
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      const note = "The address is cut short or altered, so this is the network of chapter 2.";
      return { model: fresh(), note };
    }
  }

  function readModel(text) {
    const [body, check_] = [text.slice(0, -CHECK), text.slice(-CHECK)];
    if (!body.startsWith(VERSION) || checksum(body) !== check_) throw new Unreadable();
    const from = new Parser(body);
    const sizes = Array.from({ length: from.count() + 1 }, () => from.count());
    const noise = from.index(SBN.noise.NAMES);
    const scale = from.number();
    const coding = from.index(CODINGS);
    const input = from.numbers(sizes[0]);
    const layers = sizes.slice(1).map((n, k) => ({
      weight: from.matrix(n, sizes[k]),
      bias: from.numbers(n),
    }));
    const loss = readLoss(from, sizes[sizes.length - 1]);
    const model = { layers, input, noise, scale, coding, loss, estimator: readEstimator(from) };
    if (from.at !== body.length || check(model).length) throw new Unreadable();
    return model;
  }

  function readLoss(from, n) {
    const kind = from.index(KINDS);
    if (kind === "quadratic") return { kind, A: from.matrix(n, n), c: from.numbers(n) };
    const length = from.count();
    if (kind === "formula") {
      const codes = Array.from({ length }, () => from.count());
      return { kind, text: String.fromCharCode(...codes) };
    }
    const [weight, bias] = [from.matrix(length, n), from.numbers(length)];
    return { kind, weight, bias, target: from.count() };
  }

  function readEstimator(from) {
    const name = from.index(SBN.estimators.NAMES);
    const { parameter } = SBN.estimators.ESTIMATORS[name];
    if (!parameter) return name;
    const isMean = name === "reinforce" && from.count() === 1;
    return { name, [parameter]: isMean ? "mean" : from.number() };
  }

  /** A model as its address keeps it: numbers in thousandths. */
  const rounded = (model) => decode(encode(model)).model;

  // ---- presets -------------------------------------------------------------------------------

  /** One layer with given pre-activations: the input is 1, the weights are what enters. */
  const layerOf = (a) => ({ weight: a.map((value) => [value]), bias: a.map(() => 0) });
  const alone = (a, loss, estimator, noise = "logistic", scale = 1) => ({
    layers: [layerOf(a)],
    input: [1],
    noise,
    scale,
    coding: "signs",
    loss: typeof loss === "string" ? { kind: "formula", text: loss } : loss,
    estimator,
  });
  const XOR = [
    { weight: [[2, 2], [-2, -2], [2, -2]], bias: [-2, -2, -2] },
    { weight: [[2, 2, -2], [2, 2, 0]], bias: [0, 2] },
  ];
  const THREE = [
    { weight: [[0.5, -0.3, 0.1], [-0.2, 0.4, 0.3], [0.3, 0.2, -0.4]], bias: [0.1, -0.1, 0.1] },
    { weight: [[-0.4, 0.3, 0.2], [0.3, 0.3, -0.3], [0.2, -0.5, 0.2]], bias: [0.1, 0.1, -0.1] },
    { weight: [[0.3, 0.4, -0.2], [-0.5, 0.2, 0.2], [0.2, 0.3, 0.4]], bias: [-0.1, 0.1, 0.1] },
  ];
  const BOWL = { kind: "quadratic", A: [[1, 0.5], [0.5, 1]], c: [0.3, -0.5] };
  const preset = (name, chapter, says, model) => ({ name, chapter, says, model });

  const PRESETS = [
    preset(
      "XOR by two votes", 2,
      "Three hidden units look for patterns of two inputs, two units vote for \"equal\"; the loss " +
        "is that of a wrong answer.",
      {
        ...alone([0], BOWL, "straight_through"),
        layers: XOR,
        input: [1, 1],
        loss: { kind: "cross_entropy", weight: [[0, 0], [1, 1]], bias: [0, 0], target: 1 },
      },
    ),
    preset(
      "Four losses, two units", 4,
      "Any function of two units is a formula; REINFORCE needs its values only.",
      alone([0.7, -0.3], "1.7 + 0.8*x1 - 0.5*x2 + 0.4*x1*x2", { name: "reinforce", baseline: "mean" }),
    ),
    preset(
      "A constant in the loss", 4,
      "The 10 changes no gradient, and is nearly all of REINFORCE's variance; a baseline takes it " +
        "out.",
      alone([0.5, -0.3, 0.2], "10 + x1 - x2 + 0.5*x3", { name: "reinforce", baseline: 0 }),
    ),
    preset(
      "A product of eight", 5,
      "The units count only together: every flip changes the sign of the loss, and the gradient " +
        "is tiny beside its spread.",
      alone(Array(8).fill(0.5), "x1*x2*x3*x4*x5*x6*x7*x8", { name: "reinforce", baseline: 0 }),
    ),
    preset(
      "A product of bits", 6,
      "The loss is multilinear, so straight-through is unbiased, here in its only layer.",
      alone([0.9, -0.6, 0.4], "x1*x2*x3", "straight_through"),
    ),
    preset(
      "A square is a constant", 6,
      "On the states the loss is 1 and its gradient 0; straight-through does not know that and " +
        "pushes the unit towards a fair coin.",
      alone([1], "x1^2", "straight_through"),
    ),
    preset(
      "A bowl over two units", 6,
      "On a quadratic the bias of straight-through in unit i is 2f(a) A_ii mu: move a unit from 0 " +
        "and see it grow.",
      alone([1.5, -0.8], BOWL, "straight_through"),
    ),
    preset(
      "Three layers, a linear loss", 7,
      "Straight-through is exact in the last layer and biased below, because F is curved.",
      { ...alone([0], "x1 + x2 - x3", "straight_through"), layers: THREE, input: [1, -1, 1] },
    ),
    preset(
      "Uniform noise, nothing saturated", 7,
      "F is straight where the pre-activations are, and ZGR is exact in all three layers of this " +
        "quadratic; shrink the scale until a unit saturates.",
      {
        ...alone([0], "0.5*x1^2 + x1*x2 - x2*x3 + 0.3*x3", "zgr", "uniform", 1.2),
        layers: THREE,
        input: [1, -1, 1],
      },
    ),
    preset(
      "One saturated state", 7,
      "The unit above is certain when the one below is +1; of the two states below only one lets " +
        "a gradient pass.",
      {
        ...alone([0], "x1", "straight_through", "uniform"),
        layers: [layerOf([0.3]), { weight: [[0.8]], bias: [0.6] }],
      },
    ),
    preset(
      "The wrong slope", 8,
      "The units draw with logistic noise, the backward pass uses the slope 1: wrong even where " +
        "straight-through is exact.",
      alone([1.2, -0.4], "x1*x2 + 2*x1", "identity"),
    ),
    preset(
      "A decided unit", 10,
      "With uniform noise a unit near the end of its support takes its rarer state seldom, and " +
        "then ZGR divides by that probability; straight-through stays calm.",
      alone([0.99, 0.2], BOWL, "zgr", "uniform"),
    ),
    preset(
      "Along the line", 10,
      "s = 1 is straight-through, 0 is ZGR, -1 is DARN: the bias passes through 0, and the variance " +
        "has its least value elsewhere.",
      alone([1.5, -0.8], BOWL, { name: "chain_rule", s: 0.5 }),
    ),
    preset(
      "A cube, as good as linear", 10,
      "On the states x^3 is x, but its slope is three times as large: every member of the line is " +
        "wrong by the same factor at a fair coin.",
      alone([0, 0.8], "x1^3 + x2^3", { name: "chain_rule", s: 0 }),
    ),
  ];

  /** A copy of the first preset's model, to change at will. */
  const fresh = () => JSON.parse(JSON.stringify(PRESETS[0].model));

  SBN.net = { LIMITS, KINDS, CODINGS, PRESETS };
  Object.assign(SBN.net, { check, saturated, encode, decode, rounded, fresh, valuesOf, namesOf });
})();
