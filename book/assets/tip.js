// Hover previews. sphinx-tippy writes, for each page, which link shows which piece of HTML, and
// calls tippy(link, options) for each; this is a small tippy of our own, so nothing is fetched.
(() => {
  const DELAY = 150;
  let box = null;
  let timer = 0;

  function makeBox() {
    const made = document.createElement("div");
    made.id = "sbn-tip";
    made.className = "bd-article"; // it looks like a piece of the page
    made.setAttribute("role", "tooltip");
    made.addEventListener("mouseenter", () => clearTimeout(timer));
    made.addEventListener("mouseleave", hideSoon);
    document.body.append(made);
    return made;
  }

  // Below the link, or above where there is no room below; never out of the window.
  function place(link) {
    const at = link.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = box;
    const left = Math.min(at.left, document.documentElement.clientWidth - width - 12);
    const below = at.bottom + 8 + height < window.innerHeight;
    box.style.left = `${Math.max(12, left) + window.scrollX}px`;
    box.style.top = `${(below ? at.bottom + 8 : Math.max(8, at.top - height - 8)) + window.scrollY}px`;
  }

  // The preview is a second copy of a part of the page: it must not repeat its ids or its widgets.
  function fill(html) {
    box.innerHTML = html;
    box.querySelectorAll(".headerlink, script, button, .solution, .sbn-panel, .sbn-answer, .sbn-check").forEach((e) => e.remove());
    box.querySelectorAll("[id]").forEach((e) => e.removeAttribute("id"));
  }

  async function show(link, html) {
    box ??= makeBox();
    fill(html);
    box.dataset.open = "";
    link.setAttribute("aria-describedby", box.id);
    place(link);
    if (window.MathJax?.startup?.promise) {
      await MathJax.startup.promise;
      await MathJax.typesetPromise([box]);
      place(link);
    }
  }

  function hide() {
    clearTimeout(timer);
    if (box) delete box.dataset.open;
    document.querySelectorAll("[aria-describedby=sbn-tip]").forEach((link) => {
      link.removeAttribute("aria-describedby");
    });
  }

  function hideSoon() {
    clearTimeout(timer);
    timer = setTimeout(hide, DELAY);
  }

  window.tippy = (link, { content }) => {
    const soon = () => {
      clearTimeout(timer);
      timer = setTimeout(() => show(link, content), DELAY);
    };
    link.removeAttribute("title"); // the browser's own tooltip would lie over the preview
    link.addEventListener("mouseenter", soon);
    link.addEventListener("focus", soon);
    link.addEventListener("mouseleave", hideSoon);
    link.addEventListener("blur", hideSoon);
  };
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
