// Estimators of the gradient whose moments are sums over states, as in sbnlib.registry.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  // c(a, x) for signs, as functions of f = f(a), p = P(x), q = P(-x), the parameter, and a.
  const straightThrough = (f) => 2 * f;
  const zgr = (f, p) => f / p;
  const darn = (f, p, q) => 2 * (f / p) * q;
  const line = (f, p, q, s) => (1 + s) * f + (1 - s) * (f / p) * q;
  const shrinkage = (f, p, q, omega) => (2 * f * (1 + 2 * omega * q)) / (1 + 4 * omega * p * q);
  const identity = () => 1;
  const hardtanh = (f, p, q, _, a) => (Math.abs(a) < 1 ? 1 : 0);

  const TABLE = [
    ["straight_through", "ST", "chain rule", 6, "#0072B2", straightThrough],
    ["zgr", "ZGR", "chain rule", 10, "#D55E00", zgr],
    ["darn", "DARN", "chain rule", 10, "#CC79A7", darn],
    ["chain_rule", "the line", "chain rule", 10, "#56B4E9", line],
    ["shrinkage", "shrunk ZGR", "chain rule", 20, "#7570B3", shrinkage],
    ["identity", "identity", "chain rule", 8, "#8C8C8C", identity],
    ["hardtanh", "hardtanh proxy", "chain rule", 8, "#B8860B", hardtanh],
    ["reinforce", "REINFORCE", "loss based", 4, "#2E9BD6", null],
  ];

  /** name -> {name, label, kind, chapter, colour, factor, parameter, start}, in order. */
  const ESTIMATORS = {};
  const PARAMETERS = {
    chain_rule: ["s", 0.5],
    shrinkage: ["omega", 1],
    reinforce: ["baseline", 0],
  };
  for (const [name, label, kind, chapter, colour, factor] of TABLE) {
    const [parameter, start] = PARAMETERS[name] || [null, null];
    ESTIMATORS[name] = { name, label, kind, chapter, colour, factor, parameter, start };
  }

  /** "zgr" or {name: "chain_rule", s: 0.5}, always as the second. */
  function asObject(estimator) {
    return typeof estimator === "string" ? { name: estimator } : estimator;
  }

  /** c(a, x) of a chain-rule estimator, as a function of (a, f, P(x), P(-x)); 0 where P(x) is. */
  function factorOf(estimator) {
    const given = asObject(estimator);
    const { factor, parameter } = ESTIMATORS[given.name];
    const value = parameter ? given[parameter] : 0;
    return (a, f, p, q) => (p > 0 ? factor(f, p, q, value, a) : 0);
  }

  SBN.estimators = { ESTIMATORS, NAMES: Object.keys(ESTIMATORS), asObject, factorOf };
})();
