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

// What is shown of a page is its text, without the frame around it. Formulas are TeX there: short
// ones read as they are, of the others a sign remains.
document.addEventListener("DOMContentLoaded", () => {
  const readable = (whole, inline) => (inline && !/[\\{}&]/.test(inline) ? inline : "…");
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".headerlink, script, style").forEach((e) => e.remove());
    const part = page.getElementById(anchor?.slice(1)) ?? page.querySelector("article");
    const text = part?.textContent ?? "";
    return text.replace(/\\\((.*?)\\\)|\\\[.*?\\\]/gs, readable).replace(/\s+/g, " ");
  };
});
