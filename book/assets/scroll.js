// What is wider than the page scrolls in a box of its own; the keyboard must reach such a box.
(() => {
  const BOXES = "mjx-container[display], div.math, div.cell_output, .sbn-frame, .pst-scrollable-table-container, pre";

  // A long formula within a line of text is a box only where the line is too short for it.
  function markFormula(formula) {
    formula.classList.remove("sbn-wide");
    const line = formula.closest("p, li, dd, td, th, figcaption, div");
    const whole = formula.closest(".sbn-together") ?? formula; // with the comma after it
    const wide = whole.getBoundingClientRect().width > line.clientWidth;
    formula.classList.toggle("sbn-wide", wide);
    focusable(formula, wide);
  }

  function focusable(box, scrolls) {
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }

  function mark() {
    document.querySelectorAll("article span.math").forEach(markFormula);
    for (const box of document.querySelectorAll(BOXES)) {
      const hidden = getComputedStyle(box).overflowX !== "visible";
      focusable(box, hidden && box.scrollWidth > box.clientWidth + 1);
    }
  }

  window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
    window.addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true); // what was folded had no width
  });
})();
