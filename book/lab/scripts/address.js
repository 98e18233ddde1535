// The address keeps the model: a version, whole numbers of five bits a character (the sixth says
// that more follow, the least first), and 32 bits that depend on all of it.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { CODINGS, KINDS } = SBN.net;

  const VERSION = "1";
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const SEAL = 6; // characters for the 32 bits
  const LONGEST = 4000; // characters; the longest that is written has fewer
  const PARTS = 1000; // numbers are kept in thousandths

  class Writer {
    constructor() {
      this.text = VERSION;
    }

    count(value) {
      for (; value > 31; value >>>= 5) this.text += DIGITS[32 + (value & 31)];
      this.text += DIGITS[value];
    }

    index(value, among) {
      this.count(among.indexOf(value));
    }

    numbers(...values) {
      for (const value of values.flat(2)) {
        const whole = Math.round(value * PARTS);
        this.count(whole < 0 ? -2 * whole - 1 : 2 * whole);
      }
    }
  }

  class Unreadable extends Error {}

  class Source {
    constructor(text) {
      [this.text, this.at] = [text, VERSION.length];
    }

    count() {
      for (let value = 0, shift = 0; shift < 30 && this.at < this.text.length; shift += 5) {
        const digit = DIGITS.indexOf(this.text[this.at++]);
        if (digit < 0) break;
        value += (digit & 31) << shift;
        if (digit < 32) return value;
      }
      throw new Unreadable();
    }

    index(among) {
      const at = this.count();
      if (at >= among.length) throw new Unreadable();
      return among[at];
    }

    number() {
      const whole = this.count();
      return (whole & 1 ? -(whole + 1) / 2 : whole / 2) / PARTS;
    }

    numbers(length) {
      return Array.from({ length }, () => this.number());
    }

    matrix(rows, columns) {
      return Array.from({ length: rows }, () => this.numbers(columns));
    }
  }

  /** FNV-1a: every change of one character changes it. */
  function seal(text) {
    let hash = 0x811c9dc5;
    for (const letter of text) hash = Math.imul(hash ^ letter.charCodeAt(0), 0x01000193);
    return Array.from({ length: SEAL }, (_, k) => DIGITS[(hash >>> (6 * k)) & 63]).join("");
  }

  /** A model as a short text of letters, digits, - and _, for location.hash. */
  function encode(model) {
    const [wrong] = SBN.net.check(model);
    if (wrong) throw new RangeError(wrong);
    const { layers, input, noise, scale = 1, coding = "signs", loss, estimator } = model;
    const out = new Writer();
    out.count(layers.length);
    [input.length, ...layers.map(({ bias }) => bias.length)].forEach((n) => out.count(n));
    out.index(noise, SBN.noise.NAMES);
    out.numbers(scale);
    out.index(coding, CODINGS);
    out.numbers(input);
    layers.forEach(({ weight, bias }) => out.numbers(weight, bias));
    writeLoss(out, loss);
    writeEstimator(out, SBN.estimators.asObject(estimator));
    return out.text + seal(out.text);
  }

  function writeLoss(out, { kind, A, c, weight, bias, target, text }) {
    out.index(kind, KINDS);
    if (kind === "quadratic") out.numbers(A, c);
    if (kind === "cross_entropy") {
      out.count(weight.length);
      out.numbers(weight, bias);
      out.count(target);
    }
    if (kind === "formula") {
      out.count(text.length);
      text.split("").forEach((letter) => out.count(letter.charCodeAt(0)));
    }
  }

  function writeEstimator(out, given) {
    const { name, parameter } = SBN.estimators.ESTIMATORS[given.name];
    out.index(name, SBN.estimators.NAMES);
    if (name === "reinforce") out.count(given.baseline === "mean" ? 1 : 0);
    if (parameter && given[parameter] !== "mean") out.numbers(given[parameter]);
  }

  /** {model, note} of what `encode` wrote: the note is empty. Else the first preset and why. */
  function decode(text) {
    try {
      return { model: read(String(text).replace(/^#/, "")), note: "" };
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      const note = "The address is cut short or altered, so this is the network of chapter 2.";
      return { model: SBN.net.fresh(), note };
    }
  }

  function read(text) {
    const [body, end] = [text.slice(0, -SEAL), text.slice(-SEAL)];
    const whole = text.length <= LONGEST && body.startsWith(VERSION) && seal(body) === end;
    if (!whole) throw new Unreadable();
    const from = new Source(body);
    const model = readModel(from);
    if (from.at !== body.length || SBN.net.check(model).length) throw new Unreadable();
    return model;
  }

  function readModel(from) {
    const sizes = Array.from({ length: from.count() + 1 }, () => from.count());
    const noise = from.index(SBN.noise.NAMES);
    const scale = from.number();
    const coding = from.index(CODINGS);
    const input = from.numbers(sizes[0]);
    const layers = sizes.slice(1).map((n, k) => ({
      weight: from.matrix(n, sizes[k]),
      bias: from.numbers(n),
    }));
    const loss = readLoss(from, sizes[sizes.length - 1]);
    return { layers, input, noise, scale, coding, loss, estimator: readEstimator(from) };
  }

  function readLoss(from, n) {
    const kind = from.index(KINDS);
    if (kind === "quadratic") return { kind, A: from.matrix(n, n), c: from.numbers(n) };
    const length = from.count();
    if (kind === "formula") {
      const letters = Array.from({ length }, () => String.fromCharCode(from.count()));
      return { kind, text: letters.join("") };
    }
    const [weight, bias] = [from.matrix(length, n), from.numbers(length)];
    return { kind, weight, bias, target: from.count() };
  }

  function readEstimator(from) {
    const name = from.index(SBN.estimators.NAMES);
    const { parameter } = SBN.estimators.ESTIMATORS[name];
    if (!parameter) return name;
    const isMean = name === "reinforce" && from.count() === 1;
    return { name, [parameter]: isMean ? "mean" : from.number() };
  }

  /** A model as its address keeps it: numbers in thousandths. */
  const rounded = (model) => decode(encode(model)).model;

  Object.assign(SBN.net, { encode, decode, rounded });
})();
