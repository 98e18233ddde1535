// The lab's answer: exact expectation, exact gradient, exact mean and variance of an estimator.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  /** x'Ax/2 + c'x; A need not be symmetric. */
  function quadratic({ A, c }) {
    const row = (i, x) => A[i].reduce((sum, value, j) => sum + (value + A[j][i]) * x[j], 0) / 2;
    return {
      value: (x) => x.reduce((sum, v, i) => sum + v * (row(i, x) / 2 + c[i]), 0),
      slopes: (x) => x.map((_, i) => row(i, x) + c[i]),
    };
  }

  /** -log softmax(weight x + bias) at the target. */
  function crossEntropy({ weight, bias, target }) {
    // exp of each score beside the largest, which are at most 1; the rest is all but one of them
    const score = (row, x, b) => row.reduce((sum, w, i) => sum + w * x[i], b);
    const scores = (x) => weight.map((row, k) => score(row, x, bias[k]));
    const parts = (z) => z.map((v) => Math.exp(v - Math.max(...z)));
    const rest = (values, out) => values.reduce((sum, v, k) => (k === out ? sum : sum + v), 0);
    return {
      value: (x) => {
        const z = scores(x);
        const most = Math.max(...z);
        return most - z[target] + Math.log1p(rest(parts(z), z.indexOf(most)));
      },
      slopes: (x) => {
        const share = parts(scores(x));
        const all = rest(share, -1);
        const d = share.map((v, k) => (k === target ? -rest(share, target) : v) / all);
        return x.map((_, i) => d.reduce((sum, v, k) => sum + v * weight[k][i], 0));
      },
    };
  }

  const LOSSES = {
    quadratic,
    cross_entropy: crossEntropy,
    formula: ({ text }, n) => SBN.formula.parse(text, SBN.net.namesOf(n)),
  };

  /** L at every state, and unless only values are asked for its slopes, flat (n, 2^n). */
  function tables(loss, n, values, estimator) {
    const [states, size] = [SBN.exact.allStates(n, values), 1 << n];
    const { value, slopes } = LOSSES[loss.kind](loss, n);
    const [table, flat] = [new Float64Array(size), new Float64Array(n * size)];
    for (let r = 0; r < size; r++) {
      const x = Array.from(states.subarray(r * n, (r + 1) * n));
      table[r] = finite(value(x), "loss must be finite", x);
      if (estimator.kind === "loss based") continue;
      slopes(x).forEach((slope, i) => {
        const what = `loss must have a finite slope in x${i + 1} for ${estimator.label}`;
        flat[i * size + r] = finite(slope, what, x);
      });
    }
    return { table, slopes: flat };
  }

  function finite(number, what, x) {
    if (Number.isFinite(number)) return number;
    throw new RangeError(`${what} at every state, got ${number} at (${x.join(", ")})`);
  }

  /** {value, slopes} of a checked model's loss, functions of the states of its last layer. */
  function lossOf({ loss, layers }) {
    return LOSSES[loss.kind](loss, layers[layers.length - 1].bias.length);
  }

  /** {value, gradient, laws, levels, table, slopes}: what does not depend on the estimator. */
  function exact(model) {
    const [wrong] = SBN.net.check(model);
    if (wrong) throw new RangeError(wrong);
    const values = SBN.net.valuesOf(model);
    const n = model.layers[model.layers.length - 1].bias.length;
    const { name } = SBN.estimators.asObject(model.estimator);
    const { table, slopes } = tables(model.loss, n, values, SBN.estimators.ESTIMATORS[name]);
    const noise = SBN.noise.make(model.noise, model.scale);
    const { levels, laws } = SBN.exact.forward(model.layers, model.input, noise, values);
    const value = SBN.exact.mean(laws[laws.length - 1], table);
    return { value, gradient: SBN.exact.gradient(levels, table), laws, levels, table, slopes };
  }

  /**
   * {value, gradient, mean, variance, laws} of a model, see SBN.net: E L, its gradient, mean and
   * variance of the estimator, each [{weight, bias}] in the shape of the layers, and the law of
   * each layer's states. Throws a RangeError that says what is wrong with the model.
   *
   * With the coding "bits" the states are 0 and 1, also for the loss. The factor of an estimator is
   * then half of that for signs, so that it estimates the derivative of a bit: f(a) for
   * straight-through.
   */
  function compute(model) {
    const { value, gradient, laws, levels, table, slopes } = exact(model);
    const given = SBN.estimators.asObject(model.estimator);
    const answer = { value, gradient, laws };
    if (SBN.estimators.ESTIMATORS[given.name].kind === "loss based") {
      const baseline = given.baseline === "mean" ? value : given.baseline;
      return { ...answer, ...SBN.exact.scoreMoments(levels, table, baseline, gradient) };
    }
    const [low, high] = SBN.net.valuesOf(model);
    const factor = SBN.estimators.factorOf(given);
    const scaled = (a, f, p, q) => ((high - low) / 2) * factor(a, f, p, q);
    return { ...answer, ...SBN.exact.moments(levels, slopes, scaled) };
  }

  SBN.lab = { compute, exact, lossOf };
})();
