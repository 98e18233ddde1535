for (const root of document.querySelectorAll('[data-sbn="ID"]:not([data-ready])')) {
  root.dataset.ready = "";
  const lines = root.querySelector('script[type="text/plain"]').textContent.split("\n");
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const frame = root.querySelector(".sbn-frame");
  const panel = root.querySelector(".sbn-panel");
  const inputs = [...panel.querySelectorAll("input")];
  // a frame is the base with some stretches replaced: [from, to, lines that stand there instead]
  const build = (changes) => {
    const out = [];
    let at = 0;
    for (const [from, to, put] of changes) {
      out.push(...data.base.slice(at, from), ...put);
      at = to;
    }
    return out.concat(data.base.slice(at)).map((i) => lines[i]).join("");
  };
  let shown = data.start;
  const update = () => {
    let index = 0;
    inputs.forEach((input, i) => {
      const text = data.texts[i][+input.value];
      index = index * data.texts[i].length + +input.value;
      input.setAttribute("aria-valuetext", text);
      const output = input.nextElementSibling;
      if (output.textContent !== text) output.textContent = text;
    });
    if (index !== shown) frame.innerHTML = build(data.frames[shown = index]);
  };
  panel.addEventListener("input", () => {
    update();
    const answer = root.closest(".sbn-figure").querySelector(".sbn-answer");
    if (answer) answer.open = true;
  });
  panel.hidden = false;
  update();
}
