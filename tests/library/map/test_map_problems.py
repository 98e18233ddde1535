"""The problem set: what the file says is what is measured, and a changed file is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from problems_by_hand import CONTENT, FILE, ref_loss, ref_net

from sbnlib import map as sbn_map
from sbnlib import registry
from sbnlib.data import DataError
from sbnlib.map import problem_set, stored

each = pytest.mark.parametrize("name", CONTENT)


def test_the_hash_is_that_of_the_file() -> None:
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == sbn_map.SHA256
    assert sbn_map.NAME == json.loads(FILE.read_text())["name"] == "sbn-map-1"


@pytest.mark.parametrize("change", [lambda b: b.replace(b"0.5", b"0.6", 1), lambda b: b[:-1],
                                    lambda b: b + b"\n"])  # fmt: skip
def test_a_changed_file_is_refused(change, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / problem_set.FILE).write_bytes(change(FILE.read_bytes()))
    monkeypatch.setattr(problem_set, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match=f"sbn-map-1.json: expected content with sha256 "
                                        f"{sbn_map.SHA256}, found"):  # fmt: skip
        sbn_map.place("zgr", problems=["xor-1x5-logistic-1"])


def test_the_set_varies_one_thing_at_a_time_for_each_of_three_losses() -> None:
    found = sbn_map.problems()
    assert list(found) == list(CONTENT) and len(found) == 27
    looks = {p.about: [] for p in found.values()}
    for p in found.values():
        looks[p.about].append((p.layers, p.width, p.law, p.scale))
    assert list(looks) == ["digits", "xor", "smooth"]
    base = (2, 5, "Logistic", 1.0)
    for grid in looks.values():
        assert grid[0] == base and len(set(grid)) == len(grid) == 9
        for other in grid[1:]:
            layers, width, law, scale = (x != y for x, y in zip(base, other, strict=True))
            assert layers + width + (law or scale) == 1
        assert {g[0] for g in grid} == {1, 2, 3} and {g[1] for g in grid} == {3, 5, 8}
    same = [found[f"xor-2x5-{law}"] for law in ("logistic-1", "logistic-0.5", "uniform-2")]
    for one, other in itertools.pairwise(same):
        assert all(map(torch.equal, one.weights, other.weights))


def test_the_laws_have_about_the_same_density_at_0() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    for name in ("logistic-1", "uniform-2", "gaussian-1.6"):
        noise = sbn_map.problems()[f"xor-2x5-{name}"].net().noise
        assert float(noise.pdf(zero)) == pytest.approx(0.25, abs=0.001)


@each
def test_a_problem_is_what_its_numbers_say(name: str) -> None:
    p, net, row = sbn_map.problems()[name], ref_net(name), CONTENT[name]
    law = row["law"].lower()
    assert p.name == f"{row['about']}-{row['layers']}x{row['width']}-{law}-{row['scale']:g}"
    assert net.widths == (row["width"],) * row["layers"]
    own = p.net()
    assert own.noise.law == f"{row['law']}(scale={float(row['scale'])})"
    for layer, w, b in zip(own.layers, net.weights, net.biases, strict=True):
        assert np.array_equal(layer.weight.detach(), w) and np.array_equal(layer.bias.detach(), b)
    assert np.array_equal(p.inputs, row["inputs"])
    x = np.random.default_rng(0).uniform(-1, 1, (7, len(p.inputs), row["width"]))  # off the states
    loss, at = ref_loss(name), torch.tensor(x, requires_grad=True)
    values = p.loss(at)
    (slopes,) = torch.autograd.grad(values.sum(), at)
    for b in range(len(p.inputs)):
        np.testing.assert_allclose(values[:, b].detach(), loss.value(x[:, b], b), rtol=1e-12)
        np.testing.assert_allclose(slopes[:, b], loss.gradient(x[:, b], b), rtol=1e-9, atol=1e-14)


def test_a_network_is_new_at_each_call_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    p = sbn_map.problems()["smooth-3x5-logistic-1"]
    assert p.net() is not p.net() and len(p.net().layers) == 3
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.name = "other"


@pytest.mark.slow
def test_the_file_can_be_made_anew() -> None:
    """Training rounds otherwise on another processor, so a last digit may differ."""
    pytest.importorskip("sklearn")
    made = {row["name"]: row for row in json.loads(problem_set.build())["problems"]}
    assert list(made) == list(CONTENT)
    for name, row in CONTENT.items():
        again = made[name]
        flat = [list(_numbers(v)) for v in (again, row)]
        np.testing.assert_allclose(*flat, atol=2.1e-4, err_msg=name)


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    for v in value:
        if isinstance(v, (list, dict)):
            yield from _numbers(v)
        elif not isinstance(v, str):
            yield v


# ---- the registry's results ----------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_every_estimator_of_the_registry_has_a_result(name: str) -> None:
    assert name in sbn_map.results(), f"{name} has none: run python -m sbnlib.map --all"
    assert [row["problem"] for row in sbn_map.results()[name]] == list(CONTENT)


def test_no_result_is_of_something_that_is_gone() -> None:
    assert list(sbn_map.results()) == list(registry.ESTIMATORS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"sha256": "0", "estimators": {}}', "of a problem set with sha256 0, not"),
        ("{", "not the registry's results"),
        ("[]", "not the registry's results"),
        (None, "not the registry's results"),
    ],
)
def test_results_of_another_set_are_refused(text, words, tmp_path: Path, monkeypatch) -> None:
    if text:
        (tmp_path / stored.FILE).write_text(text)
    monkeypatch.setattr(stored, "files", lambda _: tmp_path)
    stored._results.cache_clear()
    try:
        with pytest.raises(DataError, match=f"{words}.*--all measures them again"):
            sbn_map.results()
    finally:
        stored._results.cache_clear()
