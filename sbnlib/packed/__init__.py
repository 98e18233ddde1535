"""Networks of signs as bits: 64 of them to a word, products by XNOR and popcount.

    model = packed.convert(net)          what a trained network predicts, without torch
    model(images)                        scores, as numpy's
    model.save("net.npz")                and packed.load("net.npz")

:func:`pack`, :func:`unpack`, :func:`xnor_linear` and :func:`xnor_conv2d` are the operations behind
it. ``sbnlib/packed/runtime.py`` holds all that a saved model needs; it imports numpy alone, and can
be copied beside the model.
"""

from sbnlib.packed.convert import convert, load
from sbnlib.packed.products import best
from sbnlib.packed.runtime import Model, pack, unpack, xnor_conv2d, xnor_linear

__all__ = ["Model", "best", "convert", "load", "pack", "unpack", "xnor_conv2d", "xnor_linear"]


def __dir__() -> list[str]:  # what completion offers
    return __all__
