"""Pictures drawn with matplotlib, without a screen, as files that appear whole."""

import warnings
from pathlib import Path
from typing import Any

from unweave.artifact.atomic import new_file
from unweave.errors import UserError

Plotting = Any
"""matplotlib.pyplot, which is an extra and has no types here."""


def plotting(extra: str) -> Plotting:
    """matplotlib.pyplot, drawing to files alone; `extra` is the one to install it with.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "Drawing the Pareto fronts needs matplotlib; install it with: "
            f"pip install 'unweave[{extra}]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_picture(figure: Any, path: Path, *, dpi: int = 110) -> None:
    """Write a figure as its name's ending says, png or svg; the same figure, the same bytes.

    Letters of an SVG are outlines, so that names out of strangers' files stay pictures. Characters
    that the font lacks are drawn as boxes.
    """
    import matplotlib

    kind = path.suffix.removeprefix(".")
    settings = {"svg.hashsalt": "unweave", "svg.fonttype": "path"}
    with new_file(path) as partial, matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(partial, dpi=dpi, format=kind, metadata=metadata)
