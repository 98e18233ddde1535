// Injected noise: a symmetric law with distribution function F and density f, as in sbnlib.noise.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const ROOT_2PI = Math.sqrt(2 * Math.PI);

  /** exp(-t^2/2). The square is split: its rounding error would be a relative one of the result. */
  function bell(t) {
    const near = Math.round(16 * t) / 16; // its square is exact
    return t > 40 ? 0 : Math.exp((-near * near) / 2) * Math.exp((-(t - near) * (t + near)) / 2);
  }

  /**
   * The normal F(-t) for t >= 0, which is erfc(t/sqrt 2)/2, to 1e-15 of itself.
   *
   * Near 0 it is 1/2 - phi(t) (t + t^3/3 + t^5/(3*5) + ...), with phi the density: by parts, the
   * integral of u^(2k) phi from 0 to t is phi t^(2k+1)/(2k+1) and that of u^(2k+2) phi/(2k+1). All
   * terms are positive. Further out J_k, the integral of (u-t)^k phi from t on, obeys
   * J_(k+1) = k J_(k-1) - t J_k, again by parts, so that phi/J_0 = t + J_1/J_0 is
   * t + 1/(t + 2/(t + 3/(t + ...))). It is worked out from inside, where r = t + k/r; how many
   * terms it takes was found by trying.
   */
  function normalTail(t) {
    if (t < 0.75) {
      let [sum, term] = [t, t];
      for (let k = 3; term > 1e-17 * sum; k += 2) sum += term *= (t * t) / k;
      return 0.5 - (bell(t) / ROOT_2PI) * sum;
    }
    const steps = Math.ceil(20 + 230 / (t * t));
    let r = (t + Math.sqrt(t * t + 4 * steps)) / 2;
    for (let k = steps; k > 0; k--) r = t + k / r;
    return bell(t) / ROOT_2PI / r;
  }

  /**
   * The t with normalTail(t) = p, for 0 < p <= 1/2, by Newton's method for log F(-t) = log p. The
   * left side is concave, and the start is beyond the root, as F(-t) <= exp(-t^2/2)/2: so the
   * steps come down to it.
   */
  function normalQuantile(p) {
    let t = Math.sqrt(-2 * Math.log(2 * p));
    for (let step = 1, k = 0; k < 40 && step > 1e-16 * t; k++) {
      const tail = normalTail(t);
      step = (Math.log(p / tail) * tail * ROOT_2PI) / bell(t);
      t -= step;
    }
    return t;
  }

  // At scale 1, for t >= 0: the tail F(-t), the density f(t), and the t with F(-t) = p <= 1/2.
  const LAWS = {
    logistic: {
      label: "Logistic",
      halfWidth: Infinity,
      tail: (t) => Math.exp(-t) / (1 + Math.exp(-t)),
      pdf: (t) => Math.exp(-t) / (1 + Math.exp(-t)) ** 2,
      quantile: (p) => Math.log1p((1 - 2 * p) / p),
    },
    uniform: {
      label: "Uniform",
      halfWidth: 1,
      tail: (t) => Math.max(0, 1 - t) / 2,
      pdf: (t) => (t < 1 ? 0.5 : 0),
      quantile: (p) => 1 - 2 * p,
    },
    triangular: {
      label: "Triangular",
      halfWidth: 1,
      tail: (t) => Math.max(0, 1 - t) ** 2 / 2,
      pdf: (t) => Math.max(0, 1 - t),
      quantile: (p) => 1 - Math.sqrt(2 * p),
    },
    gaussian: {
      label: "Gaussian",
      halfWidth: Infinity,
      tail: normalTail,
      pdf: (t) => bell(t) / ROOT_2PI,
      quantile: normalQuantile,
    },
    cauchy: {
      label: "Cauchy",
      halfWidth: Infinity,
      tail: (t) => Math.atan2(1, t) / Math.PI,
      pdf: (t) => 1 / (Math.PI * (1 + t * t)),
      quantile: (p) => 1 / Math.tan(Math.PI * p),
    },
    fastsigmoid: {
      label: "FastSigmoid",
      halfWidth: Infinity,
      tail: (t) => 0.5 / (1 + t),
      pdf: (t) => 0.5 / (1 + t) ** 2,
      quantile: (p) => 0.5 / p - 1,
    },
  };

  /** The law called `name`, capitals aside, at `scale`: {name, label, scale, support, cdf, ...}. */
  function make(name, scale = 1) {
    const law = LAWS[String(name).toLowerCase()];
    if (!law) throw new RangeError(`noise must be one of ${NAMES.join(", ")}, got ${name}`);
    if (!(scale > 0 && scale < Infinity)) {
      throw new RangeError(`scale must be a number above 0, got ${scale}`);
    }
    const tail = (a) => law.tail(Math.abs(a) / scale);
    const lower = (p) => -scale * law.quantile(p);
    return {
      name: String(name).toLowerCase(),
      label: law.label,
      scale,
      support: [-scale * law.halfWidth, scale * law.halfWidth],
      /** F(-|a|), the probability of the rarer state. */
      tail,
      /** F(a) = P(Z < a); its lower tail keeps its relative accuracy. */
      cdf: (a) => (a > 0 ? 1 - tail(a) : tail(a)),
      /** f(a); 0 at the ends of a bounded support. */
      pdf: (a) => law.pdf(Math.abs(a) / scale) / scale,
      /** F^-1(p), which makes noise of uniform numbers; NaN for p outside [0, 1]. */
      icdf: (p) => (p === 0.5 ? 0 : p < 0.5 ? lower(p) : -lower(1 - p)),
    };
  }

  const NAMES = Object.keys(LAWS);
  SBN.noise = { NAMES, LAWS, make, normalTail };
})();
