"""The fused sampler: states from a counter-based generator, in one pass over memory.

:func:`sample` draws binary units from an explicit seed and a place in its stream, and
:func:`straight_through` adds the gradient 2f(a), recomputed in the backward pass. On a CUDA device
with Triton (the extra ``sbnlib[gpu]``) each is one kernel that reads and writes every number once;
elsewhere, and wherever Triton is missing, a reference in plain torch gives the same states: slower,
and bit for bit the same but where two ways of computing F round to two sides of a draw.

It is a second way to draw, beside :func:`sbnlib.sample_sign` and its ``torch.Generator``, whose
streams stay as they are. A unit or a network takes it with ``sampler="fused"``::

    net = SBN(Linear(784, 512), Linear(512, 512), sampler="fused").to("cuda")

Nothing chooses it by itself: the states of a seed must not depend on what is installed.

Source: Salmon, Moraes, Dror & Shaw 2011 (SC), Philox4x32-10.
"""

from sbnlib.kernels.sampler import sample, straight_through

__all__ = ["sample", "straight_through"]


def __dir__() -> list[str]:  # what completion offers
    return __all__
