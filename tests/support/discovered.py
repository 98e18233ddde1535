"""What sbnlib offers, read from its own lists.

No name is written here, so whatever is added to a list meets every test that runs over it, and
fails by name where it has no reference.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from reference import Named
from torch.optim import Optimizer

from sbnlib import noise, optim
from sbnlib.estimators import PROXIES
from sbnlib.noise import Noise

__all__ = ["NOISES", "OPTIMIZERS", "OPTIM_FUNCTIONS", "PROXIES", "unlisted"]


def _listed(module: ModuleType, base: type) -> dict[str, Any]:
    """The subclasses of ``base`` in a module's ``__all__``."""
    values = {name: getattr(module, name) for name in module.__all__}
    return {n: v for n, v in values.items() if _is_below(v, base)}


def _is_below(thing: object, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base) and thing is not base


def unlisted(module: ModuleType, base: type) -> set[str]:
    """Public subclasses of ``base`` that a module defines and does not list."""
    own = {n for n, v in vars(module).items() if _is_below(v, base) and not n.startswith("_")}
    return {n for n in own if getattr(module, n).__module__ == module.__name__} - set(
        module.__all__
    )


NOISES: Named[type[Noise]] = Named("noise of sbnlib", _listed(noise, Noise))
OPTIMIZERS: Named[type[Optimizer]] = Named("optimizer of sbnlib", _listed(optim, Optimizer))
#: Everything else that ``sbnlib.optim`` lists: the proximal maps, and what may come.
OPTIM_FUNCTIONS = tuple(name for name in optim.__all__ if name not in OPTIMIZERS)
