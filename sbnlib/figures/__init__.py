"""Pictures of the book: one style, alt text on every figure, sliders that work without a kernel.

>>> from sbnlib import figures
>>> figures.use()                                    # once, in the first cell of a notebook
>>> figures.show(fig, alt="One sentence that says what is seen.")
>>> figures.explore(draw, "One sentence.", a=np.linspace(-4, 4, 17))
"""

from sbnlib.extras import extra

with extra("figures"):
    from .explore import Slider, device, explore
    from .style import INK, PAPER, Picture, show, use

__all__ = ["INK", "PAPER", "Picture", "Slider", "device", "explore", "show", "use"]


def __dir__() -> list[str]:  # what completion offers
    return __all__
