"""Where fetched models and texts and sampled text are kept between runs."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder `$UNWEAVE_CACHE`, or the one the platform sets aside for such files."""
    if named := os.environ.get("UNWEAVE_CACHE"):
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "unweave"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "unweave"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "unweave"
