"""Make the peers' environments, each with the releases that the committed numbers are of.

    python -m benchmarks.environments DIR [--pip-flags "--index-url ..."]

An environment that is there is left alone. torch is pinned first, because some peers would replace
it; they take three gigabytes together. On a machine without a GPU, torch's CPU build saves more:
--torch-flags "--index-url https://download.pytorch.org/whl/cpu".
"""

import argparse
import shlex
import subprocess
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = {
    "sparsify": ["eai-sparsify==1.3.3"],
    "saelens": ["sae-lens==6.54.12"],
    "dictionary_learning": ["dictionary-learning==0.1.0"],
}
UNWANTED = {"dictionary_learning": ["torchvision"]}
"""What a peer pulls in and cannot be imported beside a pinned torch."""


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pip-flags", default="")
    parser.add_argument("--torch-flags", default="")
    asked = parser.parse_args()
    flags, torch_flags = shlex.split(asked.pip_flags), shlex.split(asked.torch_flags)
    for name, packages in PEERS.items():
        home = asked.folder / name
        if home.exists():
            print(f"{name} is there")
            continue
        venv.create(home, with_pip=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", *flags, *torch_flags, TORCH, "numpy"], check=True)
        subprocess.run([*pip, "install", "-q", *flags, TORCH, *packages], check=True)
        for package in UNWANTED.get(name, []):
            subprocess.run([*pip, "uninstall", "-q", "-y", package], check=True)
        print(f"{name} is ready")


if __name__ == "__main__":
    main()
