// Formulas typed by a reader: a parser of our own, values and derivatives. It reads what
// sbnlib.exercises.Formula reads.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const LONGEST = 500; // characters; also the deepest nesting that a walk meets

  /** What is wrong with a formula: `message` says where and why, `position` counts from 1. */
  class FormulaError extends Error {
    constructor(position, what) {
      super(`at ${position}: ${what}`);
      this.position = position;
    }
  }

  // Each operation: its value, and its derivative in each argument (the value is the last).
  const FUNCTIONS = {
    abs: [Math.abs, (u) => Math.sign(u)],
    cos: [Math.cos, (u) => -Math.sin(u)],
    exp: [(u) => defined(Math.exp(u), u), (u, y) => y],
    log: [(u) => (u > 0 ? Math.log(u) : NaN), (u) => 1 / u],
    sin: [Math.sin, (u) => Math.cos(u)],
    sqrt: [Math.sqrt, (u, y) => 0.5 / y],
    tanh: [Math.tanh, (u, y) => 1 - y * y],
  };
  const OPERATIONS = {
    "+": [(u, v) => u + v, () => 1, () => 1],
    "-": [(u, v) => u - v, () => 1, () => -1],
    "*": [(u, v) => u * v, (u, v) => v, (u) => u],
    "/": [(u, v) => (v ? u / v : NaN), (u, v) => 1 / v, (u, v, y) => -y / v],
    "^": [
      (u, v) => defined(u ** v, u, v),
      (u, v) => (v ? v * u ** (v - 1) : 0),
      (u, v, y) => (u || v < 0 ? y * Math.log(u) : 0),
    ],
    negative: [(u) => -u, () => -1],
  };

  /** NaN in place of an infinite value at finite arguments, such as exp(1000) and 0^-1. */
  function defined(value, ...given) {
    return Number.isFinite(value) || !given.every(Number.isFinite) ? value : NaN;
  }

  // ---- reading -------------------------------------------------------------------------------

  const PIECES = {
    number: /(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?/y,
    name: /[A-Za-z_\u0370-\u03ff][\w\u0370-\u03ff]*/y,
    sign: /\*\*|[^]/uy, // whatever else there is, to be refused by name
  };

  function tokens(text) {
    const found = [];
    for (let at = 0; at < text.length; ) {
      const [kind, end] = /\s/.test(text[at]) ? ["space", at + 1] : pieceAt(text, at);
      const piece = text.slice(at, end);
      const token = { kind, text: piece === "**" ? "^" : piece, position: at + 1 };
      if (kind !== "space") found.push(token);
      at = end;
    }
    return [...found, { kind: "end", text: "the end", position: text.length + 1 }];
  }

  function pieceAt(text, at) {
    for (const [kind, pattern] of Object.entries(PIECES)) {
      pattern.lastIndex = at;
      if (pattern.test(text)) return [kind, pattern.lastIndex];
    }
  }

  /** By recursive descent: sum, product, sign, power, atom, from what binds least. */
  class Reader {
    constructor(text, names) {
      this.tokens = tokens(text);
      this.names = names;
      this.at = 0;
    }

    get next() {
      return this.tokens[this.at];
    }

    takes(...signs) {
      const { kind, text } = this.next;
      return kind === "sign" && signs.includes(text) ? this.tokens[this.at++].text : null;
    }

    refuse(expected) {
      const { kind, text, position } = this.next;
      const got = kind === "end" ? text : `'${text}'`;
      throw new FormulaError(position, `expected ${expected}; got ${got}`);
    }

    whole() {
      const tree = this.sum();
      if (this.next.kind !== "end") this.refuse("an operator (+ - * / ^) or the end");
      return tree;
    }

    sum() {
      let tree = this.product();
      for (let sign; (sign = this.takes("+", "-")); ) tree = node(sign, tree, this.product());
      return tree;
    }

    product() {
      let tree = this.signed();
      for (let sign; (sign = this.takes("*", "/")); ) tree = node(sign, tree, this.signed());
      return tree;
    }

    signed() {
      const sign = this.takes("+", "-");
      if (!sign) return this.power();
      return sign === "-" ? node("negative", this.signed()) : this.signed();
    }

    power() {
      const base = this.atom();
      return this.takes("^") ? node("^", base, this.signed()) : base;
    }

    atom() {
      const { kind, text, position } = this.next;
      if (this.takes("(")) return this.inBrackets();
      if (kind !== "number" && kind !== "name") {
        this.refuse(["a number", listed(this.names), "or '('"].filter(Boolean).join(", "));
      }
      this.at += 1;
      return kind === "number" ? constant(text, position) : this.named(text, position);
    }

    inBrackets() {
      const tree = this.sum();
      if (!this.takes(")")) this.refuse("an operator (+ - * / ^) or ')'");
      return tree;
    }

    named(text, position) {
      const index = this.names.indexOf(text);
      if (index >= 0) return { index };
      if (text === "pi") return { value: Math.PI };
      if (!Object.keys(FUNCTIONS).includes(text)) {
        const known = [listed(this.names), "pi", ...Object.keys(FUNCTIONS)].filter(Boolean);
        throw new FormulaError(position, `'${text}' is not known here: use ${known.join(", ")}`);
      }
      if (!this.takes("(")) this.refuse(`'(' after ${text}`);
      return node(text, this.inBrackets());
    }
  }

  function node(name, ...parts) {
    const [value, ...partials] = OPERATIONS[name] || FUNCTIONS[name];
    return { value, partials, parts };
  }

  function constant(text, position) {
    const value = Number(text);
    if (Number.isFinite(value)) return { value };
    throw new FormulaError(position, `${text} is too large for a number`);
  }

  /** "x1 to x3" for x1, x2, x3, else the names with commas. */
  function listed(names) {
    const row = names.length > 2 && names.every((name, i) => name === `x${i + 1}`);
    return row ? `x1 to x${names.length}` : names.join(", ");
  }

  // ---- evaluating ----------------------------------------------------------------------------

  function valueOf(tree, given) {
    if (tree.index !== undefined) return given[tree.index];
    return tree.parts ? tree.value(...tree.parts.map((part) => valueOf(part, given))) : tree.value;
  }

  /** [value, slopes] by dual numbers; slopes are null where nothing depends on the names. */
  function dual(tree, given) {
    if (tree.index !== undefined) {
      return [given[tree.index], given.map((_, i) => +(i === tree.index))];
    }
    if (!tree.parts) return [tree.value, null];
    const parts = tree.parts.map((part) => dual(part, given));
    const at = parts.map(([value]) => value);
    const value = tree.value(...at);
    return [value, parts.reduce((sum, [, slopes], k) => {
      if (!slopes) return sum;
      const partial = tree.partials[k](...at, value);
      return slopes.map((slope, i) => (sum ? sum[i] : 0) + partial * slope);
    }, null)];
  }

  /**
   * Read a formula in `names`; throws a FormulaError. The result has value(values), NaN where there
   * is none, and slopes(values), the derivatives; `values` is an array in the order of the names.
   */
  function parse(text, names) {
    if (text.length > LONGEST) {
      const what = `a formula has at most ${LONGEST} characters, this one has ${text.length}`;
      throw new FormulaError(LONGEST + 1, what);
    }
    const tree = new Reader(text, names).whole();
    return {
      text,
      value: (values) => valueOf(tree, values),
      slopes: (values) => dual(tree, values)[1] || values.map(() => 0),
    };
  }

  SBN.formula = { FormulaError, FUNCTIONS: Object.keys(FUNCTIONS), LONGEST, parse };
})();
