"""Nothing that sbnlib lists is without a reference, and nothing public is left off a list.

The tests of noise models, proxies and optimizers run over what the library lists; a name that is
new stops here, with the file that it needs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from discovered import NOISES, OPTIM_FUNCTIONS, OPTIMIZERS, PROXIES, unlisted
from reference import LAWS
from slopes import SLOPES
from torch.optim import Optimizer
from updates import CASES, MAPS, NO_UPDATE, ON_SIMPLEX

import sbnlib.kernels
from sbnlib import estimators, registry

CASED = {case.optimizer for case in CASES.values()} | set(ON_SIMPLEX)


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_has_a_law_in_the_reference_and_is_importable(name: str) -> None:
    assert name in LAWS, f"{name} has no law in tests/support/reference.py"
    assert getattr(sbnlib, name) is NOISES[name], f"{name} is not importable from sbnlib"


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_has_a_kernel(name: str) -> None:
    source = Path(sbnlib.kernels.__file__).with_name("compiled.py").read_text("utf-8")
    assert source.count(f'LAW == "{name}"') == 2, (
        f"{name} must have a branch in is_rare and in proxy of sbnlib/kernels/compiled.py"
    )


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_has_a_reference_slope(name: str) -> None:
    assert name in SLOPES, f"{name} has no slope in tests/support/slopes.py"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_has_a_published_update(name: str) -> None:
    assert name in CASED, f"{name} has no case in tests/support/updates.py"


@pytest.mark.parametrize("name", OPTIM_FUNCTIONS)
def test_what_else_the_optimizers_module_lists_is_a_map_with_a_reference(name: str) -> None:
    assert (name in MAPS) != (name in NO_UPDATE), (
        f"{name} must stand in MAPS or in NO_UPDATE of tests/support/updates.py"
    )


#: What ``sbnlib.estimators`` lists beside the functions of the registry's entries.
NOT_AN_ENTRY = {
    "PROXIES": "the table of proxies",
    "Proxy": "its rows",
    "attach": "the helper of all chain-rule estimators",
    "chain_rule": "a line of estimators, with its position to be chosen",
    "control_variate_loss": "what trains REBAR and RELAX",
    "gauge_fixed": "straight-through on another form of the loss, with its probes to be chosen",
    "shrinkage": "a part of that line, with its weight to be chosen",
}


@pytest.mark.parametrize("name", estimators.__all__)
def test_an_estimator_has_an_entry_in_the_registry(name: str) -> None:
    functions = [getattr(e.function, "func", e.function) for e in registry.ESTIMATORS.values()]
    assert (getattr(estimators, name) in functions) != (name in NOT_AN_ENTRY), (
        f"{name} must be the function of an entry of sbnlib/registry.py, or stand in NOT_AN_ENTRY"
    )


def test_no_reference_is_of_something_that_is_gone() -> None:
    for references, listed in (
        (LAWS, NOISES), (SLOPES, PROXIES), (CASED, OPTIMIZERS), (MAPS, OPTIM_FUNCTIONS),
        (NO_UPDATE, OPTIM_FUNCTIONS),
    ):  # fmt: skip
        assert not set(references) - set(listed)


def test_nothing_public_is_left_off_the_lists() -> None:
    assert not unlisted(sbnlib.noise, sbnlib.Noise)
    assert not unlisted(sbnlib.optim, Optimizer)
