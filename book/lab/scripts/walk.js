// What is drawn by chance: paths through the network, estimates, and walks down the loss.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  /** Uniform numbers on [0, 1) from a seed: the same seed, the same numbers. */
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** One path: of each layer what enters it, its pre-activations and its signs; and the loss. */
  function path(model, uniform) {
    const noise = SBN.noise.make(model.noise, model.scale);
    const values = SBN.net.valuesOf(model);
    let below = model.input;
    const levels = model.layers.map(({ weight, bias }) => {
      const a = weight.map((row, i) => row.reduce((sum, w, j) => sum + w * below[j], bias[i]));
      const signs = a.map((v) => (uniform() < noise.cdf(v) ? 1 : -1));
      const level = { below, a, signs };
      below = signs.map((sign) => values[sign > 0 ? 1 : 0]);
      return level;
    });
    return { levels, last: below, signs: levels.map((level) => level.signs) };
  }

  /** The number of a layer's state among all states of its units. */
  const index = (signs) => signs.reduce((r, sign) => 2 * r + (sign > 0 ? 1 : 0), 0);

  /** One estimate of the gradient, from one path. */
  function estimate(model, uniform, mean) {
    const drawn = path(model, uniform);
    const given = SBN.estimators.asObject(model.estimator);
    const noise = SBN.noise.make(model.noise, model.scale);
    const { kind } = SBN.estimators.ESTIMATORS[given.name];
    const loss = SBN.lab.lossOf(model);
    const half = (SBN.net.valuesOf(model)[1] - SBN.net.valuesOf(model)[0]) / 2;
    if (kind === "loss based") {
      const over = loss.value(drawn.last) - (given.baseline === "mean" ? mean : given.baseline);
      return drawn.levels.map(({ below, a, signs }) => product(a.map((v, i) =>
        (over * signs[i] * noise.pdf(v)) / noise.cdf(signs[i] * v)), below));
    }
    const factor = SBN.estimators.factorOf(given);
    let slopes = loss.slopes(drawn.last);
    return drawn.levels.map((level, k) => ({ ...level, layer: model.layers[k] })).reverse()
      .map(({ below, a, signs, layer }) => {
        const delta = a.map((v, i) => half * slopes[i] * factor(v, noise.pdf(v),
          noise.cdf(signs[i] * v), noise.cdf(-signs[i] * v)));
        slopes = below.map((_, j) => delta.reduce((sum, d, i) => sum + d * layer.weight[i][j], 0));
        return product(delta, below);
      }).reverse();
  }

  /** Gradient of a layer from the derivatives in its pre-activations and what enters it. */
  const product = (delta, below) => ({ weight: delta.map((d) => below.map((v) => d * v)),
    bias: delta });

  /** Mean of several gradients. */
  function average(gradients) {
    const sum = (get) => gradients.reduce((total, g) => total + get(g), 0) / gradients.length;
    return gradients[0].map(({ weight, bias }, k) => ({
      weight: weight.map((row, i) => row.map((_, j) => sum((g) => g[k].weight[i][j]))),
      bias: bias.map((_, i) => sum((g) => g[k].bias[i])),
    }));
  }

  /** The model a step further, against a gradient; numbers stay within the lab's limits. */
  function moved(model, gradient, rate) {
    const most = SBN.net.LIMITS.number;
    const step = (value, g) => Math.max(-most, Math.min(most, value - rate * g));
    return { ...model, layers: model.layers.map(({ weight, bias }, k) => ({
      weight: weight.map((row, i) => row.map((w, j) => step(w, gradient[k].weight[i][j]))),
      bias: bias.map((b, i) => step(b, gradient[k].bias[i])),
    })) };
  }

  /** Shares of the states of each layer that paths have come to. */
  function sampler(seed = 1) {
    const uniform = random(seed);
    let counts = null;
    return {
      total: () => (counts ? counts[0].reduce((a, b) => a + b, 0) : 0),
      counts: (k) => counts && counts[k],
      clear() {
        counts = null;
      },
      /** Draws paths and returns the signs of the last one. */
      draw(model, paths) {
        counts = counts || model.layers.map(({ bias }) => new Float64Array(1 << bias.length));
        let last;
        for (let t = 0; t < paths; t += 1) {
          last = path(model, uniform).signs;
          last.forEach((signs, k) => { counts[k][index(signs)] += 1; });
        }
        return last;
      },
    };
  }

  /** Two walks from a model, by the exact gradient and by the estimator, with their losses. */
  function descent(start, { rate, samples, seed = 1 }) {
    const uniform = random(seed), losses = { exact: [], estimated: [] };
    const at = {}, found = {};
    const come = (which, model) => {
      found[which] = SBN.lab.exact(model);
      at[which] = model;
      losses[which].push(found[which].value);
    };
    const estimated = (model, value) => (samples
      ? average(Array.from({ length: samples }, () => estimate(model, uniform, value)))
      : SBN.lab.compute(model).mean);
    come("exact", start);
    come("estimated", start);
    return {
      losses,
      at,
      step() {
        const { value } = found.estimated;
        come("exact", moved(at.exact, found.exact.gradient, rate));
        come("estimated", moved(at.estimated, estimated(at.estimated, value), rate));
      },
    };
  }

  SBN.walk = { random, path, estimate, sampler, descent, moved };
})();
