// Estimators of the gradient whose moments are sums over states, as in sbnlib.registry.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  // c(a, x) for signs, given f = f(a), p = P(x) and q = P(-x), neither of them by subtraction.
  const line = (s, f, p, q) => (1 + s) * f + (1 - s) * (f / p) * q;
  const shrunk = (omega, f, p, q) => (2 * f * (1 + 2 * omega * q)) / (1 + 4 * omega * p * q);
  const TABLE = [
    ["straight_through", "ST", "chain rule", 6, "#0072B2", ({ f }) => 2 * f],
    ["zgr", "ZGR", "chain rule", 10, "#D55E00", ({ f, p }) => f / p],
    ["darn", "DARN", "chain rule", 10, "#CC79A7", ({ f, p, q }) => 2 * (f / p) * q],
    ["chain_rule", "the line", "chain rule", 10, "#56B4E9", ({ s, f, p, q }) => line(s, f, p, q)],
    [
      "shrinkage", "shrunk ZGR", "chain rule", 20, "#7570B3",
      ({ omega, f, p, q }) => shrunk(omega, f, p, q),
    ],
    ["identity", "identity", "chain rule", 8, "#8C8C8C", () => 1],
    ["hardtanh", "hardtanh proxy", "chain rule", 8, "#B8860B", ({ a }) => +(Math.abs(a) < 1)],
    ["reinforce", "REINFORCE", "loss based", 4, "#2E9BD6", null],
  ];

  /** name -> {name, label, kind, chapter, colour, factor, parameter, start}, in order. */
  const ESTIMATORS = {};
  const PARAMETERS = { chain_rule: ["s", 0.5], shrinkage: ["omega", 1], reinforce: ["baseline", 0] };
  for (const [name, label, kind, chapter, colour, factor] of TABLE) {
    const [parameter, start] = PARAMETERS[name] || [null, null];
    ESTIMATORS[name] = { name, label, kind, chapter, colour, factor, parameter, start };
  }

  /** "zgr" or {name: "chain_rule", s: 0.5}, always as the second. */
  function asObject(estimator) {
    return typeof estimator === "string" ? { name: estimator } : estimator;
  }

  /** c(a, x) of a chain-rule estimator, `p` = P(x), `q` = P(-x); 0 where P(x) is. */
  function factor(estimator, a, f, p, q) {
    const given = asObject(estimator);
    return p > 0 ? ESTIMATORS[given.name].factor({ ...given, a, f, p, q }) : 0;
  }

  SBN.estimators = { ESTIMATORS, NAMES: Object.keys(ESTIMATORS), asObject, factor };
})();
