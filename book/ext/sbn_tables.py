"""Measurement files as tables: what a file of each kind shows, and how its numbers are written.

Nothing here knows Sphinx: a record, as ``measurement.read`` returns it, becomes a ``Drawing`` of
facts, notes and tables whose cells are text. A record is refused whole (``Undrawable``) if its kind
is unknown, if a row lacks a field or has another form than ``FORMS`` says, or if a row contradicts
itself; no row is left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Row = Mapping[str, Any]
NONE = "–"


class Undrawable(ValueError):
    """The record cannot be drawn; the message says why."""


@dataclass(frozen=True)
class Cell:
    """A name in code type, words, and smaller words on a line of their own."""

    code: str = ""
    text: str = ""
    small: str = ""
    loud: bool = False


@dataclass(frozen=True)
class Table:
    """A table; ``name`` ends its id, and the columns after the first hold numbers."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Drawing:
    """What the page shows of a file beside what every file has."""

    tables: Sequence[Table]
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


# ---- numbers -----------------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def rounded(value: float, digits: int = 3) -> str:
    """``value`` to so many significant digits, never with an exponent: 12.4, 0.602, 2110."""
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return signed(f"{value:.{max(places, 0)}f}")


def signed(text: str) -> str:
    """The text of a number with a minus sign for its hyphen."""
    return text.replace("-", "−")


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Three digits in the largest unit of which there is at least one, rounding included."""
    found = [(rounded(value / size), unit) for size, unit in units]
    number, unit = next(((n, u) for n, u in found if float(n) >= 1), found[-1])
    return f"{number}\u00a0{unit}"


def duration(seconds: float) -> str:
    return _scaled(seconds, SECONDS)


def size(count: float) -> str:
    """Bytes, in powers of a thousand."""
    return _scaled(count, BYTES)


def times(ratio: float) -> str:
    return f"{rounded(ratio)}×"


def percent(share: float, se: float | None) -> str:
    """A share in percent, with its standard error if it has one."""
    shown = f"{signed(f'{100 * share:.2f}')}"
    return shown if se is None else f"{shown} ± {100 * se:.2f}"


def difference(share: float, se: float | None) -> str:
    """As ``percent``, with its sign."""
    shown = percent(share, se)
    return shown if share < 0 else f"+{shown}"


def probability(p: float | None) -> str:
    """A p-value to three places."""
    return NONE if p is None else "< 0.001" if p < 0.0005 else f"{p:.3f}"


def count(number: int) -> str:
    """A whole number: as a power of two or ten if it is a large one, else in groups of three."""
    for base, least in ((2, 16), (10, 5)):
        power = round(math.log(number, base)) if number > 0 else 0
        if power >= least and base**power == number:
            return f"{base}{str(power).translate(SUPERSCRIPTS)}"
    return f"{number:,}".replace(",", "\u202f") if number >= 10_000 else str(number)


def tiny(value: float, digits: int = 2) -> str:
    """A relative difference, as 8.9 · 10⁻¹⁴."""
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}\u00a0·\u00a010{str(int(power)).translate(SUPERSCRIPTS)}"


def setting(value: float) -> str:
    """A number that was chosen, such as a learning rate: 10⁵, 0.003, 10⁻⁵, 3 · 10⁻⁵."""
    if value == int(value):
        return signed(count(int(value)))
    if abs(value) >= 1e-4:
        return signed(f"{value:g}")
    return signed(tiny(value, 1).removeprefix("1\u00a0·\u00a0"))


# ---- the form of rows --------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "number": _is_number,
    "count": lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    "verdict": lambda v: isinstance(v, bool),
    "pair": lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)),
    "object": lambda v: isinstance(v, dict),
    "shares": lambda v: isinstance(v, dict) and all(map(_is_number, v.values())),
    "list": lambda v: isinstance(v, list),
}
_TRAINED = {"lr": "number", "seed": "count"}
_CLASSIFIED = _TRAINED | {"model": "text", "init_gain": "number", "validation": "shares"}
_MEAN = {"mean": "number", "se": "number or null"}
_MEAN |= {"images": "count or none", "image_se": "number or none"}  # since 0.2.0, as Welch's test
_WELCH = {"minus_twin_df": "number or none", "minus_twin_p": "number or none"}
_SUMMARY = {"model": "text", "prediction": "text"} | _MEAN
_POINT = {"estimator": "text", "layers": "count", "width": "count", "nets": "count"}
_POWER = {"estimator": "text", "layers": "count", "exponent": "number", "se": "number"}
_POWER |= {"chi2": "number", "dof": "count", "least": "count", "most": "count"}
_POINT |= {"method": "text", "se": "number"}
_TIMED = {"seconds": "number", "spread": "number"}
_RATIO = _TIMED | {"elements": "count", "copy_seconds": "number", "ratio": "number"}
_AGAINST_CPU = {"cpu_seconds": "number", "ratio": "number"}

_DEEP = {"depth": "count", "width": "count", "noise": "text", "relative_scale": "number"}
_DEEP |= {"estimator": "text", "norm": "text", "residual": "verdict", "gain": "number"}
_DEEP |= {"lr": "number", "ten": "list", "data": "text or none"}

DEEP_PARTS = ("grid", "widths", "noises", "rescaled", "cures", "held-out", "fashion")

_CONTENDER = {"name": "text", "label": "text", "kind": "text", "estimator": "text"}
_CONTENDER |= {"noise": "text", "noise_scale": "number or null", "weights": "text"}
_CONTENDER |= {"hidden": "list", "rates": "list", "seeds": "count", "images": "count"}
_CONTENDER |= {"twin": "text"}
_RATED = {"name": "text", "lr": "number", "seed": "count"}
_MOMENT = {"seed": "count", "epoch": "count", "estimator": "text", "layer": "text"}

_SIDES = {"rounds": "count", "seconds": "object"}
_CODER = {"data": "text"} | _RATED
_LOOK = {"bits": "count", "trained": "text", "seed": "count", "epoch": "count", "estimator": "text"}

#: Of a summary beside a twin; the twin has none of them, the others all.
_CHARACTER_DIFFERENCE = (
    "minus_twin", "minus_twin_se", "minus_twin_df", "minus_twin_p", "minus_twin_text_se", "time",
)  # fmt: skip


def _estimated(*names: str) -> dict[str, str]:
    """Numbers with their standard errors, null where they are not told."""
    return {f"{name}{end}": "number or null" for name in names for end in ("", "_se")}


#: kind -> part of a row ("" where rows have none) -> field -> what it holds. "or null": the field
#: is there and may be null; "or none": it may be missing too.
FORMS: dict[str, dict[str, dict[str, str]]] = {
    "bench": {
        "": {"row": "text", "ours": "text", "other": "text", "target": "text"}
        | {"ours_s": "pair or null", "other_s": "pair or null", "ratio": "number or null"}
        | {"ratio_of_medians": "number or null", "met": "verdict or null"}
        | {"details": "object", "load": "pair"},
    },
    "exact-cost": {
        "": {"layers": "count", "width": "count", "way": "text", "terms": "count"}
        | {"seconds": "number"},
    },
    "classify": {
        "search": _CLASSIFIED,
        "final": _CLASSIFIED | {"test": "shares"},
        "summary": _SUMMARY | {"minus_twin": "number", "minus_twin_se": "number or null"} | _WELCH,
        "summary, twin": _SUMMARY,
    },
    "binary weights": {
        "search": _TRAINED | {"method": "text", "other": "number", "validation": "number"},
        "final": _TRAINED | {"method": "text", "other": "number", "test": "number"},
        "summary": {"method": "text"}
        | _MEAN
        | {"minus_twin": "number or none", "minus_twin_se": "number or none"}
        | _WELCH,
    },
    "width law": {
        "width": _POINT | {"relative_bias": "number", "square": "number", "square_se": "number"},
        "fit": _POWER,
    },
    "variance law": {"width": _POINT | {"relative_variance": "number"}, "fit": _POWER},
    "how deep": {
        "predictions": {"name": "text", "says": "text"},
        **dict.fromkeys(DEEP_PARTS, _DEEP),
    },
    "contenders": {
        "contender": _CONTENDER,
        "search": _RATED | {"validation": "number", "validation_loss": "number"},
        "final": _RATED | dict.fromkeys(("validation", "test", "nll", "ece"), "shares"),
        "summary": {"name": "text", "prediction": "text", "mean": "number", "se": "number or null"}
        | {"images": "count", "image_se": "number"}
        | {"minus_twin": "number or none", "minus_twin_se": "number or none"}
        | _WELCH,
        "gradients": _MOMENT | _estimated("one", "many"),
        "reference": _MOMENT | {"length": "number", "samples": "count", "se": "number or null"},
        "candidate": _MOMENT | {"evaluations": "count", "deviation": "number or null"},
        "exact": _MOMENT
        | {"length": "number", "samples": "count"}
        | _estimated("bias2", "variance", "cosine"),
    },
    "packing": {
        "product": {"inputs": "count", "outputs": "count", "batch": "count", "same": "verdict"}
        | _SIDES,
        "network": {"batch": "count"} | _SIDES,
        "profile": {"side": "text", "layer": "count", "kind": "text", "batch": "count"}
        | {"seconds": "pair"},
        "memory": {"form": "text", "arrays": "count"}
        | {"file": "count or null", "peak_mib": "number or null"},
        "memory, layers": {"form": "text", "layers": "shares"},
        "prediction": {"data": "text", "images": "count", "right": "count"}
        | {"same": "count", "same_int8": "count"},
        "bandwidth": {"bytes": "count", "seconds": "pair"},
    },
    "autoencoders": {
        "search": _CODER | {"validation": "number or null"},
        "final": _CODER | {"train": "shares", "test": "shares"},
        "curve": _CODER | {"epoch": "count", "train": "number", "test": "number"},
        "summary": {"data": "text", "name": "text", "seeds": "count"}
        | {"train": "shares", "test": "shares", "train_se": "object", "test_se": "object"},
        "gradients": _LOOK | {"deviation": "number or null"} | _estimated("one", "many"),
        "reference": _LOOK | {"length": "number", "samples": "count", "se": "number or null"},
        "retrieval": {"name": "text", "bits": "count", "seed": "count", "code": "text"}
        | {"within": "list or null", "empty": "list or null"}
        | {"nearest": "number", "map": "number or null"},
    },
    "improvements": {
        "widths": {"estimator": "text", "depth": "count", "width": "count", "evaluations": "count"}
        | {"lr": "number", "searched": "list"}
        | dict.fromkeys(("loss", "test_loss", "ten"), "list"),
        "optimal-s": {"depth": "count", "inputs": "count", "samples": "count", "estimator": "text"}
        | {"error": "number", "se": "number", "omega": "number or null"},
        "gauge": {"seed": "count", "epoch": "count", "estimator": "text"}
        | {"bias2": "number", "variance": "number"},
        "latent": {"rounding": "text", "bits": "count", "lr": "number", "searched": "list"}
        | {"sign": "list", "at_ends": "number"},
    },
    "characters": {
        "text": {"name": "text", "characters": "shares", "different": "count"},
        "search": _RATED | {"validation": "number or null", "said": "text or none"},
        "final": _RATED
        | {"validation": "number", "test": "number", "blocks": "list", "seconds": "number"}
        | dict.fromkeys(("drawn", "mean", "zeros", "moved"), "number or null"),
        "summary": {"name": "text", "lr": "number", "seconds": "number", "bytes": "count"}
        | {"mean": "number", "se": "number or null", "text_se": "number or null"}
        | dict.fromkeys(("drawn", "mean_weights", "zeros", "moved"), "number or null")
        | dict.fromkeys(_CHARACTER_DIFFERENCE, "number or none"),
        "doctor": {"name": "text", "units": "count", "codes": "list"},
    },
    "gpu": {
        "environment": {"name": "text", "cuda": "text", "torch": "text", "cpu": "text"},
        "section": {"name": "text", "seconds": "number"},
        "left out": {"sections": "list", "budget": "number"},
        "error": {"section": "text", "error": "text"},
        "copy": _TIMED | {"bytes": "count", "gigabytes_per_second": "number"},
        "bf16 product": _TIMED | {"n": "count", "teraflops": "number"},
        "int8 product": _TIMED | {"n": "count", "bf16_seconds": "number", "ratio": "number"},
        "frequencies": {"noise": "text", "draws": "count", "largest_z": "number"}
        | {"limit": "number"},
        "rare events": {"draws": "count", "found": "count", "expected": "number"}
        | {"limit": "number"},
        "sample_sign": _RATIO,
        "straight_through": _RATIO
        | {"how": "text", "direction": "text", "bytes_an_element": "count"},
        "straight_through, not compiled": {"how": "text", "error": "text"},
        "fused sampler": {"backend": "text"},
        "fused parity": {"noise": "text", "draws": "count", "flips": "count", "limit": "number"},
        "fused tails": {"logit": "number", "draws": "count", "found": "count"}
        | {"expected": "number", "least": "count", "most": "count"},
        "fused beyond int32": {"units": "count"},
        "fused beyond int32, left out": {"units": "count", "left_out": "text"},
        "fused": _RATIO | {"what": "text", "bytes_an_element": "count"},
        "measure": _TIMED
        | _AGAINST_CPU
        | {"estimator": "text", "samples": "count", "largest_z": "number", "limit": "number"}
        | {"peak_bytes": "count or null"},
        "measure, memory": {"samples": "count", "peak_bytes": "count"},
        "live frame": _TIMED | {"what": "text", "count": "count"},
        "search": {"trainings": "count", "net": "text", "seconds": "number"}
        | {"one_by_one_seconds": "number", "ratio": "number"},
        "search, not run": {"error": "text"},
        "exact_gradient": _TIMED
        | {name: f"{kind} or none" for name, kind in _AGAINST_CPU.items()}
        | {"units": "count", "layers": "count", "peak_bytes": "count or null"}
        | {"difference": "number or none"},
        "exact_gradient, left out": {"units": "count", "left_out": "text"},
        "estimator": {"name": "text", "samples": "count", "seconds_once": "number"}
        | {"largest_z": "number", "limit": "number"},
    },
}


def part_of(row: Row) -> str:
    """What the row is about; the twin and rows without numbers are parts of their own."""
    part = row.get("part", "")
    if part == "summary" and row.get("model") == "tanh":
        return f"{part}, twin"
    if part == "memory" and "layers" in row:
        return f"{part}, layers"
    if part == "straight_through" and "error" in row:
        return f"{part}, not compiled"
    if part == "search" and "error" in row:
        return f"{part}, not run"
    if part in ("exact_gradient", "fused beyond int32") and "left_out" in row:
        return f"{part}, left out"
    return part


def _parted(record: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows by their parts, each checked against its form."""
    forms = FORMS[record["kind"]]
    parts: dict[str, list[Row]] = {part: [] for part in forms}
    for k, row in enumerate(record["rows"]):
        part = part_of(row)
        if part not in forms:
            raise Undrawable(f"row {k}: no file of kind {record['kind']!r} has a part {part!r}")
        faults = [f for name, form in forms[part].items() if (f := _fault(row, name, form))]
        if faults:
            raise Undrawable(f"row {k}: {'; '.join(faults)}")
        parts[part].append(row)
    return parts


def _fault(row: Row, name: str, form: str) -> str:
    wanted, _, leave = form.partition(" ")
    if name not in row:
        return "" if leave == "or none" else f"{name!r} is missing"
    if row[name] is None and leave:
        return ""
    return "" if CHECKS[wanted](row[name]) else f"{name!r} is not a {wanted}: {row[name]!r}"


# ---- bench -------------------------------------------------------------------------------------


def bench(parts: Mapping[str, list[Row]]) -> Drawing:
    rows = parts[""]
    lost = [row["row"] for row in rows if not _has_something(row)]
    if lost:
        raise Undrawable(f"nothing to draw in {', '.join(lost)}")
    alike, others = _grouped([r for r in rows if not r["target"] and _is_comparison(r)])
    tables = [
        _targets(rows),
        _others(others, rows),
        *(_series(*group) for group in alike.items()),
        _probes(rows),
        *map(_costs, filter(_axis, rows)),
    ]
    return Drawing([table for table in tables if table.rows])


def _has_something(row: Row) -> bool:
    details = row["details"]
    has_words = "probes" in details or "not installed" in details
    return row["ratio"] is not None or has_words or bool(_axis(row))


def _is_comparison(row: Row) -> bool:
    return row["ratio"] is not None or "not installed" in row["details"]


def _grouped(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], list[Row]], list[Row]]:
    """Three or more rows that differ in a name only, by what they share; and all others."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in (r for r in rows if r["ratio"] is not None):
        shared = row["ours"].replace(f", {_own_name(row)},", ","), row["other"]
        groups.setdefault(shared, []).append(row)
    alike = {key: group for key, group in groups.items() if len(group) >= 3}
    return alike, [row for row in rows if not any(row in group for group in alike.values())]


def _own_name(row: Row) -> str:
    """``zgr`` of a row ``step-zgr``."""
    return row["row"].partition("-")[2]


def _targets(rows: Iterable[Row]) -> Table:
    return Table(
        "targets",
        "The rows that have a target. The times are the shortest of all runs, and their ratio is "
        "held against the target; the ratio of the medians is under it.",
        ["What, against what", "Ours", "The other", "Ratio", "Target"],
        [[*_compared(row), _verdict(row)] for row in rows if row["target"]],
    )


def _others(shown: Iterable[Row], rows: Iterable[Row]) -> Table:
    return Table(
        "others",
        "The rows without a target. A loop “by hand” draws the same samples without the library.",
        ["What, against what", "Ours", "The other", "Ratio"],
        [*map(_compared, shown), *(_by_hand(row) for row in rows if "by_hand" in row["details"])],
    )


def _series(shared: tuple[str, str], rows: Iterable[Row]) -> Table:
    ours, other = shared
    return Table(
        _stem(rows),
        f"{_capital(ours)}, against {other}: the shortest times, their ratio, the ratio of the "
        "medians, and the load of the machine.",
        [_what(rows), "Ours", "The other", "Ratio", "Of medians", "Load"],
        [
            [
                Cell(_own_name(row)),
                *_shortest(row["ours_s"], row["other_s"]),
                _speed(row),
                NONE if row["ratio_of_medians"] is None else times(row["ratio_of_medians"]),
                _load(row),
            ]
            for row in rows
        ],
    )


def _what(rows: Iterable[Row]) -> str:
    """What the names of a series are: rows of estimators say how often each evaluates the loss."""
    return "Estimator" if all("evaluations" in row["details"] for row in rows) else "Row"


def _stem(rows: Iterable[Row]) -> str:
    return next(iter(rows))["row"].partition("-")[0]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _compared(row: Row) -> list[str | Cell]:
    """What is compared, both times and their ratio."""
    what = _against(row, row["other"])
    if row["ratio"] is None:
        reason = "not installed" if "not installed" in row["details"] else ""
        return [what, NONE, NONE, Cell(text="not run", small=reason)]
    ratio = Cell(text=_speed(row), small=_medians(row["ratio_of_medians"]))
    return [what, *_shortest(row["ours_s"], row["other_s"]), ratio]


def _by_hand(row: Row) -> list[str | Cell]:
    found, seconds = row["details"]["by_hand"], row["details"]["by_hand_s"]
    ratio = Cell(text=f"{times(found['ratio'])} as fast", small=_medians(found["ratio_of_medians"]))
    return [_against(row, "the same loop by hand"), *_shortest(row["ours_s"], seconds), ratio]


def _against(row: Row, other: str) -> Cell:
    return Cell(row["row"], "", f"{row['ours']}, against {other}; load {_load(row)}")


def _medians(ratio: float | None) -> str:
    return "" if ratio is None else f"medians {times(ratio)}"


def _shortest(*pairs: Sequence[float] | None) -> list[str]:
    """The shortest time of each side, from pairs of it and the median."""
    return [NONE if pair is None else duration(pair[0]) for pair in pairs]


def _speed(row: Row) -> str:
    """The ratio in words. It is of the other's time to ours, or of ours to the other's."""
    ours, other, shown = row["ours_s"], row["other_s"], times(row["ratio"])
    if ours is None or other is None:
        return shown
    if math.isclose(row["ratio"], other[0] / ours[0]):
        return f"{shown} as fast"
    if math.isclose(row["ratio"], ours[0] / other[0]):
        return f"{shown} the time"
    raise Undrawable(f"{row['row']}: the ratio is not that of its times")


def _verdict(row: Row) -> Cell:
    """Whether the target is met, worked out anew."""
    sense, bound = row["target"].split()
    ratio, limit = row["ratio"], float(bound)
    met = None if ratio is None else ratio >= limit if sense == ">=" else ratio <= limit
    if sense not in (">=", "<=") or met != row["met"]:
        raise Undrawable(f"{row['row']}: 'met' does not follow from the ratio and the target")
    words = {True: "met", False: "not met", None: "not measured"}[met]
    return Cell(text=words, small=f"{'≥' if sense == '>=' else '≤'} {bound}×", loud=met is False)


def _load(row: Row) -> str:
    """The load of the machine before and after, once if it did not change."""
    return " to ".join(dict.fromkeys(f"{value:.1f}" for value in row["load"]))


def _probes(rows: Iterable[Row]) -> Table:
    return Table(
        "probes",
        "Single runs, each in a process of its own.",
        ["What", "Run", "Time", "Peak memory"],
        [line for row in rows for line in _probes_of(row)],
    )


def _probes_of(row: Row) -> Iterator[list[str | Cell]]:
    """A line a probe; the first says what the row is."""
    words = row["ours"]
    for name, found in row["details"].get("probes", {}).items():
        run = f"{count(int(name))} samples" if name.isdigit() else name
        memory = f"{rounded(found['peak_mib'])} MiB"
        yield [Cell(row["row"], "", words), run, duration(found["seconds"]), memory]
        words = ""


def _axis(row: Row) -> str:
    """The name of the quantity along which a row of costs runs; nothing for other rows."""
    lists = [name for name, value in row["details"].items() if isinstance(value, list)]
    return "" if row["ratio"] is not None or not lists else lists[0]


def _costs(row: Row) -> Table:
    axis, details = _axis(row), row["details"]
    if len({len(values) for values in details.values()}) > 1:
        raise Undrawable(f"{row['row']}: its lists differ in length")
    return Table(
        row["row"],
        f"{_capital(row['ours'])}: its time over that of {row['other']} ({row['row']}; load "
        f"{_load(row)}).",
        [f"Estimator; {axis}:", *map(str, details[axis])],
        [[Cell(name), *(f"{v:.2f}×" for v in values)]
         for name, values in details.items() if name != axis],
    )  # fmt: skip


# ---- exact-cost --------------------------------------------------------------------------------

WAYS = {
    "enumeration": "Enumeration",
    "layers": "Layer after layer, full tables",
    "library": "exact_expectation",
}


def exact_cost(parts: Mapping[str, list[Row]]) -> Drawing:
    at = {(row["layers"], row["width"], row["way"]): row for row in parts[""]}
    unknown = {way for *_, way in at} - set(WAYS)
    if unknown:
        raise Undrawable(f"unknown way {', '.join(sorted(unknown))}")
    table = Table(
        "widest",
        "For each number of layers, the widest net to which all three ways were put and the widest "
        "of all. The times are the shortest of five runs.",
        ["Net", *WAYS.values(), "Enumeration over the last"],
        [_cost_line(at, *net) for net in _widest(at)],
    )
    return Drawing([table])


def _widest(at: Mapping[tuple[int, int, str], Row]) -> list[tuple[int, int]]:
    """(layers, width) of the widest net that all ways were put to and of the widest of all."""
    nets = {(layers, width) for layers, width, _ in at}
    thrice = {net for net in nets if all((*net, way) in at for way in WAYS)}
    widest = {k: max(n for layers, n in nets if layers == k) for k, _ in nets}
    shared = {k: max(n for layers, n in thrice if layers == k) for k, _ in thrice}
    return sorted({*widest.items(), *shared.items()})


def _cost_line(at: Mapping[tuple[int, int, str], Row], layers: int, width: int) -> list[str | Cell]:
    rows = {way: at.get((layers, width, way)) for way in WAYS}
    cells = [
        Cell(text="not run") if row is None
        else Cell(text=duration(row["seconds"]), small=f"{count(row['terms'])} terms")
        for row in rows.values()
    ]  # fmt: skip
    slow, fast = rows["enumeration"], rows["library"]
    ratio = times(slow["seconds"] / fast["seconds"]) if slow and fast else NONE
    return [_net(layers, width), *cells, ratio]


def _net(layers: int, width: int) -> str:
    return f"{layers} layer{'s'[: layers > 1]} of {width}"


# ---- laws of width and depth -------------------------------------------------------------------

METHODS = {"exact": "all states", "samples": "by samples"}


def width_law(parts: Mapping[str, list[Row]]) -> Drawing:
    return _width_law(parts, "relative_bias", "Bias over the length of the gradient")


def variance_law(parts: Mapping[str, list[Row]]) -> Drawing:
    return _width_law(
        parts, "relative_variance", "Variance over the squared length of the gradient"
    )


def _width_law(parts: Mapping[str, list[Row]], field: str, what: str) -> Drawing:
    """A table for each number of layers, and one of the fitted powers."""
    rows = parts["width"]
    unknown = {row["method"] for row in rows} - set(METHODS)
    if unknown:
        raise Undrawable(f"unknown method {', '.join(sorted(unknown))}")
    tables = [
        Table(
            f"layers-{layers}",
            f"{what}, {_layers(layers)}, first layer: means over {_nets(rows, layers)} networks.",
            ["Width", *_names(rows)],
            list(_by_width([row for row in rows if row["layers"] == layers], field)),
        )
        for layers in sorted({row["layers"] for row in rows})
    ]
    fits = Table(
        "fits",
        "The power of the width that fits best, and how well: the sum of squared distances in "
        "standard errors, beside the number of points less two.",
        ["Estimator", "Layers", "Widths", "Exponent", "Squared distances"],
        [
            [Cell(r["estimator"]), str(r["layers"]), f"{r['least']} to {r['most']}",
             signed(f"{r['exponent']:.3f} ± {r['se']:.3f}"), f"{r['chi2']:.1f} on {r['dof']}"]
            for r in parts["fit"]
        ],
    )  # fmt: skip
    return Drawing([table for table in [*tables, fits] if table.rows])


def _layers(number: int) -> str:
    return f"{number} layer{'s'[: number > 1]}"


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["estimator"] for row in rows))


def _nets(rows: Iterable[Row], layers: int) -> str:
    """How many networks a mean has, one number for a table."""
    found = {row["nets"] for row in rows if row["layers"] == layers}
    if len(found) > 1:
        raise Undrawable(f"{_layers(layers)} with {sorted(found)} networks")
    return count(found.pop())


def _by_width(rows: Sequence[Row], field: str) -> Iterator[list[str | Cell]]:
    at = {(row["method"], row["width"], row["estimator"]): row for row in rows}
    for method, width in sorted({key[:2] for key in at}):
        cells = [at[method, width, name] for name in _names(rows)]
        numbers = [signed(_with_error(row[field], row["se"])) for row in cells]
        yield [Cell(text=str(width), small=METHODS[method]), *numbers]


def _with_error(value: float, se: float) -> str:
    """To the second digit of the error; an exact 0 is 0."""
    if se == 0:
        return rounded(value)
    places = max(0, 1 - math.floor(math.log10(se)))
    return f"{value:.{places}f} ± {se:.{places}f}"


# ---- classify and binary weights ---------------------------------------------------------------

PREDICTIONS = {
    "sign": "each unit in its more probable state",
    "one": "one sample",
    "ten": "class probabilities averaged over ten samples",
    "mean": "each unit at its mean",
    "tanh": "the twin",
}


def classify(parts: Mapping[str, list[Row]]) -> Drawing:
    rows = [*parts["summary"], *parts["summary, twin"]]
    table = Table(
        "accuracy",
        "Test accuracy in percent, and the difference to the tanh twin in percentage points; mean "
        f"and standard error over the seeds, {_test_of(rows)}.",
        ["Prediction", "Test accuracy, %", "Minus twin, points", "p"],
        [
            [Cell(row["prediction"], "", PREDICTIONS.get(row["prediction"], "")),
             percent(row["mean"], row["se"]), *_gap(row)]
            for row in rows
        ],
    )  # fmt: skip
    return Drawing([table], {"Settings": _settings(parts)} | _test_images(rows))


def _gap(row: Row) -> tuple[str, str]:
    """The difference to the twin, and its p-value."""
    gap, p = row.get("minus_twin"), row.get("minus_twin_p")
    return NONE if gap is None else difference(gap, row["minus_twin_se"]), probability(p)


def _test_of(rows: Sequence[Row]) -> str:
    by_welch = any(row.get("minus_twin_p") is not None for row in rows)
    return "p of Welch’s test" if by_welch else "paired by seed for the difference"


def _test_images(rows: Sequence[Row]) -> dict[str, str]:
    """How many there are, and what another draw of as many would change."""
    known = [row for row in rows if row.get("image_se") is not None and row.get("images")]
    if not known:
        return {}
    images, worst = known[0]["images"], max(row["image_se"] for row in known)
    words = f"{count(images)}; another draw of as many moves an accuracy by about"
    return {"Test images": f"{words} {100 * worst:.2f} points (one standard error at most)"}


def _settings(parts: Mapping[str, list[Row]]) -> str:
    """How many settings were tried, and which was chosen, for each model."""
    words = []
    for model in dict.fromkeys(row["model"] for row in parts["final"]):
        chosen = [row for row in parts["final"] if row["model"] == model][0]
        tried = sum(row["model"] == model for row in parts["search"]) or 1
        words.append(
            f"{model}: {tried} tried, chosen learning rate {setting(chosen['lr'])}, "
            f"initial gain {setting(chosen['init_gain'])}"
        )
    return "; ".join(words)


def weights(parts: Mapping[str, list[Row]]) -> Drawing:
    from sbnlib.experiments.weights import METHODS

    rows = parts["summary"]
    table = Table(
        "accuracy",
        "Test accuracy in percent, and the difference to the twin with real weights in percentage "
        f"points; mean and standard error over the seeds, {_test_of(rows)}.",
        ["Method", "Setting", "Test accuracy, %", "Minus twin, points", "p"],
        [
            [Cell(row["method"], "", METHODS[row["method"]].label if row["method"] in METHODS
                  else ""), _chosen(parts, row["method"]), percent(row["mean"], row["se"]),
             *_gap(row)]
            for row in rows
        ],
    )  # fmt: skip
    tried = {sum(r["method"] == row["method"] for r in parts["search"]) for row in rows}
    settings = f"{' or '.join(map(str, sorted(tried)))} tried for each method"
    return Drawing([table], {"Settings": settings} | _test_images(rows))


def _chosen(parts: Mapping[str, list[Row]], method: str) -> str:
    """The setting with which the method was tested: learning rate, second number if it has one."""
    found = next((row for row in parts["final"] if row["method"] == method), None)
    if found is None:
        raise Undrawable(f"no final run of {method}")
    second = [setting(found["other"])] if found["other"] else []
    return ", ".join([setting(found["lr"]), *second])


# ---- how deep ----------------------------------------------------------------------------------

#: What networks may differ in, and how it is said; the first that has several values is across.
AXES: dict[str, Callable[[Any], str]] = {
    "relative_scale": setting,
    "depth": lambda depth: _layers(depth),
    "noise": str,
    "width": lambda width: f"{width} units",
    "residual": lambda residual: "residual" if residual else "plain",
    "estimator": str,
    "norm": lambda norm: "batch norm" if norm == "batch" else "no norm",
}


def how_deep(parts: Mapping[str, list[Row]]) -> Drawing:
    """What was predicted; the accuracies of each part, a table for each estimator and norm."""
    said = Table(
        "predictions",
        "What was written down before the runs.",
        ["Prediction", "In words"],
        [[row["name"], row["says"]] for row in parts["predictions"]],
    )
    tables = [said] if said.rows else []
    for part in (part for part in parts if part != "predictions" and parts[part]):
        rows = parts[part]
        kinds = dict.fromkeys((row["estimator"], row["norm"]) for row in rows)
        split = list(kinds) if part == "grid" else [None]
        tables += [_accuracies(part, rows, kind) for kind in split]
    return Drawing(tables)


def _values(rows: Iterable[Row], axis: str) -> list[Any]:
    return list(dict.fromkeys(row[axis] for row in rows))


def _accuracies(part: str, rows: Sequence[Row], kind: tuple[str, str] | None) -> Table:
    """One value of an axis a column, each combination of the others a line."""
    own = [r for r in rows if kind in (None, (r["estimator"], r["norm"]))]
    several = [axis for axis in AXES if len(_values(own, axis)) > 1]
    across, down = several[0], several[1:]
    columns = _values(own, across)
    at = {(tuple(r[axis] for axis in down), r[across]): r for r in own}
    if len(at) < len(own):
        raise Undrawable(f"two rows of one network in the part {part}")
    lines = [
        [", ".join(AXES[a](v) for a, v in zip(down, line, strict=True))]
        + [_mean_of(at[line, column]) if (line, column) in at else NONE for column in columns]
        for line in dict.fromkeys(line for line, _ in at)
    ]
    name = "-".join([part, *(kind or ())]).replace("_", "-")
    return Table(name, _about(own, across, kind), ["Network", *map(AXES[across], columns)], lines)


def _about(rows: Sequence[Row], across: str, kind: tuple[str, str] | None) -> str:
    words = "over the scale of the noise, relative to that of gain 1" * (across == "relative_scale")
    seeds = sorted({len(row["ten"]) for row in rows})
    which = f"{kind[0]}, {AXES['norm'](kind[1])}: test" if kind else "Test"
    names = sorted({str(row.get("data", "digits")) for row in rows})
    means = f"{', '.join(names)}; means over {' or '.join(map(str, seeds))} seeds"
    return f"{which} accuracy of ten samples in percent {words}".rstrip() + f"; {means}."


def _mean_of(row: Row) -> str:
    return f"{100 * sum(row['ten']) / len(row['ten']):.1f}"


# ---- contenders --------------------------------------------------------------------------------


def contenders(parts: Mapping[str, list[Row]]) -> Drawing:
    """The ways of the part train; directions along a training; exact bias in a small net."""
    for row in parts["summary"]:
        if ("minus_twin" in row) != ("minus_twin_se" in row):
            raise Undrawable(f"half a difference to the twin of {row['name']}")
    tables = [*_ways(parts), *_directions(parts), *_small_net(parts["exact"])]
    tried = {sum(r["name"] == row["name"] for r in parts["search"]) for row in parts["contender"]}
    settings = f"{' or '.join(map(str, sorted(tried)))} learning rates tried for each way"
    return Drawing(
        tables, ({"Settings": settings} if tried else {}) | _test_images(parts["summary"])
    )


def _ways(parts: Mapping[str, list[Row]]) -> list[Table]:
    final: dict[str, list[Row]] = {row["name"]: [] for row in parts["contender"]}
    for row in parts["final"]:
        final[row["name"]].append(row)
    if not final:
        return []
    words = {
        "test": ("predictions", "Test accuracy in percent of each prediction", 100),
        "nll": ("likelihood", "Mean negative log-likelihood of the test images", 1),
        "ece": ("calibration", "Expected calibration error on the test images in percent", 100),
    }
    return [
        _contest(parts, final),
        *(_by_prediction(final, number, *about) for number, about in words.items()),
    ]


def _contest(parts: Mapping[str, list[Row]], final: Mapping[str, list[Row]]) -> Table:
    lines = []
    for way in parts["contender"]:
        own, used = final[way["name"]], _used(way)
        (row,) = [r for r in parts["summary"]
                  if (r["name"], r["prediction"]) == (way["name"], used)]  # fmt: skip
        cells = [setting(own[0]["lr"]), used, percent(row["mean"], row["se"]), *_gap(row)]
        numbers = [_over_seeds([r["nll"][used] for r in own])]
        numbers += [_over_seeds([r["ece"][used] for r in own], 100)]
        small = f"{way['label']}, {count(way['images'])} images, {len(own)} seeds"
        lines.append([Cell(way["name"], "", small), *cells, *numbers])
    return Table(
        "accuracy",
        "Each way with the learning rate that its search chose and the prediction by which it is "
        "used: test accuracy in percent, the difference to its tanh twin in percentage points with "
        "p of Welch’s test, negative log-likelihood, and expected calibration error in percent; "
        "mean and standard error over the seeds.",
        ["Way", "Rate", "Prediction", "Accuracy, %", "Minus twin, points", "p", "NLL", "ECE, %"],
        lines,
    )


def _used(way: Row) -> str:
    """The prediction by which a way is chosen and used."""
    if way["kind"] != "sbn":
        return way["kind"]
    return "ten" if way["weights"] == "real" else "sign"


def _by_prediction(
    final: Mapping[str, list[Row]], number: str, name: str, words: str, unit: float
) -> Table:
    columns = list(dict.fromkeys(p for own in final.values() for r in own for p in r[number]))
    order = [p for p in (*PREDICTIONS, *columns) if p in columns]
    columns = list(dict.fromkeys(order))
    return Table(
        name,
        f"{words}; “running” is with the statistics of training, all others with statistics taken "
        "anew; mean and standard error over the seeds.",
        ["Way", *columns],
        [
            [Cell(way)]
            + [_over_seeds([r[number][p] for r in own], unit) if p in own[0][number] else NONE
               for p in columns]
            for way, own in final.items()
        ],
    )  # fmt: skip


def _over_seeds(values: Sequence[float], unit: float = 1) -> str:
    """Mean and standard error, to the second digit of the error."""
    mean = unit * sum(values) / len(values)
    if len(values) < 2:
        return rounded(mean)
    spread = math.sqrt(sum((unit * v - mean) ** 2 for v in values) / (len(values) - 1))
    return signed(_with_error(mean, spread / math.sqrt(len(values))))


def _directions(parts: Mapping[str, list[Row]]) -> list[Table]:
    of = ", ".join(dict.fromkeys(row["estimator"] for row in parts["reference"]))
    samples = " or ".join(sorted({count(row["samples"]) for row in parts["reference"]}))
    return [
        table
        for table in (
            _along("one", parts["gradients"], lambda r: _told(r, "one"),
                   "Cosine of one sample with the gradient, by epochs of training."),
            _along("many", parts["gradients"], lambda r: _told(r, "many"),
                   "Cosine of the mean of many samples with the gradient, by epochs of training; "
                   "without bias it is 1."),
            _along("reference", parts["reference"], lambda r: _length_of(r),
                   f"Length of the gradient, from {samples} samples of {of}, and the standard "
                   "error of that mean, a vector, relative to it."),
            _along("candidates", parts["candidate"], lambda r: _number(r["deviation"]),
                   "Standard deviation of one sample of unbiased estimators, relative to the "
                   "length of the gradient.", lambda r: f", {count(r['evaluations'])} evaluations"),
        )
        if table.rows
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return NONE if value is None else rounded(value)


def _told(row: Row, name: str) -> str:
    value, se = row[name], row[f"{name}_se"]
    if value is None:
        return NONE
    return signed(f"{value:.3f}" if se is None else _with_error(value, se))


def _length_of(row: Row) -> str:
    return f"{rounded(row['length'])} ({_number(row['se'])})"


def _along(
    name: str,
    rows: Sequence[Row],
    shown: Callable[[Row], str],
    caption: str,
    more: Callable[[Row], str] = lambda row: "",
) -> Table:
    """Estimators and layers down, epochs across."""
    seeds, epochs = _values(rows, "seed"), _values(rows, "epoch")
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        line = lines.setdefault((row["estimator"], row["layer"], row["seed"]), {})
        if row["epoch"] in line:
            raise Undrawable(f"two rows of {row['estimator']} at one moment in {name}")
        line[row["epoch"]] = row
    return Table(
        name, caption, ["Estimator", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [Cell(estimator, "", _layer_of(layer) + f", seed {seed}" * (len(seeds) > 1)
                  + more(next(iter(line.values()))))]
            + [shown(line[epoch]) if epoch in line else NONE for epoch in epochs]
            for (estimator, layer, seed), line in lines.items()
        ],
    )  # fmt: skip


def _layer_of(layer: str) -> str:
    return "all layers" if layer == "all" else f"layer {layer}"


def _small_net(rows: Sequence[Row]) -> list[Table]:
    seeds = len(_values(rows, "seed"))
    about = f"by epochs of training, {seeds} seeds; exact where the estimator is a function of the "
    about += "state, else of samples."
    return [
        _of_seeds("bias", rows, lambda found: _root(found, "bias2"),
                  f"Root of the mean squared bias, relative to the length of the gradient, {about} "
                  "A squared bias that came out below 0 stands as 0."),
        _of_seeds("deviation", rows, lambda found: _root(found, "variance"),
                  f"Root of the mean variance of one sample, relative to that length, {about}"),
        _of_seeds("cosine", rows, _mean_cosine,
                  f"Mean cosine of the expected estimate with the gradient, {about}"),
    ] if rows else []  # fmt: skip


def _root(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    if None in values:
        return NONE
    return rounded(math.sqrt(max(sum(values) / len(values), 0)))


def _mean_cosine(rows: Sequence[Row]) -> str:
    values = [row["cosine"] for row in rows]
    return NONE if None in values else signed(f"{sum(values) / len(values):.3f}")


def _of_seeds(
    name: str, rows: Sequence[Row], shown: Callable[[Sequence[Row]], str], caption: str
) -> Table:
    """Estimators and layers down, epochs across, all seeds in a cell."""
    epochs, seeds = _values(rows, "epoch"), _values(rows, "seed")
    cells: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        line = cells.setdefault((row["estimator"], row["layer"]), {e: [] for e in epochs})
        line[row["epoch"]].append(row)
    for (estimator, _), line in cells.items():
        if any(
            _values(found, "seed") != seeds or len(found) > len(seeds) for found in line.values()
        ):
            raise Undrawable(f"{estimator} does not have one row a seed and moment in {name}")
    return Table(
        name, caption, ["Estimator", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [Cell(estimator, "", _layer_of(layer)), *map(shown, line.values())]
            for (estimator, layer), line in cells.items()
        ],
    )  # fmt: skip


# ---- autoencoders ------------------------------------------------------------------------------


def autoencoders(parts: Mapping[str, list[Row]]) -> Drawing:
    """The bounds of the contenders; directions along trainings; retrieval."""
    tables = [*_bounds(parts), *_looks(parts), *_retrieval(parts["retrieval"])]
    of = [(row["data"], row["name"]) for row in parts["search"]]
    tried = sorted({of.count(entry) for entry in of})
    words = f"{' or '.join(map(str, tried))} learning rates tried for each contender"
    return Drawing(tables, {"Settings": words} if tried else {})


def _bounds(parts: Mapping[str, list[Row]]) -> Iterator[Table]:
    for data in _values(parts["summary"], "data"):
        own = [row for row in parts["summary"] if row["data"] == data]
        exact = all("nll" in row["test"] for row in own)
        yield Table(
            f"bound-{data}",
            f"{data}: the negative lower bound in nats a picture, its terms on the test pictures, "
            "the misfit of the code at its signs, and how undecided the units are; mean and "
            "standard error over the seeds. Of the twin, the misfit of its real code stands in "
            "place of the bound.",
            ["Contender", "Rate", "Train", "Test", "Misfit", "Divergence", "At the signs",
             "Mean of 1 − μ²", *(["Likelihood"] if exact else [])],
            [_bound(row, parts["final"], exact) for row in own],
        )  # fmt: skip


def _bound(row: Row, final: Sequence[Row], exact: bool) -> list[str | Cell]:
    own = [r for r in final if (r["data"], r["name"]) == (row["data"], row["name"])]
    if len(own) != row["seeds"]:
        raise Undrawable(f"{row['name']} has {len(own)} final runs, its summary {row['seeds']}")
    test = ["loss", "misfit", "kl", "sign", "undecided", *(["nll"] if exact else [])]
    return [
        Cell(row["name"], "", f"{len(own)} seeds"), setting(own[0]["lr"]),
        _mean_told(row, "train", "loss"), *(_mean_told(row, "test", name) for name in test),
    ]  # fmt: skip


def _mean_told(row: Row, split: str, name: str) -> str:
    value, se = row[split][name], row[f"{split}_se"][name]
    return rounded(value) if not se else signed(_with_error(value, se))


def _looks(parts: Mapping[str, list[Row]]) -> Iterator[Table]:
    for bits in _values([*parts["gradients"], *parts["reference"]], "bits"):
        kinds = {
            "one": (lambda r: _told(r, "one"), "gradients",
                    "cosine of one sample with the gradient"),
            "many": (lambda r: _told(r, "many"), "gradients",
                     "cosine of the mean of many samples with the gradient; without bias it is 1"),
            "deviation": (lambda r: _number(r["deviation"]), "gradients",
                          "standard deviation of one sample, relative to the gradient’s length"),
            "reference": (_length_of, "reference",
                          "length of the gradient, and in brackets the standard error of the mean "
                          "that stands for it, relative to it"),
        }  # fmt: skip
        for name, (shown, part, words) in kinds.items():
            rows = [row for row in parts[part] if row["bits"] == bits]
            yield _by_epoch(f"{name}-{bits}", rows, shown, f"Codes of {bits} bits: {words}.")


def _by_epoch(name: str, rows: Sequence[Row], shown: Callable[[Row], str], caption: str) -> Table:
    """Estimators, and by whom the training is carried on, down; epochs across."""
    epochs = _values(rows, "epoch")
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        line = lines.setdefault((row["estimator"], row["trained"], row["seed"]), {})
        if row["epoch"] in line:
            raise Undrawable(f"two rows of {row['estimator']} at one moment in {name}")
        line[row["epoch"]] = row
    return Table(
        name, caption, ["Estimator", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [Cell(estimator, "", f"trained by {trained}"),
             *(shown(line[epoch]) if epoch in line else NONE for epoch in epochs)]
            for (estimator, trained, _), line in lines.items()
        ],
    )  # fmt: skip


def _retrieval(rows: Sequence[Row]) -> Iterator[Table]:
    for bits in _values(rows, "bits"):
        found: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["bits"] == bits:
                found.setdefault((row["name"], row["code"]), []).append(row)
        radii = max(len(row["within"] or ()) for own in found.values() for row in own)
        yield Table(
            f"retrieval-{bits}",
            f"Codes of {bits} bits: precision in percent within a Hamming radius, and in brackets "
            "the queries that retrieve nothing there, in percent; precision of the nearest 100; "
            "mean average precision. Mean and standard error over the seeds.",
            ["Code", *(f"radius {r}" for r in range(radii)), "Nearest 100", "MAP"],
            [_retrieved(*code, own, radii) for code, own in found.items()],
        )


def _retrieved(name: str, kind: str, rows: Sequence[Row], radii: int) -> list[str | Cell]:
    bits = kind == "sign"
    within = [
        f"{_over_seeds([row['within'][r] for row in rows], 100)} "
        f"({100 * sum(row['empty'][r] for row in rows) / len(rows):.1f})" if bits else NONE
        for r in range(radii)
    ]  # fmt: skip
    mean = _over_seeds([row["map"] for row in rows], 100) if bits else NONE
    small = f"{kind if bits else 'real code'}, {len(rows)} seed{'s'[: len(rows) > 1]}"
    nearest = _over_seeds([row["nearest"] for row in rows], 100)
    return [Cell(name, "", small), *within, nearest, mean]


# ---- gpu ---------------------------------------------------------------------------------------


def gpu(parts: Mapping[str, list[Row]]) -> Drawing:
    tables = (_ceilings, _over_a_copy, _law, _rare, _fused, _fused_states, _fused_tails,
              _statistics, _live_frames, _searches, _exact_sums, _estimators)  # fmt: skip
    made = [table for make in tables if (table := make(parts)).rows]
    return Drawing(made, _machine(parts), _left_out(parts))


def _machine(parts: Mapping[str, list[Row]]) -> dict[str, str]:
    facts = {}
    for row in parts["environment"]:
        driver = [f"driver {row['driver']}"] if "driver" in row else []
        words = [*driver, f"CUDA {row['cuda']}", f"torch {row['torch']}"]
        facts = {"Machine": ", ".join(words), "CPU beside it": row["cpu"]}
    for row in parts["fused sampler"]:
        facts["Fused sampler"] = row["backend"]
    for row in parts["fused beyond int32"]:
        facts["Its longest draw"] = f"{count(row['units'])} units"
    for row in parts["measure, memory"]:
        memory = f"{size(row['peak_bytes'])} for {count(row['samples'])} samples"
        facts["Memory of the statistics"] = memory
    seconds = sum(row["seconds"] for row in parts["section"])
    return facts | ({"Whole run": duration(seconds)} if seconds else {})


def _left_out(parts: Mapping[str, list[Row]]) -> list[str]:
    """What the run did not do, in words."""
    broken = [f"The section “{r['section']}” broke off: {r['error']}" for r in parts["error"]]
    late = [f"Left out, for want of time: {', '.join(r['sections'])}." for r in parts["left out"]]
    plain = [f"Straight-through, {r['how']}: not measured, because the compiler failed: "
             f"{r['error']}" for r in parts["straight_through, not compiled"]]  # fmt: skip
    narrow = [f"Exact sums with n = {r['units']}: left out, because it {r['left_out']}."
              for r in parts["exact_gradient, left out"]]  # fmt: skip
    narrow += [f"A fused draw of {count(r['units'])} units: left out, because it {r['left_out']}."
               for r in parts["fused beyond int32, left out"]]  # fmt: skip
    plain += [f"The search: not run, {r['error']}." for r in parts["search, not run"]]
    return broken + late + plain + narrow


def _ceilings(parts: Mapping[str, list[Row]]) -> Table:
    copies = [
        [f"copy, {size(r['bytes'])} read and written", duration(r["seconds"]),
         f"{rounded(r['gigabytes_per_second'])} GB/s", _spread(r)]
        for r in parts["copy"]
    ]  # fmt: skip
    products = [
        [f"bf16 product of two {r['n']} × {r['n']} matrices", duration(r["seconds"]),
         f"{rounded(r['teraflops'])} TFLOP/s", _spread(r)]
        for r in parts["bf16 product"]
    ]  # fmt: skip
    products += [
        [f"the same of bytes, {r['n']} × {r['n']}", duration(r["seconds"]),
         f"{times(r['ratio'])} as fast as bf16", _spread(r)]
        for r in parts["int8 product"]
    ]  # fmt: skip
    return Table(
        "ceilings",
        "Ceilings: what the device reached on work that does nothing else. The spread is the "
        "relative difference of two measurements of the time.",
        ["What", "Time", "Rate", "Spread"],
        copies + products,
    )


def _spread(row: Row) -> str:
    share = 100 * row["spread"]
    return f"{share:.1f}\u00a0%" if share >= 0.05 else "<\u00a00.1\u00a0%"


def _over_a_copy(parts: Mapping[str, list[Row]]) -> Table:
    lines = [(Cell("sample_sign"), r) for r in parts["sample_sign"]]
    lines += [
        (f"straight-through {r['direction']}, {r['how']}", r) for r in parts["straight_through"]
    ]
    return Table(
        "copy",
        "Sampling and straight-through in float32, against a copy on the device that reads and "
        "writes the same bytes.",
        ["What", "Units", "Time", "The copy", "Ratio", "Spread"],
        [
            [what, count(r["elements"]), duration(r["seconds"]), duration(r["copy_seconds"]),
             f"{times(r['ratio'])} the time", _spread(r)]
            for what, r in lines
        ],
    )  # fmt: skip


def _law(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "frequencies",
        "How often a unit was +1, at eight logits for each noise: the largest difference to F(a) "
        "in standard errors, and the limit of the check.",
        ["Noise", "Draws a logit", "Largest z", "Limit"],
        [[Cell(r["noise"]), count(r["draws"]), *_z(r)] for r in parts["frequencies"]],
    )


def _z(row: Row) -> list[str]:
    return [f"{row['largest_z']:.2f}", f"{row['limit']:.1f}"]


def _rare(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "rare",
        "An event of probability 10⁻⁹, drawn many times.",
        ["Draws", "Found", "Expected", "Most allowed"],
        [[count(r["draws"]), str(r["found"]), rounded(r["expected"]), f"{r['limit']:g}"]
         for r in parts["rare events"]],
    )  # fmt: skip


def _fused(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "fused",
        "The fused sampler, 64 random bits a unit where no other number is named, and its slope, "
        "against a copy on the device that reads and writes the same bytes.",
        ["What", "Units", "Bytes a unit", "Time", "The copy", "Ratio", "Spread"],
        [
            [r["what"], count(r["elements"]), str(r["bytes_an_element"]), duration(r["seconds"]),
             duration(r["copy_seconds"]), f"{times(r['ratio'])} the time", _spread(r)]
            for r in parts["fused"]
        ],
    )  # fmt: skip


def _fused_states(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "fused-states",
        "States of the fused sampler that are not those of its reference on the CPU: rounding may "
        "put F on the two sides of a draw.",
        ["Noise", "Draws", "Differ", "Most allowed"],
        [[Cell(r["noise"]), count(r["draws"]), str(r["flips"]), f"{r['limit']:.0f}"]
         for r in parts["fused parity"]],
    )  # fmt: skip


def _fused_tails(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "fused-tails",
        "An event of probability 10⁻⁸ drawn by the fused sampler, rare +1 and rare −1.",
        ["Logit", "Draws", "Found", "Expected", "Least allowed", "Most allowed"],
        [[rounded(r["logit"]), count(r["draws"]), str(r["found"]), rounded(r["expected"]),
          str(r["least"]), str(r["most"])] for r in parts["fused tails"]],
    )  # fmt: skip


def _statistics(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "statistics",
        "The statistics of an estimator: the GPU against the CPU beside it, the largest difference "
        "of the two results in standard errors, and the peak memory.",
        ["What", "GPU", "CPU", "Ratio", "Largest z", "Limit", "Memory"],
        [
            [Cell(r["estimator"], "", f"{count(r['samples'])} samples"), duration(r["seconds"]),
             duration(r["cpu_seconds"]), f"{times(r['ratio'])} as fast", *_z(r), _memory(r)]
            for r in parts["measure"]
        ],
    )  # fmt: skip


def _live_frames(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "frames",
        "One position of a slider, as the live figures of chapters 2 and 3 compute it on a GPU, "
        "without the drawing.",
        ["What", "Of them", "Time", "Spread"],
        [[r["what"], count(r["count"]), duration(r["seconds"]), _spread(r)]
         for r in parts["live frame"]],
    )  # fmt: skip


def _searches(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "search",
        "One epoch of ten batches, of trainings that differ in their learning rates: computed as "
        "one, and one after the other.",
        ["Trainings", "Net", "As one", "One by one", "Ratio"],
        [[str(r["trainings"]), r["net"], duration(r["seconds"]), duration(r["one_by_one_seconds"]),
          f"{times(r['ratio'])} as fast"] for r in parts["search"]],
    )  # fmt: skip


def _memory(row: Row) -> str:
    return NONE if row.get("peak_bytes") is None else size(row["peak_bytes"])


def _exact_sums(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "exact",
        "Exact gradients in float64: the GPU against the CPU beside it, the largest relative "
        "difference of the two results, and the peak memory.",
        ["Net", "GPU", "CPU", "Ratio", "Difference", "Memory"],
        [
            [_net(r["layers"], r["units"]), duration(r["seconds"]), *_against_cpu(r), _memory(r)]
            for r in parts["exact_gradient"]
        ],
    )


def _against_cpu(row: Row) -> list[str]:
    given = [row.get(name) is not None for name in ("cpu_seconds", "ratio", "difference")]
    if not any(given):
        return [NONE, NONE, NONE]
    if not all(given):
        raise Undrawable(f"exact_gradient, n = {row['units']}: half a comparison with the CPU")
    faster = f"{times(row['ratio'])} as fast"
    return [duration(row["cpu_seconds"]), faster, tiny(row["difference"])]


def _estimators(parts: Mapping[str, list[Row]]) -> Table:
    return Table(
        "estimators",
        "The statistics of each estimator, from the GPU and from the CPU with other random "
        "numbers: the largest difference in standard errors. The time is of a single run.",
        ["Estimator", "Samples", "Time", "Largest z", "Limit"],
        [[Cell(r["name"]), count(r["samples"]), duration(r["seconds_once"]), *_z(r)]
         for r in parts["estimator"]],
    )  # fmt: skip


# ---- packing -----------------------------------------------------------------------------------


def packing(parts: Mapping[str, list[Row]]) -> Drawing:
    products: dict[tuple[int, int], list[Row]] = {}
    for row in parts["product"]:
        products.setdefault((row["inputs"], row["outputs"]), []).append(row)
    tables = [
        *(_by_batch(f"product-{n}-{m}", f"{n} × {m} signs times a batch of signs", rows)
          for (n, m), rows in products.items()),
        _by_batch("network", "The network", parts["network"]),
        *_profiles(parts["profile"]),
        _forms(parts["memory"]),
    ]  # fmt: skip
    (memory,), (own,) = parts["bandwidth"], parts["prediction"]
    facts = {"Memory": _bandwidth(memory), "Predictions": _same_class(own)}
    return Drawing([table for table in tables if table.rows], facts)


def _by_batch(name: str, what: str, rows: Sequence[Row]) -> Table:
    sides = list(dict.fromkeys(side for row in rows for side in row["seconds"]))
    if not all(set(row["seconds"]) == set(sides) for row in rows):
        raise Undrawable(f"{what}: not all rows have the same sides")
    caption = f"{what}: the least time, and how many times as fast as in float32."
    return Table(name, caption, ["Batch", *sides], [_batch_line(row, sides) for row in rows])


def _batch_line(row: Row, sides: Sequence[str]) -> list[str | Cell]:
    least = {side: row["seconds"][side][0] for side in sides}
    return [str(row["batch"])] + [
        Cell(text=duration(own), small="" if side == "float32" else times(least["float32"] / own))
        for side, own in least.items()
    ]


def _profiles(rows: Sequence[Row]) -> Iterator[Table]:
    """A table a side: the layers over the batches."""
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        batches = sorted({row["batch"] for row in own})
        at = {(row["layer"], row["batch"]): row for row in own}
        layers = {row["layer"]: row["kind"] for row in own}
        yield Table(
            f"profile-{side}",
            f"Layer by layer, {side}: the least time at some sizes of a batch.",
            ["Layer", *(str(b) for b in batches)],
            [[f"{k} {kind}", *(duration(at[k, b]["seconds"][0]) for b in batches)]
             for k, kind in layers.items()],
        )  # fmt: skip


def _forms(rows: Sequence[Row]) -> Table:
    return Table(
        "memory",
        "The network in its forms: what its arrays take, its file, and the most memory of a "
        "process that makes one prediction.",
        ["Form", "Arrays", "File", "Process"],
        [
            [r["form"], size(r["arrays"]), NONE if r["file"] is None else size(r["file"]),
             NONE if r["peak_mib"] is None else size(r["peak_mib"] * 2**20)]
            for r in rows
        ],
    )  # fmt: skip


def _bandwidth(row: Row) -> str:
    return f"a sum reads {size(row['bytes'] / row['seconds'][0])} a second"


def _same_class(row: Row) -> str:
    said = f"{row['images']} images of {row['data']}, {row['right']} right"
    return f"{said}; packed as in float32 {row['same']}, with bytes {row['same_int8']}"


# ---- improvements ------------------------------------------------------------------------------


def improvements(parts: Mapping[str, list[Row]]) -> Drawing:
    """Trainings by width, errors by weight, the gauge along a training, latent weights by bits."""
    tables = [*_trainings(parts["widths"]), *_weights_of_s(parts["optimal-s"])]
    tables += [*_gauges(parts["gauge"]), *_latents(parts["latent"])]
    return Drawing([table for table in tables if table.rows])


def _trainings(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each number of layers and each number, widths across."""
    about = {
        "loss": ("Loss on the training images, of one sample", 1),
        "test_loss": ("Loss on the test images, of one sample", 1),
        "ten": ("Test accuracy of ten samples in percent", 100),
    }
    for depth in _values(rows, "depth"):
        own = [row for row in rows if row["depth"] == depth]
        widths = _values(own, "width")
        for number, (words, unit) in about.items():
            yield Table(
                f"{number}-{depth}".replace("_", "-"),
                f"{words}, {_layers(depth)} of so many units; mean and standard error over the "
                "seeds.",
                ["Estimator", *map(str, widths)],
                _crossed(own, "estimator", "width", lambda r, n=number, u=unit: _over_seeds(
                    r[n], u)),
            )  # fmt: skip


def _crossed(
    rows: Sequence[Row], down: str, across: str, shown: Callable[[Row], str]
) -> list[list[str | Cell]]:
    at = {(row[down], row[across]): row for row in rows}
    if len(at) < len(rows):
        raise Undrawable(f"two rows of one {down} and {across}")
    columns = _values(rows, across)
    return [
        [Cell(str(line)), *(shown(at[line, c]) if (line, c) in at else NONE for c in columns)]
        for line in _values(rows, down)
    ]


def _weights_of_s(rows: Sequence[Row]) -> Iterator[Table]:
    for depth in _values(rows, "depth"):
        for inputs in _values(rows, "inputs"):
            own = [r for r in rows if (r["depth"], r["inputs"]) == (depth, inputs)]
            yield Table(
                f"weight-{depth}-{inputs}",
                f"Mean squared error of the mean of so many samples, over the squared length of "
                f"the gradient: {_layers(depth)}, {inputs} inputs; with its standard error.",
                ["Contender", *map(count, _values(own, "samples"))],
                _crossed(own, "estimator", "samples", lambda r: signed(
                    _with_error(r["error"], r["se"]))),
            )  # fmt: skip


def _gauges(rows: Sequence[Row]) -> Iterator[Table]:
    for number, words in (("bias2", "Squared bias"), ("variance", "Variance of one sample")):
        lines = [
            {"estimator": e, "epoch": t, "values": [
                r[number] for r in rows if (r["estimator"], r["epoch"]) == (e, t)]}
            for e in _values(rows, "estimator") for t in _values(rows, "epoch")
        ]  # fmt: skip
        yield Table(
            f"gauge-{number}",
            f"{words} in the last layer over the squared length of its gradient, by epochs of "
            f"training; median of {len(_values(rows, 'seed'))} networks.",
            ["Estimator", *(f"epoch {t}" for t in _values(rows, "epoch"))],
            _crossed(lines, "estimator", "epoch", lambda r: _median_of(r["values"])),
        )


def _median_of(values: Sequence[float]) -> str:
    """0 for what is left of an exact 0 in float64."""
    middle = median(values)
    return tiny(middle, 3) if middle > 1e-24 else "0"


def _latents(rows: Sequence[Row]) -> Iterator[Table]:
    yield Table(
        "latent",
        "Test accuracy in percent, weights and units at their signs, with latent weights on a grid "
        "of so many bits (0: not rounded), and the share of them at its ends; mean and standard "
        "error over the seeds.",
        ["Rounding", "Bits", "Rate", "Accuracy, %", "At the ends, %"],
        [[r["rounding"], str(r["bits"]), setting(r["lr"]), _over_seeds(r["sign"], 100),
          rounded(100 * r["at_ends"])] for r in rows],
    )  # fmt: skip


# ---- characters --------------------------------------------------------------------------------


def characters(parts: Mapping[str, list[Row]]) -> Drawing:
    """Bits per character by contender, what the weights became, and what the doctor found."""
    (text,) = parts["text"]
    finals = {row["name"]: row for row in parts["summary"]}
    counted = {name: [r for r in parts["final"] if r["name"] == name] for name in finals}
    if len(finals) < len(parts["summary"]) or not all(counted.values()):
        raise Undrawable("not one summary for each contender with final runs")
    tables = [_bits(parts["summary"]), _ternary(parts["summary"]), _found(parts["doctor"])]
    sizes = ", ".join(f"{count(n)} for {part}" for part, n in text["characters"].items())
    facts = {"Text": f"{text['name'][:12]}: {sizes}; {text['different']} different characters"}
    rates = {r["name"]: sorted(t["lr"] for t in parts["search"] if t["name"] == r["name"])
             for r in parts["summary"]}  # fmt: skip
    tried = "; ".join(f"{n}: {', '.join(map(setting, own))}" for n, own in rates.items())
    return Drawing([table for table in tables if table.rows], facts | {"Rates tried": tried})


def _bits(rows: Sequence[Row]) -> Table:
    return Table(
        "bits",
        "Test bits per character, with standard errors over the seeds and, behind them, over the "
        "blocks of the text; the difference to real weights with both, and p of Welch’s test.",
        ["Weights", "Rate", "Bits", "Over the text", "Difference", "Over the text", "p"],
        [[Cell(r["name"]), setting(r["lr"]), _bit_error(r["mean"], r["se"]),
          _pm(r["text_se"]), *_bit_difference(r)] for r in rows],
    )  # fmt: skip


def _bit_error(value: float, se: float | None) -> str:
    return f"{value:.3f}" if se is None else signed(_with_error(value, se))


def _pm(se: float | None) -> str:
    return NONE if se is None else f"± {se:.3f}"


def _bit_difference(row: Row) -> list[str]:
    there = [name in row for name in _CHARACTER_DIFFERENCE]
    if any(there) != all(there):
        raise Undrawable(f"half a difference to the twin of {row['name']}")
    if not all(there):
        return [NONE, NONE, NONE]
    shown = _bit_error(row["minus_twin"], row["minus_twin_se"])
    return [shown if shown.startswith("−") else f"+{shown}", _pm(row["minus_twin_text_se"]),
            probability(row["minus_twin_p"])]  # fmt: skip


def _ternary(rows: Sequence[Row]) -> Table:
    return Table(
        "weights",
        "The weights of the two matrices: test bits at one draw of them and at their means, the "
        "share that is 0, the share whose ternary value changed in the last tenth of the training, "
        "their memory, and the processor time of a training.",
        ["Weights", "Drawn", "Mean", "Zeros, %", "Moved, %", "Memory", "Time", "Over the twin’s"],
        [[Cell(r["name"]), _or_none(r["drawn"], 3), _or_none(r["mean_weights"], 3),
          _or_none(r["zeros"], 1, 100), _or_none(r["moved"], 2, 100), size(r["bytes"]),
          duration(r["seconds"]), times(r["time"]) if "time" in r else NONE] for r in rows],
    )  # fmt: skip


def _or_none(value: float | None, places: int, unit: float = 1) -> str:
    return NONE if value is None else f"{unit * value:.{places}f}"


def _found(rows: Sequence[Row]) -> Table:
    return Table(
        "doctor",
        "What the doctor found in a model after a tenth of the training.",
        ["Weights", "Units seen", "Findings"],
        [[Cell(r["name"]), str(r["units"]), ", ".join(r["codes"]) or NONE] for r in rows],
    )


# ---- a record ----------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Mapping[str, list[Row]]], Drawing]] = {
    "bench": bench,
    "exact-cost": exact_cost,
    "classify": classify,
    "binary weights": weights,
    "width law": width_law,
    "variance law": variance_law,
    "how deep": how_deep,
    "contenders": contenders,
    "packing": packing,
    "autoencoders": autoencoders,
    "improvements": improvements,
    "characters": characters,
    "gpu": gpu,
}


def draw(record: Mapping[str, Any]) -> Drawing:
    """The record as facts, notes and tables.

    Raises:
        Undrawable: its kind is unknown, or a row is not of the form of its kind.
    """
    if record["kind"] not in KINDS:
        raise Undrawable(f"unknown kind {record['kind']!r}, known are {', '.join(KINDS)}")
    try:
        drawing = KINDS[record["kind"]](_parted(record))
    except Undrawable:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Undrawable(f"{type(error).__name__}: {error}") from error
    if not drawing.tables:
        raise Undrawable("no row that could be drawn")
    return drawing
