"""What the machine is and how fast it multiplies: the roofs that times are held against."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

import unweave

_NUMBERS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def describe_machine() -> dict:
    """Processor, what it multiplies, torch and the version of our code; no path, no name."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in _cpu_flags()],
        "threads": 1,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unweave": unweave.__version__,
        "code": _code(),
    }


class Roofline:
    """The best rates seen so far, in flop and bytes a second of one thread; measure often."""

    def __init__(self, batch: int, width: int, latents: int) -> None:
        self.shape = {"batch": batch, "width": width, "latents": latents}
        self._jobs: dict[str, tuple[float, Callable[[], object]]] = {}
        for name, dtype in _NUMBERS.items():
            x, W = torch.randn(batch, width, dtype=dtype), torch.randn(latents, width, dtype=dtype)
            out = torch.empty(batch, latents, dtype=dtype)
            self._jobs[f"encoder_{name}"] = _product(x, W.T, out)
            for side in (1024, 2048):
                a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
                self._jobs[f"square{side}_{name}"] = _product(a, b, torch.empty_like(a))
        self._best = dict.fromkeys(self._jobs, float("inf"))

    def measure(self) -> None:
        """Time every product a few times more and keep the shortest."""
        for name, (_, job) in self._jobs.items():
            # A neighbour slows the fast ones most; they are also the cheapest to repeat.
            repeats = 6 if name.endswith("bfloat16") else 2
            fastest = min(seconds_of(job) for _ in range(repeats))
            self._best[name] = min(self._best[name], fastest)

    def rates(self) -> dict[str, float]:
        """Flop a second: the encoder's own shape, and the best square product (nominal)."""
        found = {name: flop / self._best[name] for name, (flop, _) in self._jobs.items()}
        nominal = {
            f"nominal_{name}": max(rate for job, rate in found.items() if job.endswith(name))
            for name in _NUMBERS
        }
        return {k: v for k, v in found.items() if k.startswith("encoder")} | nominal


def seconds_of(job: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    before = time.process_time()
    job()
    return time.process_time() - before


def bandwidth(repeats: int = 4, megabytes: int = 768) -> float:
    """Bytes a second read and written by a copy of one large array into another, the best of."""
    a = np.ones(megabytes << 17)
    b = np.zeros_like(a)
    return 2 * a.nbytes / min(seconds_of(lambda: np.copyto(b, a)) for _ in range(repeats))


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> tuple[float, Callable]:
    flop = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    return flop, lambda: torch.mm(a, b, out=out)


def _cpu_flags() -> set[str]:
    return set(_cpu_line("flags").split())


def _cpu_model() -> str:
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_line(field: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((li.split(":", 1)[1].strip() for li in lines if li.startswith(field)), "")


def _code() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
