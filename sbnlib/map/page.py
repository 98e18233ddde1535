"""The report as one page: everything in it, nothing asked of other hosts."""

from __future__ import annotations

from html import escape
from typing import Any

from sbnlib import registry
from sbnlib.extras import extra
from sbnlib.map.drawing import chart, points
from sbnlib.map.found import QUANTITIES, Found
from sbnlib.map.problem_set import NAME, select

__all__ = ["page"]

Row = dict[str, Any]

#: Below so many effective samples a row is marked.
FEW = 100

CSS = """
:root{color-scheme:light dark;--line:#8886}
body{font:1rem/1.5 system-ui,sans-serif;margin:0;background:#fff;color:#1a1a1a}
main{max-width:56rem;margin:auto;padding:1rem .7rem;overflow-wrap:anywhere}
h1,h2,h3{line-height:1.2}
.wide{overflow-x:auto;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
h3{margin:1.6rem 0 .4rem;font-size:1rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{vertical-align:bottom}
tbody th{font-weight:400}
th:first-child{text-align:left}
dt{font-weight:600;margin-top:.6rem}
dd{margin-left:1.2rem}
figure{margin:1rem 0}
code{font-size:.875em}
@media (prefers-color-scheme:dark){body{background:#121212;color:#e8e8e8}}
""".strip()

#: The columns in words, for readers who have not met them.
COLUMNS = (
    ("squared bias", "How wrong the estimate is on average: the squared distance between the "
     "average of many estimates and the exact gradient. 0 is right on average; 1 is as far off as "
     "answering 0 always. More samples do not make it smaller. By samples it is free of their "
     "noise, so that it may come out a little below 0; within two standard errors of 0 no bias "
     "has been seen."),
    ("variance", "How much single estimates scatter about their average: the mean squared distance "
     "between the two. The average of M estimates has this divided by M."),
    ("mean squared error", "The sum of the two, which is the mean squared distance of one estimate "
     "from the exact gradient."),
    ("efficiency", "What of the squared length of the exact gradient one estimate finds when it is "
     "multiplied by its best factor: its mean squared error is then 1 minus this number. 1 is the "
     "exact gradient up to a factor. Unlike the error it does not prefer estimates that are too "
     "short."),
    ("cosine", "Whether the average of many estimates points along the exact gradient: 1 is the "
     "same direction, 0 is at right angles, below 0 is uphill. It does not depend on the "
     "estimate's scale. A dash: the average is 0, or the samples do not tell it from 0."),
    ("loss evaluations", "How often one estimate asks for the loss of a state, for each input, as "
     "counted while it ran."),
    ("forward passes", "How many times one estimate runs the network, for each input: "
     "a pass through one layer counts by that layer's share of the weights. What an estimator "
     "computes from the weights without running the layers is not counted."),
    ("place", "Its place by efficiency among the estimators of sbnlib's registry; 1 is the most "
     "efficient. Estimates that cost more are not held back."),
)  # fmt: skip

LOSSES = (
    ("digits", "The cross-entropy of a trained linear classifier on the last layer's states, for "
     "four small images of digits. Network and classifier are trained."),
    ("xor", "The share of wrong answers where each unit of the last layer and its neighbour are "
     "the two inputs of an exclusive-or gate, for the four pairs of signs. The network is half "
     "trained. The loss is linear in each unit."),
    ("smooth", "A random smooth function of the last layer's states, for four random inputs. The "
     "network is random."),
)  # fmt: skip


def page(report: Found) -> str:
    """The HTML of the report, the same text whenever it is made again."""
    with extra("figures"):
        import matplotlib
    name = escape(report.name)
    parts = [
        f"<h1>{name} on the map</h1>",
        _opening(report),
        "<h2>Beside other estimators</h2>",
        "<p>To the left is right on average, to the bottom is little scatter. In the grey strip no "
        "bias has been seen, and left and right mean nothing. A line through a mark is two "
        "standard errors of its variance to either side. The number behind a name is its cost in "
        "loss evaluations an estimate.</p>",
        *(_figure(report, problem) for problem in _charted(report)),
        "<h2>Every problem</h2>",
        _note_on_few(report),
        _table(report, "all", "All layers together"),
        _table(report, "first", "The first layer alone"),
        "<h2>What the columns mean</h2>",
        "<p>The first three are relative to the squared length of the exact gradient.</p>",
        _words(COLUMNS),
        "<h2>The problems</h2>",
        "<p>A name says the loss, layers × units in each, the law of the noise and its scale. The "
        "gradient is that of the mean loss over the inputs, with one draw an input.</p>",
        _words(LOSSES),
        "<h2>Repeat it, cite it</h2>",
        f"<p><code>{escape(report.command)}</code></p>",
        "<p>gives this page again, to the byte, with the same versions (of Matplotlib, which draws "
        f"the charts, {matplotlib.__version__}) on the same kind of processor. To cite the "
        "numbers:</p>",
        f"<p><code>{escape(report.citation)}</code></p>",
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} on {NAME}</title>\n<style>\n{CSS}\n</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _opening(report: Found) -> str:
    how = (
        f"Its numbers are from {report.samples} estimates a problem, with fixed seeds, and carry "
        f"standard errors (±): {escape(report.sampled)}."
        if report.sampled
        else "It is a function of a unit's input and state alone, so its numbers are exact sums "
        "over all states."
    )
    count = len(report.rows)
    return (
        "<p>This page says how well an estimator gets the gradient of networks of random binary "
        f"units. It was tried on {count} network{'s'[: count > 1]} of the problem set {NAME}, "
        "which are so small that the exact gradient of the expected loss is known. "
        f"{escape(report.name)} is of kind “{escape(report.kind)}”. {how}</p>"
    )


def _charted(report: Found) -> list[str]:
    """The base problem of each loss, or the first problem where the report has none of these."""
    names = [row["problem"] for row in report.rows]
    return [p.name for p in select(names) if p.is_base] or names[:1]


def _figure(report: Found, problem: str) -> str:
    with extra("figures"):
        import matplotlib

        from sbnlib.figures import style

    with matplotlib.rc_context(style.STYLE):
        svg, _ = style.still(chart(problem, report), "svg")
    (words,) = (p.words for p in select([problem]))
    caption = f"<figcaption>{escape(problem)}: {escape(words)}.</figcaption>"
    label = escape(_alt(report, problem))
    frame = f'<div class="wide" role="img" aria-label="{label}">{svg}</div>'
    return f"<figure>{frame}{caption}</figure>"


def _alt(report: Found, problem: str) -> str:
    """What the chart shows: where the reported estimator stands."""
    own = report.entry or report.name
    (p,) = (p for p in points(problem, report) if p.name == own and
            (p.colour is None) == (report.entry is None))  # fmt: skip
    others = len(registry.ESTIMATORS) - (report.entry is not None)
    bias = f"bias {p.bias:.3g}" if p.bias else "no bias seen"
    return (
        f"Bias against variance on {problem}: {report.name} with {bias} and variance "
        f"{p.variance:.3g}, among {others} other estimators; the table has the numbers."
    )


def _few(row: Row) -> bool:
    return bool(row.get("effective_samples", FEW) < FEW)


def _note_on_few(report: Found) -> str:
    if not any(map(_few, report.rows)):
        return ""
    return (
        f"<p>†: fewer than {FEW} of the samples carry the variance. Rare states decide, and "
        "variance and standard errors may be far too small.</p>"
    )


def _table(report: Found, layers: str, words: str) -> str:
    heads = ["problem", *(name for name, _ in COLUMNS)]
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    rows = "\n".join(_row(report, row, layers) for row in report.rows)
    return (
        f'<h3 id="{layers}">{words}</h3>\n<div class="wide" role="region" tabindex="0" '
        f'aria-labelledby="{layers}">\n<table aria-labelledby="{layers}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _row(report: Found, row: Row, layers: str) -> str:
    rank, of = report.rank(row["problem"], layers=layers)
    cells = [_number(*row[layers][q]) for q in QUANTITIES[:-1]]
    cells += [f"{row['loss_evaluations']:g}", f"{row['forward_passes']:g}", f"{rank} of {of}"]
    mark = " †" if _few(row) else ""
    head = f'<th scope="row">{escape(row["problem"])}{mark}</th>'
    return f"<tr>{head}{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _number(value: float | None, se: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:g}"
    return text.replace("-", "−") + (f" ± {se:g}".replace("-", "−") if se else "")


def _words(pairs: tuple[tuple[str, str], ...]) -> str:
    items = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>\n" for a, b in pairs)
    return f"<dl>\n{items}</dl>"
