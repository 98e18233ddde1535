// The fields beside the drawing, made from a list of what they set.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});
  const { html, set } = SBN.draw;
  let count = 0;

  /** A field with its label; `read` takes the value of the control, `write` puts one in. */
  function field(label, control, note) {
    count += 1;
    control.id = `sbn-field-${count}`;
    return html("div", { class: "sbn-field" }, html("label", { for: control.id }, label), control,
      note || null);
  }

  /** A list to choose from: pairs of value and words. */
  function choice(label, options, changed) {
    const control = html("select", {}, ...options.map(([value, words]) =>
      html("option", { value }, words)));
    control.addEventListener("change", () => changed(control.value));
    return { box: field(label, control), control, write: (value) => { control.value = value; } };
  }

  /** A range, with its number in the label's line. */
  function range(label, { min, max, step }, changed) {
    const control = html("input", { type: "range", min, max, step }), told = html("output", {});
    const box = field(label, control, told);
    const write = (value) => {
      control.value = value;
      told.textContent = SBN.draw.short(Number(value));
    };
    control.addEventListener("input", () => {
      write(control.value);
      changed(Number(control.value));
    });
    return { box, control, write };
  }

  /** A line of text that is taken at once; `say` shows what is wrong with it. */
  function line(label, changed) {
    const control = html("input", { type: "text", spellcheck: "false", autocapitalize: "off",
      autocomplete: "off" });
    const told = html("p", { class: "sbn-wrong", role: "alert", id: `sbn-wrong-${count + 1}` });
    set(control, { "aria-describedby": told.id });
    control.addEventListener("input", () => changed(control.value));
    return {
      box: field(label, control, told), control, write: (value) => {
        if (control.value !== value) control.value = value;
      },
      say(words) {
        if (told.textContent !== words) told.textContent = words;
        set(control, { "aria-invalid": words ? "true" : undefined });
      },
    };
  }

  /** A button; `pressed` tells whether it is one that stays down. */
  function button(words, changed, pressed = false) {
    const control = html("button", { type: "button" }, words);
    set(control, { "aria-pressed": pressed ? "false" : undefined });
    control.addEventListener("click", () => changed(control));
    return control;
  }

  SBN.controls = { choice, range, line, button };
})();
