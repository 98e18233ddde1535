// Pasted by Sphinx into the search page, before its own script reads it.

// A page whose title has what was asked for comes before pages that only mention it, a chapter
// before its sections, the chapters before the back of the book.
var Scorer = {
  score: ([page, title, anchor, , score]) => {
    const asked = (new URLSearchParams(location.search).get("q") ?? "").trim().toLowerCase();
    const named = asked !== "" && title.toLowerCase().includes(asked);
    const chapter = /\/\d\d-[^/]+$/.test(page) && anchor === "";
    const back = page.startsWith("book/back/");
    return score + (named ? 20 : 0) + (named && chapter ? 20 : 0) - (back ? 5 : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

// What is shown of a page is its source, where formulas are TeX: short ones read as they are, of
// the others a sign remains.
document.addEventListener("DOMContentLoaded", () => {
  const text = Search.htmlToText;
  const readable = (whole, inline) => (inline && !/[\\{}&]/.test(inline) ? inline : "…");
  Search.htmlToText = (...page) =>
    text(...page).replace(/\\\((.*?)\\\)|\\\[.*?\\\]/gs, readable).replace(/\s+/g, " ");
});
