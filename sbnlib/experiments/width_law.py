"""How bias and variance of gradient estimators grow or fall with the width and depth of a network.

    python -m sbnlib.experiments.width_law [--of bias|variance] [--nets 400] [--out FILE]

The networks are those of ``random_nets``. ``--of bias``, chapter 7: the bias of straight-through,
ZGR, PSA and symmetrized PSA, relative to the gradient's length. ``--of variance``, chapter 4: the
variance of one sample of REINFORCE without a baseline and with the mean loss as baseline, of local
expectation and of straight-through, relative to the gradient's squared length. Both are ratios of
sums over the networks with jackknife errors. Up to ``--widths`` the sums run over all states; the
``--sampled-widths`` are estimated from ``--samples`` paths a network, in ``--units`` units of the
first layer. Powers of the width are fitted from width 4 on. The default grid takes half an hour on
one core for the bias, less for the variance.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sbnlib.contracts import check_count
from sbnlib.experiments import measurement
from sbnlib.experiments.command import add_option, add_out, as_typed, refusing
from sbnlib.experiments.random_nets import (
    BIASED,
    MOST_EXACT,
    VARYING,
    Found,
    exact,
    fit,
    problem,
    ratio,
    sampled,
)
from sbnlib.experiments.training import generator, threads

__all__ = ["LAWS", "Law", "main", "run"]

Row = dict[str, Any]
FIT_FROM = 4  # the smallest width in a fit
ROUNDING = 1e-24  # a squared relative bias below this is none


@dataclass(frozen=True)
class Law:
    """One of the two laws.

    Attributes:
        kind: of its measurement file.
        field: of its rows.
        power: the field is the ratio of sums to this power.
        estimators: names, in order.
    """

    kind: str
    field: str
    power: float
    estimators: tuple[str, ...]


LAWS = {
    "bias": Law("width law", "relative_bias", 0.5, tuple(BIASED)),
    "variance": Law("variance law", "relative_variance", 1.0, VARYING),
}


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        of: "bias" or "variance".
        nets: networks for each number of layers and width.
        layers, widths: measured by sums over all states, each with each.
        sampled_layers, sampled_widths: measured by samples, each with each.
        samples, units: paths a network; units of the first layer that are looked at.
    """

    of: str = "bias"
    nets: int = 400
    layers: tuple[int, ...] = (1, 2, 3, 4, 5)
    widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10)
    sampled_layers: tuple[int, ...] = (2, 3)
    sampled_widths: tuple[int, ...] = (8, 16, 24, 32, 48, 64)
    samples: int = 1000
    units: int = 8

    def check(self) -> None:
        """Refuse, before any work, what cannot be measured.

        Raises:
            ValueError: an unknown law; counts below their least; a width that cannot be enumerated
                or cannot be sampled; a number that is named twice.
        """
        if self.of not in LAWS:
            raise ValueError(f"of must be one of {sorted(LAWS)}, got {self.of!r}")
        check_count("nets", self.nets, least=2)
        check_count("samples", self.samples, least=2)
        check_count("units", self.units)
        for name in ("layers", "widths", "sampled_layers", "sampled_widths"):
            values = list(getattr(self, name))
            least = 2 if name == "sampled_layers" else 1
            for value in values:
                check_count(name, value, least=least)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name numbers, each once, got {values}")
        if wide := [n for n in self.widths if n > MOST_EXACT]:
            raise ValueError(
                f"widths must be at most {MOST_EXACT} to sum over all states, got {wide}; give "
                "them as sampled-widths"
            )
        if odd := [n for n in self.sampled_widths if n % 2]:
            raise ValueError(f"sampled-widths must be even, got {odd}")

    def cells(self) -> Iterator[tuple[int, int, str]]:
        """(layers, width, method) in the order of the rows."""
        for layers in self.layers:
            for width in self.widths:
                yield layers, width, "exact"
        for layers in self.sampled_layers:
            for width in self.sampled_widths:
                yield layers, width, "samples"

    def found(self, layers: int, width: int, method: str) -> list[Found]:
        """What each network gives."""
        problems = [problem(layers, width, index) for index in range(self.nets)]
        if method == "exact":
            return [exact(p, self.of) for p in problems]
        units = min(self.units, width)
        return [
            sampled(p, self.of, self.samples, units, generator(
                "cpu", f"width law, {self.of}", layers=layers, width=width, index=index,
            ))
            for index, p in enumerate(problems)
        ]  # fmt: skip


def run(grid: Grid, show: bool = False) -> Row:
    """The measurement, its rows printed as they come if ``show``.

    Raises:
        ValueError: see :meth:`Grid.check`; before any work.
    """
    grid.check()
    law, rows = LAWS[grid.of], []
    for layers, width, method in grid.cells():
        found = grid.found(layers, width, method)
        for name in law.estimators:
            rows.append(_row(law, name, found))
            rows[-1] |= {"layers": layers, "width": width, "method": method}
            if show:
                print("{layers} x {width:2d}  {estimator:20}{0:10.5f} +- {se:.5f}".format(
                    rows[-1][law.field], **rows[-1]))  # fmt: skip
    rows += list(_fits(law, rows))
    return measurement.record(
        kind=law.kind, command=_command(grid), device=measurement.describe_device(),
        seeds=range(grid.nets), checks=_checks(law, rows), rows=rows,
    )  # fmt: skip


def _row(law: Law, name: str, found: Sequence[Found]) -> Row:
    """A point: sqrt(sum b^2/sum g^2), or sum Var/sum g^2, with its error.

    A squared bias estimated from samples may be negative; then the point is at 0 and its error the
    root of the square's.
    """
    value, se = ratio([x.values[name] for x in found], [x.gradient2 for x in found])
    if abs(value) < ROUNDING:  # exact in every network
        value = se = 0.0
    point: Row = {"part": "width", "estimator": name, "nets": len(found)}
    if law.power == 1:
        return point | {law.field: value, "se": se}
    root = math.sqrt(max(value, 0.0))
    error = se / (2 * root) if value > se else math.sqrt(se)
    return point | {law.field: root, "se": error, "square": value, "square_se": se}


def _fits(law: Law, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Powers of the width, for each estimator and number of layers; exact points before sampled."""
    value, se = (law.field, "se") if law.power == 1 else ("square", "square_se")
    for name in law.estimators:
        for layers in sorted({r["layers"] for r in rows}):
            own = [r for r in rows if (r["estimator"], r["layers"]) == (name, layers)]
            by_width = {r["width"]: r for r in reversed(own) if r["width"] >= FIT_FROM}
            points = [(n, r[value], r[se]) for n, r in sorted(by_width.items())]
            if found := fit(points, law.power):
                ends = {"least": points[0][0], "most": points[-1][0]}
                yield {"part": "fit", "estimator": name, "layers": layers} | found | ends


def _checks(law: Law, rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the two methods agree, to four standard errors, where both were used."""
    points = [r for r in rows if r["part"] == "width"]
    of = {(r["method"], r["estimator"], r["layers"], r["width"]): r for r in points}
    pairs = [(of["exact", *key], r) for (method, *key), r in of.items()
             if method == "samples" and ("exact", *key) in of]  # fmt: skip
    return {
        "both methods agree": all(
            abs(x[law.field] - y[law.field]) < 4 * math.hypot(x["se"], y["se"]) for x, y in pairs
        )
    }


def _command(grid: Grid) -> str:
    """The command line that repeats the measurement: the law, and what is not the default."""
    words = [f"--of {grid.of}"] + [
        f"--{field.name.replace('_', '-')} {as_typed(getattr(grid, field.name))}"
        for field in fields(grid)
        if field.name != "of" and getattr(grid, field.name) != field.default
    ]
    return " ".join(["python -m sbnlib.experiments.width_law", *words])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.width_law", description=(__doc__ or "").split("\n")[0]
    )
    grid = Grid()
    add_option(parser, "of", grid.of, f"what is measured: {', '.join(LAWS)}", choices=sorted(LAWS))
    add_option(parser, "nets", grid.nets, "random networks for each depth and width, at least 2")
    add_option(parser, "layers", grid.layers, "depths at which all states are summed")
    words = f"widths at which all states are summed, at most {MOST_EXACT}"
    add_option(parser, "widths", grid.widths, words)
    add_option(parser, "sampled_layers", grid.sampled_layers, "depths that are sampled")
    add_option(parser, "sampled_widths", grid.sampled_widths, "widths that are sampled, even")
    add_option(parser, "samples", grid.samples, "paths a network, at least 2")
    add_option(parser, "units", grid.units, "units of the first layer that are looked at")
    add_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in options.items()
    }
    grid = Grid(**given)
    with refusing(parser, ValueError):
        grid.check()
        if out:
            measurement.check_writable(out)
    with threads(1):
        result = run(grid, show=True)
    for row in (r for r in result["rows"] if r["part"] == "fit"):
        print("{estimator:20}{layers} layers: width^{exponent:.3f} +- {se:.3f}, chi2 {chi2:.1f} "
              "on {dof}".format(**row))  # fmt: skip
    if out:
        measurement.write(out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
