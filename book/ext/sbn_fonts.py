"""The fonts of the book: made from packages when it is built, so that no reader's page fetches one.

The packages hold variable TrueType fonts under the SIL Open Font Licence, without reserved names:
Literata for the text, Inter for headings, boxes and figures, JetBrains Mono for code. Of each the
letters and weights that the book uses are kept, as WOFF2, about 255 kB in all. They lie beside the
built site and are made again only when a package or this file changes, by a process of their own
while the pages are read.
"""

import hashlib
import io
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

FAMILIES = {
    "literata": ("fontpkg_literata", "Literata", {"opsz": 14, "wght": (400, 700)}),
    "inter": ("fontpkg_inter", "Inter", {"opsz": 14, "wght": (400, 700)}),
    "jetbrains-mono": ("fontpkg_jetbrains_mono", "JetBrainsMono", {"wght": (400, 700)}),
}
AXES = {"literata": "[opsz,wght]", "inter": "[opsz,wght]", "jetbrains-mono": "[wght]"}
STYLES = {"": "", "-italic": "-Italic"}

#: Latin, Greek, punctuation, indices, arrows, operators.
LETTERS = [
    *range(0x20, 0x7F),
    *range(0xA0, 0x180),
    *range(0x391, 0x3CA),
    *range(0x2010, 0x2034),
    *range(0x2070, 0x20A0),
    *range(0x2190, 0x2195),
    *range(0x2200, 0x2270),
]


def small(source: bytes, limits: dict[str, object]) -> bytes:
    """The letters and the weights of the book, as WOFF2.

    Letters first, and through a file: the instancer stumbles over what a subset leaves in memory.
    """
    font = opened(source)
    options = Options(notdef_outline=True)
    options.layout_features += ["tnum", "lnum"]  # the digits of tables
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=LETTERS)
    subsetter.subset(font)
    font = instantiateVariableFont(opened(saved(font)), limits)
    font.flavor = "woff2"
    return saved(font)


def opened(data: bytes) -> TTFont:
    return TTFont(io.BytesIO(data), recalcTimestamp=False)  # the same bytes at any time


def saved(font: TTFont) -> bytes:
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


def make_fonts(folder: Path) -> None:
    """Write the fonts and their licences; what is there already was made from the same bytes."""
    for name, (package, family, limits) in FAMILIES.items():
        source = files(package)
        for style, suffix in STYLES.items():
            data = (source / "files" / f"{family}{suffix}{AXES[name]}.ttf").read_bytes()
            target = folder / f"{name}{style}.woff2"
            if not target.exists():
                made = target.with_suffix(".part")
                made.write_bytes(small(data, limits))
                made.replace(target)
        shutil.copyfile(str(source / "LICENSE"), folder / f"{name}-LICENSE.txt")


def cache(build: Path) -> Path:
    """A folder that is named after all that the fonts depend on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for package, *_ in FAMILIES.values():
        digest.update((files(package) / "metadata.json").read_bytes())
    folder = build / "fonts" / digest.hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin(app: Sphinx) -> None:
    if app.builder.format == "html":
        folder = cache(Path(app.outdir).parent)
        app.sbn_fonts = folder, subprocess.Popen([sys.executable, __file__, str(folder)])


def ship(app: Sphinx, exception: Exception | None) -> None:
    if app.builder.format != "html":
        return
    folder, maker = app.sbn_fonts
    failed = maker.wait()
    if exception:
        return
    if failed:
        raise ExtensionError("the fonts could not be made; why stands above")
    shutil.copytree(folder, Path(app.outdir) / "_static" / "fonts", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", begin)
    app.connect("build-finished", ship)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    make_fonts(Path(sys.argv[1]))
