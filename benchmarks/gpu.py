"""What unweave does on one GPU, in one command, written as JSON.

    python -m benchmarks.gpu [--parts kernels steps decompile] [--out FILE]
                             [--subject smollm2-135m] [--text wiki] [--tokens 2000000]

`kernels` holds what the Triton kernels choose against torch at full size; `steps` times training
steps beside the GPU's best bfloat16 product and, where it is installed, sparsify with its Triton
kernels, turn by turn; `decompile` takes a whole network apart and keeps its numbers.
"""

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import torch

import unweave
from benchmarks.gpu_steps import (
    SHAPES,
    Shape,
    batches,
    ours,
    plain,
    product_rate,
    seconds_of,
    sparsify,
)
from unweave.artifact.atomic import write_json
from unweave.artifact.folder import open_artifact
from unweave.dictionaries.kernels.gpu import calls
from unweave.errors import UserError
from unweave.pipeline import DecompileSettings, decompile
from unweave.progress import watching

HERE = Path(__file__).parent
PARTS = ("kernels", "steps", "decompile")
TURNS = 5


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    parser.add_argument("--subject", default="smollm2-135m")
    parser.add_argument("--text", default="wiki")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "gpu")
    return parser.parse_args()


def main() -> None:
    """Run the parts one after the other; each is written as soon as it is done."""
    asked = arguments()
    if not torch.cuda.is_available():
        raise UserError(
            "benchmarks.gpu measures a GPU and torch finds none on this machine: run it where "
            "torch.cuda.is_available() is true"
        )
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    results["machine"] = machine()
    for part in asked.parts:
        if part == "decompile":
            results[part] = whole_network(asked)
        else:
            results[part] = chosen_alike() if part == "kernels" else timed()
        write_json(asked.out, results)
    print(json.dumps(results, indent=1))


def machine() -> dict:
    """The GPU, and what runs on it."""
    about = torch.cuda.get_device_properties(0)
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    return {
        "date": date.today().isoformat(),
        "gpu": about.name,
        "memory_gb": round(about.total_memory / 1e9, 1),
        "processors": about.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version,
        "unweave": unweave.__version__,
    }


def chosen_alike() -> list[dict]:
    """Share of rows in which the kernels choose what torch's top-k of exact scores chooses.

    Not quite all: two latents may be closer than the last bits in which sums are taken differ.
    """
    found = []
    for d, n in ((576, 4608), (768, 16_384), (2048, 65_536)):
        generator = torch.Generator("cuda").manual_seed(1)
        x, W = (
            torch.randn(rows, d, generator=generator, device="cuda").bfloat16()
            for rows in (2048, n)
        )
        b = torch.randn(n, generator=generator, device="cuda")
        chosen = calls.largest_products(x, W, b, 32)
        exact = (x.double() @ W.double().T + b.double()).topk(32, dim=1)
        if chosen is None:
            found.append({"width": d, "latents": n, "kernel": False})
            continue
        mine = chosen.support.latent.view(-1, 32).sort(1).values
        same = (mine == exact.indices.sort(1).values).all(1).double().mean().item()
        gap = chosen.score.view(-1, 32).sort(1, descending=True).values.double() - exact.values
        largest = gap.abs().max().item()
        found.append({"width": d, "latents": n, "same_rows": same, "largest_gap": largest})
        if same < 0.99 or largest > 1e-2:
            raise UserError(f"the kernels choose wrongly at width {d}, {n} latents: {found[-1]}")
    return found


def timed() -> dict:
    """Vectors a second of every shape, turn by turn, and shares of the best product's rate."""
    nominal = max(product_rate(side, side, side) for side in (4096, 8192))
    found = {"nominal_flops": nominal, "shapes": [race(shape, nominal) for shape in SHAPES]}
    best = max(one["unweave"]["vectors_per_second"] for one in found["shapes"])
    return found | {"best_vectors_per_second": best}


def race(shape: Shape, nominal: float) -> dict:
    """One shape: everybody's seconds a step, median of turns that take turns."""
    drawn = batches(shape)
    first = next(drawn)
    runners = {
        "unweave": ours(shape, first),
        "sparsify": sparsify(shape, first, autocast=False),
        "sparsify-autocast": sparsify(shape, first, autocast=True),
        "plain-autocast": plain(shape, first),
    }
    runners = {name: step for name, step in runners.items() if step is not None}
    turns: dict[str, list[float]] = {name: [] for name in runners}
    rate = 0.0
    for _ in range(TURNS):
        rate = max(rate, product_rate(shape.batch, shape.width, shape.latents))
        for name, step in runners.items():
            turns[name].append(seconds_of(lambda s=step: s(next(drawn)), least=10, repeats=1))
    encoder = 2.0 * shape.batch * shape.width * shape.latents
    report = {"shape": shape._asdict(), "encoder_flops": rate}
    for name, seconds in turns.items():
        step = median(seconds)
        report[name] = {
            "step_ms": 1e3 * step,
            "vectors_per_second": shape.batch / step,
            "share_of_encoder_rate": encoder / step / rate,
            "share_of_nominal_rate": encoder / step / nominal,
            "times_ours": median(
                theirs / mine for theirs, mine in zip(seconds, turns["unweave"], strict=True)
            ),
        }
    torch.cuda.empty_cache()
    return report


def whole_network(asked: argparse.Namespace) -> dict:
    """One decompilation by the existing pipeline: seconds a stage and the network's numbers."""
    settings = DecompileSettings(text=asked.text, tokens=asked.tokens, device="cuda")
    begun = time.perf_counter()
    torch.cuda.reset_peak_memory_stats()
    out = decompile(
        asked.subject, settings=settings, out=asked.work / asked.subject, progress=watching()
    )
    scores = open_artifact(out).scores().model_dump(mode="json")
    kept = ("four_numbers", "splice", "controls", "baselines", "stages", "seconds")
    return {
        "subject": asked.subject,
        "text": asked.text,
        "tokens": asked.tokens,
        "wall_seconds": time.perf_counter() - begun,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9,
        "scores": {name: scores[name] for name in kept if name in scores},
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
