"""Measurement files: written whole, read by one function, of one form."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbnlib.experiments import measurement


@pytest.fixture
def record():
    return measurement.record(
        kind="test",
        command="python -m nothing",
        device="cpu",
        seeds=range(2),
        rows=[{"a": 1, "b": 0.1}, {"a": 2, "b": None}],
        checks={"fine": True},
        ratios={"speed": 3.5},
    )


def test_round_trip(record, tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    measurement.write(path, record)
    assert measurement.read(path) == record
    assert json.loads(path.read_text()) == record
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_what_the_book_keeps_is_found_from_any_folder_below(record, tmp_path, monkeypatch):
    kept = tmp_path / "book" / "measurements" / "x.json"
    measurement.write(kept, record)
    for folder in ("", "book", "book/2-activations", "notebooks/2-activations", "_build/lab/back"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        assert measurement.stored("x") == record
    nearer = tmp_path / "notebooks" / "book" / "measurements" / "x.json"
    measurement.write(nearer, record | {"kind": "nearer"})
    monkeypatch.chdir(tmp_path / "notebooks" / "2-activations")
    assert measurement.stored("x")["kind"] == "nearer"


def test_what_is_kept_nowhere_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no book/measurements/width-law.json in .*whole"):
        measurement.stored("width-law")


def test_no_rows_is_a_file_too(record, tmp_path):
    measurement.write(tmp_path / "x.json", record | {"rows": []})
    assert measurement.read(tmp_path / "x.json")["rows"] == []


def test_record_says_where_it_comes_from(record):
    assert set(record) == set(measurement.SCHEMA["required"])
    assert record["versions"]["torch"] and record["commit"] and record["date"].startswith("20")
    assert record["seeds"] == [0, 1]
    assert "thread" in measurement.describe_device("cpu")


def test_commit_is_that_of_the_package(monkeypatch):
    said = {"log": "abc", "status": ""}
    monkeypatch.setattr(measurement, "_git", lambda what, *rest: said[what])
    assert measurement.commit() == "abc"
    said["status"] = " M sbnlib/units.py"
    assert measurement.commit() == "abc-dirty"
    said["log"] = ""
    assert measurement.commit() == "unknown"


def test_every_cut_is_noticed(record, tmp_path):
    """Whatever number of bytes a kill leaves, the rest is never read as a result."""
    path = tmp_path / "cut.json"
    measurement.write(path, record)
    content = path.read_bytes().rstrip()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(measurement.MeasurementError, match="cut.json.*cut off"):
            measurement.read(path)


def test_a_field_of_an_older_file_is_read_under_its_name_of_today(record, tmp_path):
    path = tmp_path / "x.json"
    for kind, name in (("classify", "init_gain"), ("binary weights", "gain")):
        measurement.write(path, record | {"kind": kind, "rows": [{"gain": 3.0, "lr": 0.1}, {}]})
        before = path.read_bytes()
        assert measurement.read(path)["rows"] == [{name: 3.0, "lr": 0.1}, {}]
        assert path.read_bytes() == before


def test_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        measurement.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"kind": 3}, "file.kind: expected string, got int"),
        ({"checks": {"a": 1}}, "file.checks.a: expected boolean, got int"),
        ({"ratios": {"a": True}}, "file.ratios.a: expected number, got bool"),
        ({"rows": [{}, 3]}, r"file.rows\[1\]: expected object, got int"),
        ({"seeds": [0.5]}, r"file.seeds\[0\]: expected integer, got float"),
        ({"extra": 1}, "'extra' is not a known field"),
        ({"ratios": {"a": float("nan")}}, "not JSON compliant"),
        ({"rows": [{"a": float("inf")}]}, "not JSON compliant"),
        ({"rows": [{"a": {1, 2}}]}, "set"),
    ],
)
def test_wrong_form_is_refused_before_writing(record, tmp_path, change, complaint):
    path = tmp_path / "x.json"
    measurement.write(path, record)
    before = path.read_bytes()
    with pytest.raises(measurement.MeasurementError, match=complaint):
        measurement.write(path, record | change)
    assert path.read_bytes() == before


def test_wrong_form_is_refused_by_the_reader(record, tmp_path):
    path = tmp_path / "x.json"
    for key in record:
        path.write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        with pytest.raises(measurement.MeasurementError, match=f"x.json.*'{key}' is missing"):
            measurement.read(path)
    path.write_text("[]")
    with pytest.raises(measurement.MeasurementError, match="expected object, got list"):
        measurement.read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("place", ['"ratios": {"speed": 3.5}', '"rows": [{"a": 3.5}]'])
def test_numbers_that_are_not_finite_are_refused_by_name(record, tmp_path, number, place):
    """Python's own reader takes the first three; JSON has none of them."""
    path, fields = tmp_path / "x.json", json.dumps(record | {"rows": [{"a": 3.5}]})
    assert place in fields
    path.write_text(fields)
    assert measurement.read(path)["ratios"] == {"speed": 3.5}
    path.write_text(fields.replace(place, place.replace("3.5", number)))
    with pytest.raises(measurement.MeasurementError, match=f"x.json.* holds {number},"):
        measurement.read(path)


def test_two_may_write_one_file_at_once(record, tmp_path, monkeypatch):
    """The second begins, and ends, while the first has not yet put its file in place."""
    path, replace = tmp_path / "x.json", os.replace

    def meanwhile(part, target):
        monkeypatch.setattr(os, "replace", replace)
        measurement.write(path, record | {"seeds": []})
        assert measurement.read(path)["seeds"] == []
        replace(part, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    measurement.write(path, record)
    assert measurement.read(path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file(record, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    measurement.write(path, record)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        measurement.write(path, record | {"kind": "other"})
    assert measurement.read(path) == record


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0.25, 0.75) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


GOOD = {
    "kind": "k",
    "command": "c",
    "commit": "unknown",
    "date": "2000-01-01",
    "device": "d",
    "versions": {"torch": "2"},
    "seeds": [1],
    "checks": {"fine": True},
    "ratios": {"speed": 2},
    "rows": [{}],
}


@given(field=st.sampled_from(measurement.SCHEMA["required"]), value=VALUES)
def test_our_check_agrees_with_jsonschema(field, value):
    jsonschema = pytest.importorskip("jsonschema")
    record = GOOD | {field: value}
    valid = jsonschema.Draft202012Validator(measurement.SCHEMA).is_valid(record)
    assert (measurement.problems(record) == []) == valid
