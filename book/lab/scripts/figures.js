// What the live figures of the chapters draw, at every position of their sliders: for each figure
//     {sliders: {name: [numbers]}, lines: (values) => ({line: {x, y, width?}})}
// with the points of each line that moves, in data. The lines have the names that their gid has in
// the chapter's code.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { make } = SBN.noise;
  const { factorOf } = SBN.estimators;

  // ---- numbers -------------------------------------------------------------------------------

  /** As many numbers, evenly spaced, the ends included. */
  function even(from, to, count) {
    return Array.from({ length: count }, (_, k) => from + ((to - from) * k) / (count - 1));
  }

  /** Decimal numbers from one to another, such as 0, 0.05, 0.1, ... */
  function by(step, from, to) {
    const count = Math.round((to - from) / step);
    return Array.from({ length: count + 1 }, (_, k) => Number((from + k * step).toFixed(6)));
  }

  /** Whole numbers up to `most`, eight for each doubling where there are so many. */
  function counts(most) {
    const all = by(1 / 8, 0, Math.log2(most)).map((power) => Math.round(2 ** power));
    return [...new Set([...all.filter((v) => v < most), most])];
  }

  const sum = (numbers) => numbers.reduce((total, v) => total + v, 0);
  const curve = (x, f) => ({ x, y: x.map(f) });
  const point = (x, y) => ({ x: [x], y: [y] });

  // ---- one unit ------------------------------------------------------------------------------

  const LOGISTIC = make("logistic");
  const SIGNS = [-1, 1];

  /** For each state of a unit [its probability, the estimate c(x) L'(x)]. */
  function estimates(estimator, slope, a, noise = LOGISTIC) {
    const factor = factorOf(estimator);
    return SIGNS.map((x) => {
      const [p, q] = [noise.cdf(x * a), noise.cdf(-x * a)];
      return [p, factor(a, noise.pdf(a), p, q) * slope(x)];
    });
  }

  const meanOf = (pairs) => sum(pairs.map(([p, g]) => p * g));
  const deviationOf = ([[p, g], [q, h]]) => Math.sqrt(p * q) * Math.abs(g - h);

  /** A piece of the tangent at x, as thick as the state is probable. */
  function tangent(x, value, slope, share) {
    const s = [-0.3, 0.3];
    return { x: s.map((v) => x + v), y: s.map((v) => value + slope * v), width: 1 + 5 * share };
  }

  // ---- chapter 3: errors of four estimators on XOR -------------------------------------------

  const INPUTS = SIGNS.flatMap((v1) => SIGNS.map((v2) => [v1, v2]));
  const XOR = [
    // prettier-ignore
    { weight: [[2, 2], [-2, -2], [2, -2]], bias: [-2, -2, -2] },
    // prettier-ignore
    { weight: [[2, 2, -2], [2, 2, 0]], bias: [0, 2] },
  ];
  const CANDIDATES = {
    ST: "straight_through",
    ZGR: "zgr",
    identity: "identity",
    score: { name: "reinforce", baseline: 0 },
  };
  const FLOOR = 1e-3;

  /** All numbers of a gradient, in a row. */
  const flat = (layers) => layers.flatMap(({ weight, bias }) => [...weight.flat(), ...bias]);

  /** Sums over rows, entry by entry. */
  const total = (rows) => rows[0].map((_, i) => sum(rows.map((row) => row[i])));

  /** [squared bias, variance] of one gradient of the mean loss of all inputs, over |g|^2. */
  function xorError(estimator, scale) {
    const found = INPUTS.map((input) => {
      // softplus(-y (x1 + x2)) is the cross-entropy of the scores 0 and y (x1 + x2)
      const y = input[0] * input[1];
      const head = { weight: [Array(2).fill(0), Array(2).fill(y)], bias: [0, 0] };
      const loss = { kind: "cross_entropy", ...head, target: 1 };
      return SBN.lab.compute({ layers: XOR, input, noise: "logistic", scale, loss, estimator });
    });
    const all = (key) => total(found.map((one) => flat(one[key])));
    const [mean, g] = [all("mean"), all("gradient")];
    const size = sum(g.map((v) => v * v));
    return [sum(mean.map((m, i) => (m - g[i]) ** 2)) / size, sum(all("variance")) / size];
  }

  const seen = new Map();

  /** The errors at one scale, worked out once while the other slider moves. */
  function xorErrors(scale) {
    if (!seen.has(scale)) {
      const entries = Object.entries(CANDIDATES);
      seen.set(scale, entries.map(([name, estimator]) => [name, xorError(estimator, scale)]));
    }
    return seen.get(scale);
  }

  const crossing = {
    sliders: { B: counts(4000), scale: by(0.02, 0.4, 2.2) },
    lines({ B, scale }) {
      const [here, powers] = [Math.log2(B), by(0.5, 0, 12)];
      const out = { here: { x: [here, here], y: [0, 1] } };
      xorErrors(scale).forEach(([name, [bias2, variance]], row) => {
        const ends = [Math.max(bias2, FLOOR), variance / B].map(Math.log10);
        out[`${name}-curve`] = curve(powers, (k) => Math.log10(bias2 + variance / 2 ** k));
        out[`${name}-error`] = point(here, Math.log10(bias2 + variance / B));
        out[`${name}-both`] = { x: ends, y: [-row, -row] };
        out[`${name}-variance`] = point(ends[1], -row);
        if (name !== "score") out[`${name}-bias`] = point(ends[0], -row);
      });
      return out;
    },
  };

  // ---- chapter 4: five baselines -------------------------------------------------------------

  const UNITS = 4;

  /** Of equal units with a linear loss of mean 0: for each state [P, loss, score of the first]. */
  function equalUnits(a) {
    const layer = { weight: Array(UNITS).fill([a]), bias: Array(UNITS).fill(0) };
    const states = SBN.exact.allStates(UNITS, SIGNS);
    const law = SBN.exact.forward([layer], [1], LOGISTIC, SIGNS).laws[0];
    const mu = 2 * LOGISTIC.cdf(a) - 1;
    return Array.from(law, (p, r) => {
      const x = states.subarray(r * UNITS, (r + 1) * UNITS);
      return [p, (sum([...x]) - UNITS * mu) / 2, (x[0] * LOGISTIC.pdf(a)) / LOGISTIC.cdf(x[0] * a)];
    });
  }

  /** Mean squared errors over |g|^2 with M samples, `mean` added to the loss; log10. */
  function baselineErrors(rows, mean, M) {
    const average = (f) => rows.reduce((out, [p, loss, s]) => out + p * f(loss + mean, s), 0);
    // all units are alike, so the first stands for all
    const g = average((loss, s) => loss * s);
    const fisher = average((_, s) => s * s);
    const spread = average((loss) => (loss - mean) ** 2);
    const best = average((loss, s) => loss * s * s) / fisher;
    const error = (k) => (average((loss, s) => ((loss - k) * s) ** 2) - g * g) / M;
    const loo = error(mean) + (fisher * spread + g * g) / (M * (M - 1));
    const table = {
      nothing: error(0),
      "leave-one-out": loo,
      "mean-loss": error(mean),
      "mean-of-all": (1 - 1 / M) ** 2 * loo + (g / M) ** 2,
      "best-constants": error(best),
    };
    return Object.entries(table).map(([name, value]) => [name, Math.log10(value / (g * g))]);
  }

  const baselines = {
    sliders: { mean: by(0.05, -0.75, 1.5), a: by(0.05, 0, 2.25) },
    lines({ mean, a }) {
      const [powers, means] = [by(1, 1, 7), even(-1.5, 2.5, 33)];
      const out = { mean: { x: [mean, mean], y: [0, 1] } };
      const rows = equalUnits(a);
      const bySize = powers.map((k) => baselineErrors(rows, mean, 2 ** k));
      const byMean = means.map((m) => baselineErrors(rows, m, 4));
      bySize[0].forEach(([name], i) => {
        out[name] = { x: powers, y: bySize.map((row) => row[i][1]) };
        out[`by-mean-${name}`] = { x: means, y: byMean.map((row) => row[i][1]) };
      });
      return out;
    },
  };

  // ---- chapter 6: the extension of a loss ----------------------------------------------------

  const extension = {
    sliders: { A: by(0.02, -2, 2), a: by(0.05, -3, 3) },
    lines({ A, a }) {
      const b = 0.5;
      const slope = (x) => b + A * x;
      const mean = (at) => meanOf(estimates("straight_through", slope, at));
      const exact = 2 * LOGISTIC.pdf(a) * b;
      const out = {
        loss: curve(even(-1.25, 1.25, 41), (t) => b * t + (A * (t * t - 1)) / 2),
        mean: curve(even(-4, 4, 49), mean),
        bias: { x: [a, a], y: [exact, mean(a)] },
        "exact-here": point(a, exact),
        "mean-here": point(a, mean(a)),
      };
      for (const x of SIGNS) out[`tangent${x}`] = tangent(x, b * x, slope(x), LOGISTIC.cdf(x * a));
      return out;
    },
  };

  // ---- chapter 7: what a flip does -----------------------------------------------------------

  const SHARE = { "-1": 0.33, 1: 0.67 }; // of the states of the unit below

  const flip = {
    sliders: { w: by(0.05, 0.5, 5), b: by(0.05, -2.5, 2.5) },
    lines({ w, b }) {
      const mean = (x) => 2 * LOGISTIC.cdf(b + w * x) - 1;
      const out = { mean: curve(even(-1.3, 1.3, 53), mean), chord: curve(SIGNS, mean) };
      for (const x of SIGNS) {
        const layer = { weight: [[w], [-w / 2]], bias: [b, 0.5] };
        const law = [...SBN.exact.forward([layer], [x], LOGISTIC, SIGNS).laws[0]];
        const slope = 2 * w * LOGISTIC.pdf(b + w * x);
        out[`law${x}`] = { x: law.map((_, k) => k + 0.09 * x), y: law };
        out[`tangent${x}`] = tangent(x, mean(x), slope, SHARE[x]);
        out[`end${x}`] = point(x, mean(x));
      }
      return out;
    },
  };

  // ---- chapter 10: the best member of the line -----------------------------------------------

  const error = {
    sliders: { M: counts(1024), A: by(0.02, -1, 1) },
    lines({ M, A }) {
      const [line, a] = [even(-0.5, 1.5, 81), LOGISTIC.icdf(0.1)]; // a unit of mean -0.8
      const g = 2 * LOGISTIC.pdf(a);
      const found = line.map((s) => {
        const pairs = estimates({ name: "chain_rule", s }, (x) => 1 + A * x, a);
        return [Math.abs(meanOf(pairs) / g - 1), deviationOf(pairs) / g / Math.sqrt(M)];
      });
      const rms = found.map(([bias, deviation]) => Math.hypot(bias, deviation));
      const mark = (k) => point(line[k], rms[k]);
      const least = (1 + 1e-12) * Math.min(...rms); // of two that are equal the first
      return {
        bias: { x: line, y: found.map(([bias]) => bias) },
        deviation: { x: line, y: found.map(([, deviation]) => deviation) },
        total: { x: line, y: rms },
        zgr: mark(line.indexOf(0)),
        st: mark(line.indexOf(1)),
        least: mark(rms.findIndex((v) => v <= least)),
      };
    },
  };

  SBN.figures = { crossing, baselines, extension, flip, error };
})();
