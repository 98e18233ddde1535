"""What :func:`sbnlib.map.place` found: numbers, ranks, the line to cite, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sbnlib.map.problem_set import NAME, SHA256
from sbnlib.map.stored import results

__all__ = ["QUANTITIES", "Found", "check_one_of"]

#: The columns of a report, in order.
QUANTITIES = ("bias2", "variance", "mse", "cosine")

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

    def rank(self, problem: str, *, by: str = "mse", layers: str = "all") -> tuple[int, int]:
        """The place among the registry's estimators, and of how many: 1 is the smallest.

        Args:
            problem: its name.
            by: ``"mse"``, ``"bias2"`` or ``"variance"``, of one sample.
            layers: ``"all"`` or ``"first"``.

        Raises:
            ValueError: ``by`` or ``layers`` is another word, or the report has no such problem.
        """
        check_one_of("by", by, QUANTITIES[:3])
        check_one_of("layers", layers, ("all", "first"))
        own = self.row(problem)[layers][by][0]
        others = [
            row[layers][by][0]
            for name, rows in results().items()
            for row in rows
            if name != self.entry and row["problem"] == problem
        ]
        return 1 + sum(other < own for other in others), 1 + len(others)

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
        return {"rank_by_mse": {of: list(rank) for of, rank in ranks.items()}}

    def __str__(self) -> str:
        """A table in plain text."""
        head = f"{'problem':28} {'bias²':>10} {'variance':>10} {'mse':>10} {'cosine':>7} place"
        lines = [head]
        for row in self.rows:
            values = [row["all"][q][0] for q in QUANTITIES]
            texts = [f"{v:10.3g}" for v in values[:3]]
            cosine = f"{values[3]:7.3f}" if values[3] is not None else f"{'–':>7}"
            place, of = self.rank(row["problem"])
            lines.append(f"{row['problem']:28} {' '.join(texts)} {cosine} {place} of {of}")
        return "\n".join(lines)


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
