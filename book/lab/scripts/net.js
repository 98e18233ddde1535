// The model that the lab shows: what is allowed, and which units are saturated. A model is
//     {layers: [{weight: [[..], ..], bias: [..]}, ..], input: [..], noise, scale, coding, loss,
//      estimator}
// with a name of SBN.noise, "signs" or "bits", a name of SBN.estimators or {name, s | omega |
// baseline}, and the loss {kind: "quadratic", A, c}, {kind: "cross_entropy", weight, bias, target}
// or {kind: "formula", text}.
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
        const got = size(weight[0]);
        says.push(`${name}[0] must be 1 to ${inputs} numbers, an input each, got ${got}`);
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
      const below = k ? SBN.exact.allStates(width, valuesOf(model)) : model.input;
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

  SBN.net = { LIMITS, KINDS, CODINGS, check, saturated, valuesOf, namesOf };
})();
