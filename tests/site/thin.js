// Take from a page what only repeats, before axe looks at it: its time grows with the number of
// elements, and most are tokens of code, glyphs of formulas and marks of pictures. The first of each
// kind stays as it is, and of every kind the first is the one whose contrast is measured.
() => {
  const places = new Map([[document, ""]]);

  // Where an element stands: tags, classes and styles, from the root down to it.
  function place(element) {
    if (!places.has(element)) {
      const own = ["class", "style", "open", "hidden"].map((name) => element.getAttribute(name));
      places.set(element, `${place(element.parentNode)} ${element.localName} ${own}`);
    }
    return places.get(element);
  }

  // Elements of one kind stand in like places, look alike, and have text of their own or have not.
  function kind(element) {
    const { color, backgroundColor, fontSize, fontWeight } = getComputedStyle(element);
    const look = [color, backgroundColor, fontSize, fontWeight, element.checkVisibility()];
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return [place(element), ...look, text].join();
  }

  function repeated(elements) {
    const seen = new Set();
    return elements.filter((element) => {
      const before = seen.size;
      return seen.add(kind(element)).size === before;
    });
  }

  // A box that scrolls must be reachable by the keyboard, so what makes it scroll stays.
  function scrolls(element) {
    for (let at = element; at.localName !== "body"; at = at.parentElement) {
      if (at.clientWidth && at.scrollWidth > at.clientWidth) return true;
    }
    return false;
  }

  const inCode = (element) => element.matches("article :is(pre, code, .sig) span");
  const bare = (element) => [...element.attributes].every(({ name }) => name === "class");
  const all = repeated([...document.querySelectorAll("body :not(mjx-container *, script)")]);
  const tokens = all.filter((element) => inCode(element) && bare(element));
  const formulas = all.filter((e) => e.localName === "mjx-container" && !scrolls(e));
  const marks = all.filter((element) => element.matches("[role=img] svg *"));

  all.forEach((element) => element.setAttribute("data-again", ""));
  // What is inside goes first. The text stays, so that nothing becomes an empty link or heading.
  for (const token of tokens.reverse()) {
    if (!token.firstElementChild) token.replaceWith(token.textContent);
  }
  for (const formula of formulas) {
    formula.querySelector("mjx-math[aria-hidden=true]")?.remove();
    formula.querySelectorAll("math").forEach((m) => m.replaceWith(m.textContent));
  }
  for (const mark of marks.reverse()) {
    if (!mark.firstElementChild) mark.remove();
  }
  document.body.normalize();
}
