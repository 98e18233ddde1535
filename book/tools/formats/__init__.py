"""The book in every form but the site itself, from the built site and nothing else.

``make formats`` is ``python book/tools/formats`` after ``make book``. The site has all numbers,
references and outputs in it, so each format is another way to write down the same pages:

* ``pages`` reads them: the article of each page, its pictures, what belongs to the site alone left
  out; ``copies`` rewrites them for paper, ``markdown`` for a reader of plain text;
* ``browser`` has one Chromium set all formulas, once, and print: ``pdf`` makes a book of what comes
  out, ``epub`` takes the formulas as MathML;
* ``notebooks`` packs the copies for JupyterLab, with and without solutions;
* ``publish`` puts all of it under the site, whole or not at all.

What is wrong with one page is said with the format and the page (``FormatError``).
"""
