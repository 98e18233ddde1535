"""What :func:`sbnlib.map.place` found: numbers, ranks, the line to cite, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sbnlib.map.problem_set import NAME, SHA256
from sbnlib.map.stored import results

__all__ = ["QUANTITIES", "Found", "check_one_of"]

#: What is measured, in the order of a report's columns; ``along`` stands in its JSON only.
QUANTITIES = ("bias2", "variance", "mse", "efficiency", "cosine", "along")

Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The numbers and the words of a report; :class:`sbnlib.map.Report` has the attributes."""

    name: str
    kind: str
    entry: str | None
    sampled: str
    samples: int
    command: str
    versions: dict[str, str]
    rows: tuple[Row, ...]

    def row(self, problem: str) -> Row:
        """The row of the problem of this name.

        Raises:
            ValueError: the report has no such problem; the message lists those that it has.
        """
        for row in self.rows:
            if row["problem"] == problem:
                return row
        known = ", ".join(row["problem"] for row in self.rows)
        raise ValueError(f"problem must be one of the report's, {known}; got {problem!r}")

    @property
    def citation(self) -> str:
        """The line by which the numbers can be cited and checked."""
        versions = ", ".join(f"{name} {v}" for name, v in self.versions.items())
        return f"{self.name} on {NAME} (sha256 {SHA256}), {versions}: {self.command}"

    def rank(self, problem: str, *, by: str = "efficiency", layers: str = "all") -> tuple[int, int]:
        """The place among the registry's estimators, and of how many: 1 is the best.

        Args:
            problem: its name.
            by: ``"efficiency"``, where the largest is the best: it has the least error at the best
                length; or ``"mse"``, ``"bias2"``, ``"variance"``, where the smallest is. Of one
                sample, whatever it costs.
            layers: ``"all"`` or ``"first"``.

        Raises:
            ValueError: ``by`` or ``layers`` is another word, or the report has no such problem.
        """
        check_one_of("by", by, QUANTITIES[:4])
        check_one_of("layers", layers, ("all", "first"))
        own = self.row(problem)[layers][by][0]
        others = [
            row[layers][by][0]
            for name, rows in results().items()
            for row in rows
            if name != self.entry and row["problem"] == problem
        ]
        sign = -1 if by == "efficiency" else 1
        return 1 + sum(sign * other < sign * own for other in others), 1 + len(others)

    def json(self) -> str:
        """The report as JSON, one row a line: the same text whenever it is made again."""
        head = {
            "problems": NAME,
            "sha256": SHA256,
            "estimator": self.name,
            "kind": self.kind,
            "entry": self.entry,
            "moments": f"{self.samples} samples" if self.sampled else "exact",
            "why_sampled": self.sampled,
            "cite": self.citation,
            "command": self.command,
            "versions": self.versions,
        }
        rows = ",\n  ".join(json.dumps(row | self._ranks(row)) for row in self.rows)
        text = json.dumps(head, indent=1, ensure_ascii=False)
        return f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'

    def _ranks(self, row: Row) -> Row:
        ranks = {of: self.rank(row["problem"], layers=of) for of in ("first", "all")}
        return {"rank_by_efficiency": {of: list(rank) for of, rank in ranks.items()}}

    def __str__(self) -> str:
        """A table in plain text."""
        lines = [f"{'problem':22}{'bias²':>9}{'variance':>10}{'error':>9}{'efficiency':>12}  place"]
        for row in self.rows:
            bias2, variance, mse, efficiency = (row["all"][q][0] for q in QUANTITIES[:4])
            numbers = f"{bias2:9.3g}{variance:10.3g}{mse:9.3g}{efficiency:12.3g}"
            place, of = self.rank(row["problem"])
            lines.append(f"{row['problem']:22}{numbers}  {place} of {of}")
        return "\n".join(lines)


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
