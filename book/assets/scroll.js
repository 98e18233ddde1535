// What is wider than the page scrolls in a box of its own; the keyboard must reach such a box.
(() => {
  const BOXES = "mjx-container[display], div.math, div.cell_output, .pst-scrollable-table-container, pre";

  function mark() {
    for (const box of document.querySelectorAll(BOXES)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      if (scrolls && getComputedStyle(box).overflowX !== "visible") box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
    window.addEventListener("resize", mark);
  });
})();
