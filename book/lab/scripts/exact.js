// Exact sums over the states of the layers: laws, gradient, and moments of estimates, as in
// sbnlib.exact.
//
// All of it is one kind of sum. Given a state below, the units of a layer are independent, and
// the mean of a table over the layer's states is
//     sum_x table(x) prod_i w_i(x_i),     w_i = (P(x_i = lower), P(x_i = upper)).
// Put (-f, f) in place of one pair, and the sum is the derivative of the mean in a_i; put the
// pair times a factor c(x_i) there, and it is the mean of c(x_i) table(x).
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  /** All states of n units, a flat (2^n, n): row r has the upper value where a digit of r is 1. */
  function allStates(n, [lower, upper]) {
    const states = new Float64Array(n << n);
    for (let r = 0; r < 1 << n; r++) {
      for (let i = 0; i < n; i++) states[r * n + i] = (r >> (n - 1 - i)) & 1 ? upper : lower;
    }
    return states;
  }

  /** Where the pair i <= j stands among the pairs of n units. */
  const pairIndex = (i, j, n) => i * n - (i * (i - 1)) / 2 + j - i;

  /** The products of pairs over some neighbouring units, once for each way to replace pairs. */
  class Half {
    constructor(from, to, order) {
      [this.from, this.to] = [from, to];
      this.ways = [[-1, -1]]; // i <= j: the units whose pairs are replaced, -1 for none
      for (let j = from; j < to; j++) {
        this.ways.push([-1, j]);
        for (let i = from; order === 2 && i <= j; i++) this.ways.push([i, j]);
      }
      this.vectors = [];
      for (const [i, j] of this.ways) this.vectors[key(i, j)] = new Float64Array(1 << (to - from));
    }

    /** Work out every product; `pairs` is [replaced 0, 1 or 2 times][unit][lower, upper]. */
    set(pairs, units) {
      for (const [i, j] of this.ways) {
        const vector = this.vectors[key(i, j)];
        vector[0] = 1;
        for (let unit = this.from, size = 1; unit < this.to; unit++, size *= 2) {
          const at = 2 * (((unit === i) + (unit === j)) * units + unit);
          for (let r = size - 1; r >= 0; r--) {
            vector[2 * r + 1] = vector[r] * pairs[at + 1];
            vector[2 * r] = vector[r] * pairs[at];
          }
        }
      }
    }
  }

  const key = (i, j) => 9 * (i + 1) + j + 1;

  /** The law of a layer's states given one state below, as the outer product of two halves. */
  class Product {
    constructor(units, order = 1) {
      this.units = units;
      this.middle = units >> 1;
      this.pairs = new Float64Array(6 * units);
      this.high = new Half(0, this.middle, order);
      this.low = new Half(this.middle, units, order);
    }

    /**
     * Take the pairs P(x_i | a_i) of one row of a level. `replacement(level, at)` is what stands in
     * place of a pair: [lower, upper] where it is replaced once, and twice.
     */
    set(level, row, replacement) {
      const { units, pairs } = this;
      for (let i = 0; i < units; i++) {
        const at = row * units + i;
        const given = replacement ? replacement(level, at) : [0, 0, 0, 0];
        [pairs[2 * i], pairs[2 * i + 1]] = [level.lower[at], level.upper[at]];
        for (let t = 0; t < 4; t++) pairs[2 * ((1 + (t >> 1)) * units + i) + (t & 1)] = given[t];
      }
      this.high.set(pairs, units);
      this.low.set(pairs, units);
    }

    /** The sum over the states of the table that begins at `offset`, pairs i <= j replaced. */
    sum(table, offset, i = -1, j = -1) {
      const [m, u, v] = [this.middle, this.high.vectors, this.low.vectors];
      if (j < m) return bilinear(table, offset, u[key(i, j)], v[key(-1, -1)]);
      if (i < m) return bilinear(table, offset, u[key(-1, i)], v[key(-1, j)]);
      return bilinear(table, offset, u[key(-1, -1)], v[key(i, j)]);
    }

    /** Add `weight` times the law itself to `law`. */
    addTo(law, weight) {
      const [u, v] = [this.high, this.low].map((half) => half.vectors[key(-1, -1)]);
      for (let r = 0, at = 0; r < u.length; r++) {
        for (let q = 0; q < v.length; q++) law[at++] += weight * u[r] * v[q];
      }
    }
  }

  function bilinear(table, offset, u, v) {
    let total = 0;
    for (let r = 0, at = offset; r < u.length; r++) {
      let part = 0;
      for (let q = 0; q < v.length; q++) part += table[at++] * v[q];
      total += u[r] * part;
    }
    return total;
  }

  /**
   * The layers with all that a sum needs: for each state below (for the first layer the input) its
   * probability, the pre-activations, P(x_i = lower), P(x_i = upper) and f(a_i).
   *
   * `noise` is one of SBN.noise, `values` the two states, [-1, 1] or [0, 1].
   */
  function forward(layers, input, noise, values) {
    let [below, law] = [Float64Array.from(input), Float64Array.of(1)];
    const levels = [];
    for (const { weight, bias } of layers) {
      const level = makeLevel(weight, bias, below, law, noise);
      levels.push(level);
      [below, law] = [allStates(level.units, values), nextLaw(level)];
    }
    return { levels, laws: [...levels.slice(1).map((level) => level.law), law] };
  }

  function makeLevel(weight, bias, below, law, noise) {
    const [units, width, rows] = [bias.length, weight[0].length, law.length];
    const a = new Float64Array(rows * units);
    for (let s = 0; s < rows; s++) {
      for (let i = 0; i < units; i++) {
        let sum = bias[i];
        for (let j = 0; j < width; j++) sum += weight[i][j] * below[s * width + j];
        a[s * units + i] = sum;
      }
    }
    const tail = a.map(noise.tail);
    const lower = a.map((v, at) => (v > 0 ? tail[at] : 1 - tail[at]));
    const upper = a.map((v, at) => (v > 0 ? 1 - tail[at] : tail[at]));
    return { units, width, rows, weight, below, law, a, lower, upper, f: a.map(noise.pdf) };
  }

  function nextLaw(level) {
    const [law, product] = [new Float64Array(1 << level.units), new Product(level.units)];
    for (let s = 0; s < level.rows; s++) {
      product.set(level, s);
      product.addTo(law, level.law[s]);
    }
    return law;
  }

  /** The mean over a law of a table of the same states. */
  function mean(law, table) {
    return law.reduce((sum, p, r) => sum + p * table[r], 0);
  }

  /** sum_s P(s) d_i(s) s_j^power and sum_s P(s) d_i(s), in the shape of the layer. */
  function ofParameters({ units, width, rows, law, below }, d, power) {
    const bias = new Array(units).fill(0);
    const weight = bias.map(() => new Array(width).fill(0));
    for (let s = 0; s < rows; s++) {
      for (let i = 0; i < units; i++) {
        const part = law[s] * d[s * units + i];
        bias[i] += part;
        for (let j = 0; j < width; j++) weight[i][j] += part * below[s * width + j] ** power;
      }
    }
    return { weight, bias };
  }

  /** Backward over V_k(x) = E[table | x_k = x]: in each layer the sums with one pair replaced. */
  function backward(levels, table, replacement, power) {
    const out = [];
    for (const level of [...levels].reverse()) {
      const { units, rows } = level;
      const [product, next] = [new Product(units), new Float64Array(rows)];
      const d = new Float64Array(rows * units);
      for (let s = 0; s < rows; s++) {
        product.set(level, s, replacement);
        next[s] = product.sum(table, 0);
        for (let i = 0; i < units; i++) d[s * units + i] = product.sum(table, 0, -1, i);
      }
      out.unshift(ofParameters(level, d, power));
      table = next;
    }
    return out;
  }

  /** The gradient of the mean of a table of the last layer's states, for each layer. */
  function gradient(levels, table) {
    return backward(levels, table, ({ f }, at) => [-f[at], f[at], 0, 0], 1);
  }

  /**
   * Mean and variance of (L(x) - baseline) x_i f(a_i)/P(x_i), REINFORCE with a constant. The mean
   * is the gradient, which is handed in; the square has the mean of (L - baseline)^2 f^2/P(x_i)^2.
   */
  function scoreMoments(levels, table, baseline, gradient) {
    const squares = table.map((value) => (value - baseline) ** 2);
    const ratio = (f, p) => (p > 0 ? (f / p) * f : 0);
    const second = backward(
      levels,
      squares,
      ({ f, lower, upper }, at) => [ratio(f[at], lower[at]), ratio(f[at], upper[at]), 0, 0],
      2,
    );
    return withVariance(gradient, second);
  }

  /**
   * Mean and variance of a chain-rule estimator: with g_k the estimated derivative in x_k,
   *     m_k(x) = E[g_k | x_k = x],   M_k(x) = E[g_k g_k' | x_k = x],
   *     m_{k-1} = W' E[c o m_k],     M_{k-1} = W' E[(c c') o M_k] W.
   *
   * `slopes` is m_K, flat (n, 2^n); `factor(a, f, P(x), P(-x))` is c. Of M, which is symmetric, the
   * pairs i <= j are kept, one table each.
   */
  function moments(levels, slopes, factor) {
    const [means, seconds] = [[], []];
    let [first, second] = [slopes, outer(slopes, levels[levels.length - 1].units)];
    for (const level of [...levels].reverse()) {
      const [d1, d2] = atPreActivations(level, first, second, factor);
      const { units, rows } = level;
      const squares = new Float64Array(rows * units);
      for (let s = 0; s < rows; s++) {
        for (let i = 0; i < units; i++) squares[s * units + i] = d2[pairIndex(i, i, units)][s];
      }
      means.unshift(ofParameters(level, d1, 1));
      seconds.unshift(ofParameters(level, squares, 2));
      [first, second] = throughWeights(level, d1, d2);
    }
    return withVariance(means, seconds);
  }

  function outer(slopes, n) {
    const [size, second] = [1 << n, new Float64Array(((n * (n + 1)) / 2) << n)];
    for (let i = 0, at = 0; i < n; i++) {
      for (let j = i; j < n; j++) {
        for (let r = 0; r < size; r++) second[at++] = slopes[i * size + r] * slopes[j * size + r];
      }
    }
    return second;
  }

  /** E[c_i m_i | s], flat (rows, n), and for each pair E[c_i c_j M_ij | s] of all rows. */
  function atPreActivations(level, first, second, factor) {
    const { units, rows } = level;
    const [size, product] = [1 << units, new Product(units, 2)];
    const d1 = new Float64Array(rows * units);
    const d2 = Array.from({ length: (units * (units + 1)) / 2 }, () => new Float64Array(rows));
    const replacement = ({ a, f, lower, upper }, at) => {
      const c = factor(a[at], f[at], lower[at], upper[at]);
      const d = factor(a[at], f[at], upper[at], lower[at]);
      return [c * lower[at], d * upper[at], c * c * lower[at], d * d * upper[at]];
    };
    for (let s = 0; s < rows; s++) {
      product.set(level, s, replacement);
      for (let i = 0, pair = 0; i < units; i++) {
        d1[s * units + i] = product.sum(first, i * size, -1, i);
        for (let j = i; j < units; j++, pair++) {
          d2[pair][s] = product.sum(second, pair * size, i, j);
        }
      }
    }
    return [d1, d2];
  }

  /** W'd and W'DW for each row: the moments of the derivative in the states below. */
  function throughWeights({ units, width, rows, weight }, d1, d2) {
    const first = new Float64Array(width * rows);
    const second = new Float64Array(((width * (width + 1)) / 2) * rows);
    for (let s = 0; s < rows; s++) {
      for (let j = 0, pair = 0; j < width; j++) {
        const column = weight.map((row, i) => {
          let sum = 0; // (D W)_ij
          for (let l = 0; l < units; l++) {
            sum += d2[i < l ? pairIndex(i, l, units) : pairIndex(l, i, units)][s] * weight[l][j];
          }
          first[j * rows + s] += row[j] * d1[s * units + i];
          return sum;
        });
        for (let l = j; l < width; l++, pair++) {
          for (let i = 0; i < units; i++) second[pair * rows + s] += weight[i][l] * column[i];
        }
      }
    }
    return [first, second];
  }

  /** E g^2 - (E g)^2, which rounding alone can make negative. */
  function withVariance(means, seconds) {
    const minus = (m, q) => Math.max(0, q - m * m);
    const variance = means.map(({ weight, bias }, k) => ({
      weight: weight.map((row, i) => row.map((m, j) => minus(m, seconds[k].weight[i][j]))),
      bias: bias.map((m, i) => minus(m, seconds[k].bias[i])),
    }));
    return { mean: means, variance };
  }

  SBN.exact = { allStates, forward, mean, gradient, moments, scoreMoments };
})();
