// Exercises that check themselves in the page, as sbnlib.exercises does in a notebook: the same
// tolerance, the same named mistakes in the same order, the same sentences. The data come from the
// checker (sbn_answers.py). What is solved is kept in this browser; nothing is sent.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  // ---- words, as Python writes them -------------------------------------------------------------

  const ESCAPES = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

  function escaped(sign) {
    const code = sign.codePointAt(0);
    if (sign === " " || !/[\p{C}\p{Z}\\]/u.test(sign)) return sign;
    const [letter, length] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
    return ESCAPES[sign] ?? `\\${letter}${code.toString(16).padStart(length, "0")}`;
  }

  /** A text in quotes: Python's repr. */
  function quoted(signs) {
    const quote = signs.includes("'") && !signs.includes('"') ? '"' : "'";
    const inside = signs.map((sign) => (sign === quote ? `\\${sign}` : escaped(sign)));
    return Array.from([quote, ...inside, quote].join(""));
  }

  /** The same in at most thirty characters: Python's reprlib. */
  function short(text) {
    const signs = Array.from(text);
    const whole = quoted(signs.slice(0, 30));
    if (whole.length <= 30) return whole.join("");
    const ends = quoted([...signs.slice(0, 13), ...signs.slice(-14)]);
    return [...ends.slice(0, 13), "...", ...ends.slice(-14)].join("");
  }

  /** Six digits, without zeros at the end: Python's format "g", which rounds a half to even. */
  function general(x) {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x < 0 ? "-inf" : "inf";
    const sign = x < 0 || Object.is(x, -0) ? "-" : "";
    const [first, power] = Math.abs(x).toExponential(5).split("e");
    const half = /\.\d{5}50*e/.test(Math.abs(x).toExponential(40));
    const whole = Number(first.replace(".", ""));
    const digits = String(half && whole % 2 ? whole - 1 : whole).padStart(6, "0");
    const place = Number(power);
    if (place < -4 || place > 5) {
      const tens = String(Math.abs(place)).padStart(2, "0");
      return `${sign}${pointed(digits, 1)}e${place < 0 ? "-" : "+"}${tens}`;
    }
    return sign + pointed("0".repeat(Math.max(0, -place)) + digits, Math.max(0, place) + 1);
  }

  function pointed(digits, place) {
    return `${digits.slice(0, place)}.${digits.slice(place)}`.replace(/\.?0*$/, "");
  }

  // ---- judges -----------------------------------------------------------------------------------

  /** An answer that cannot be judged; the message says what is missing. */
  class Refused extends Error {}

  /** The values of a formula, one a point; NaN where it has none that is finite. */
  function values(text, points, names) {
    let formula;
    try {
      formula = SBN.formula.parse(text, names);
    } catch {
      const known = ["pi", ...names, ...SBN.formula.FUNCTIONS].join(", ");
      throw new Refused(`cannot read ${short(text)}: use numbers, + - * / ^, ${known}`);
    }
    const finite = (value) => (Number.isFinite(value) ? value : NaN);
    return points.map((point) => finite(formula.value(point)));
  }

  const named = (data, is) => data.wrong.find((wrong) => is(wrong.value))?.says;

  // Each takes the data and an answer and returns what is said, or null to the right one.
  const JUDGES = {
    number(data, text) {
      const [got] = values(text, [[]], []);
      const near = (b) => got === b || Math.abs(got - b) <= data.tolerance;
      return near(data.value) ? null : (named(data, near) ?? `${general(got)} is not it`);
    },

    formula(data, text) {
      const names = Object.keys(data.at);
      const points = data.at[names[0]].map((_, k) => names.map((name) => data.at[name][k]));
      const got = values(text, points, names);
      const near = (other) =>
        values(other, points, names).every((y, k) => Math.abs(got[k] - y) <= data.tolerance);
      return near(data.value) ? null : (named(data, near) ?? `${short(text)} is not it`);
    },

    choice(data, chosen) {
      const missed = data.options.filter((o) => chosen.includes(o) !== data.value.includes(o));
      if (!missed.length) return null;
      const says = named(data, (option) => missed.includes(option));
      return says ?? `not yet: think again about ${missed.sort()[0]}`;
    },
  };

  /** Whether an answer is right, and the sentence that is said to it. */
  function judge(data, answer) {
    try {
      const says = JUDGES[data.kind](data, answer);
      return { right: says === null, says: says ?? data.right };
    } catch (error) {
      if (error instanceof Refused) return { right: false, says: error.message };
      throw error;
    }
  }

  // ---- what is solved ---------------------------------------------------------------------------

  const KEY = "sbn.solved.";
  const solved = new Set();
  let kept = true; // whether this browser keeps anything

  /** Use the browser's store; where there is none, or it is full, the page goes on without. */
  function withStore(use) {
    try {
      use(globalThis.localStorage);
    } catch {
      kept = false;
    }
  }

  const storedKeys = (store) => Object.keys(store).filter((key) => key.startsWith(KEY));

  function recall() {
    withStore((store) => storedKeys(store).forEach((key) => solved.add(key.slice(KEY.length))));
  }

  function remember(label) {
    solved.add(label);
    withStore((store) => store.setItem(KEY + label, "1"));
  }

  function forget() {
    solved.clear();
    withStore((store) => storedKeys(store).forEach((key) => store.removeItem(key)));
  }

  // ---- the page ---------------------------------------------------------------------------------

  /** An element with its attributes and what is in it. */
  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }

  const code = (names) => names.flatMap((name, k) => [k ? ", " : "", make("code", {}, name)]);

  /** A field for a number or a formula, and what may be written in it. */
  function field(data, id) {
    const names = Object.keys(data.at ?? {});
    const what = names.length ? ["A formula in ", ...code(names)] : ["A number, or arithmetic"];
    const like = names.length ? `${names[0]}^2/3` : "2^(1/8)";
    const input = make("input", {
      id: `${id}-field`, type: "text", maxlength: 200, size: names.length ? 28 : 14,
      "aria-describedby": `${id}-hint`, autocomplete: "off", autocapitalize: "off",
      spellcheck: "false",
    });
    const label = make("label", { for: input.id }, "Your answer");
    const hint = make("span", { id: `${id}-hint`, class: "sbn-hint" }, ...what, " such as ",
      make("code", {}, like));
    return { parts: [label, input, hint], read: () => input.value };
  }

  /** Boxes to tick; a single one where a single option is right. */
  function boxes(data, id) {
    const type = data.value.length === 1 ? "radio" : "checkbox";
    const inputs = data.options.map((value) => make("input", { type, name: id, value }));
    const labels = inputs.map((input) => make("label", {}, input, `\u00a0${input.value}`));
    const words = type === "radio" ? "Which one?" : "Which of them?";
    const set = make("fieldset", {}, make("legend", {}, words), ...labels);
    return { parts: [set], read: () => inputs.filter((i) => i.checked).map((i) => i.value) };
  }

  const tick = (words) =>
    make("span", { class: "sbn-tick" }, "✓", make("span", { class: "sbn-unseen" }, ` ${words}`));

  /** Ticks at the solved exercises, and how many there are in the list of contents. */
  function mark(exercises, entry) {
    document.querySelectorAll(".sbn-tick").forEach((old) => old.remove());
    const done = exercises.filter(({ id }) => solved.has(id));
    for (const { title } of done) title.append(tick("solved"));
    if (entry && done.length) {
      const count = tick("solved");
      count.firstChild.after(` ${done.length} of ${exercises.length}`);
      entry.append(count);
    }
  }

  function form(place, id, onRight) {
    const data = JSON.parse(place.querySelector("script").textContent);
    const { parts, read } = data.kind === "choice" ? boxes(data, id) : field(data, id);
    const says = make("p", { class: "sbn-says", role: "status", "aria-live": "polite" });
    const button = make("button", { type: "submit" }, "Check");
    const made = make("form", { class: "sbn-ask" }, ...parts, button, says);
    made.addEventListener("submit", (event) => {
      event.preventDefault();
      const { right, says: sentence } = judge(data, read());
      says.textContent = sentence;
      made.dataset.right = right;
      if (right) onRight();
    });
    made.addEventListener("input", () => {
      says.textContent = "";
      delete made.dataset.right;
    });
    place.append(made);
    place.hidden = false;
  }

  function forgetting(onForget) {
    const button = make("button", { type: "button" }, "Forget what I have solved");
    const words = () =>
      kept
        ? "The ticks, in all chapters, are kept in this browser only."
        : "This browser keeps no ticks: they last until you leave the page.";
    const says = make("span", { role: "status", "aria-live": "polite" }, words());
    button.addEventListener("click", () => {
      onForget();
      says.textContent = "Forgotten, in all chapters.";
    });
    return make("p", { class: "sbn-forget" }, button, " ", says);
  }

  function open() {
    const places = [...document.querySelectorAll("article .sbn-check")];
    if (!places.length) return;
    recall();
    const exercises = places.map((place) => {
      const box = place.closest(".exercise");
      return { place, id: box.id, title: box.querySelector(".admonition-title") };
    });
    const section = exercises[0].place.closest("section[id]");
    const entry = document.querySelector(`.page-toc a[href="#${section.id}"]`);
    const refresh = () => mark(exercises, entry);
    for (const { place, id } of exercises) {
      form(place, id, () => {
        remember(id);
        refresh();
      });
    }
    section.append(
      forgetting(() => {
        forget();
        refresh();
      }),
    );
    refresh();
  }

  SBN.answers = { judge };
  if (globalThis.document) open();
})();
