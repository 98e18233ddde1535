// Two things that the theme's own scripts take for granted.
(() => {
  // That light or dark was chosen before. On a first visit the reader's system says which, and
  // says it before anything is painted.
  const page = document.documentElement.dataset;
  if (page.mode === "auto") {
    page.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  // That a list of contents stands at the right, to be hidden where a box in the margin needs its
  // place. A page without sections has none.
  document.addEventListener("DOMContentLoaded", () => {
    if (document.querySelector("div.bd-sidebar-secondary")) return;
    const nothing = document.createElement("div");
    nothing.className = "bd-sidebar-secondary";
    nothing.style.display = "none";
    document.body.append(nothing);
  });
})();
