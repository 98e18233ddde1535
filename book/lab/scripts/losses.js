// The losses of the lab's page, all as formulas that a reader could have typed.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  const sum = (terms) => terms.join(" + ").replaceAll("+ -", "- ") || "0";
  const times = (number, what) => (number === 1 ? what : number === -1 ? `-${what}`
    : `${number}*${what}`);

  /** Formulas for n states: kind -> [words, formula]. */
  const KINDS = {
    distance: ["squared distance to a target", (x) =>
      `(${sum(x.map((v, i) => `(${v} ${i % 2 ? "+" : "-"} 1)^2`))})/2`],
    coupled: ["quadratic, neighbours coupled", (x) =>
      sum([`(${sum(x.map((v) => `${v}^2`))})/2`, ...x.slice(1).map((v, i) => `${x[i]}*${v}`)])],
    product: ["product of all states", (x) => x.join("*")],
    exponential: ["exponential of the mean", (x) => `exp((${sum(x)})/${x.length})`],
    classes: ["cross-entropy of two classes", (x) => `log(1 + exp(-2*(${sum(x)})))`],
  };

  /** The formula of a kind for n states. */
  const formulaOf = (kind, n) => KINDS[kind][1](SBN.net.namesOf(n));

  /** Any loss of a model as a formula. */
  function textOf(loss, n) {
    const x = SBN.net.namesOf(n);
    if (loss.kind === "formula") return loss.text;
    if (loss.kind === "quadratic") {
      const own = loss.A.flatMap((row, i) => row.flatMap((value, j) => {
        const both = i === j ? value / 2 : (value + loss.A[j][i]) / 2;
        return j < i || !both ? [] : [times(both, i === j ? `${x[i]}^2` : `${x[i]}*${x[j]}`)];
      }));
      return sum([...own, ...loss.c.flatMap((value, i) => (value ? [times(value, x[i])] : []))]);
    }
    const scores = loss.weight.map((row, k) => sum([
      ...row.flatMap((w, i) => (w ? [times(w, x[i])] : [])),
      ...(loss.bias[k] ? [String(loss.bias[k])] : [])]));
    return `log(${sum(scores.map((z) => (z === "0" ? "1" : `exp(${z})`)))})` +
      (scores[loss.target] === "0" ? "" : ` - (${scores[loss.target]})`);
  }

  SBN.losses = { KINDS, formulaOf, textOf };
})();
