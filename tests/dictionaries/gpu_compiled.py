"""Compile every Triton kernel for GPUs that need not be there; prints what each takes, as JSON.

A script, run in a process of its own: Triton makes a kernel either for a compiler or for the
interpreter, and the tests beside this one want the interpreter.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unweave.dictionaries.kernels.gpu import compare, groups, rank, sums, update
from unweave.dictionaries.kernels.gpu.groups import Tiles

BF16, F32, I64, I32 = "*bf16", "*fp32", "*i64", "*i32"
PRODUCT = {"x": BF16, "W": BF16, "b": F32}
SIZES = {"rows": "i32", "n": "i32", "d": "i32"}
ADAM = {
    **dict.fromkeys(("matrix", "gradient", "exp_avg", "exp_avg_sq"), F32), "copy": BF16,
    **dict.fromkeys(("factor", "size", "root", "fresh", "second", "fresh_sq", "eps"), "fp32"),
    "d": "i32",
}  # fmt: skip
BAG = {"ENTRIES": sums.ENTRIES, "WIDTH": sums.WIDTH}


def jobs(wide: bool) -> list[tuple]:
    """Kernel, types of its arguments, constants, warps, stages."""
    tiles = Tiles(latents=256) if wide else Tiles()
    made = []
    for group, even, flag in ((16, True, False), (64, False, True)):
        shape = {"BLOCK_DEEP": tiles.deep, "GROUP": group, "EVEN": even, "WIDEN": False}
        maxima = shape | {
            "BLOCK_ROWS": tiles.rows, "BLOCK_LATENTS": tiles.latents, "SIGNED": flag, "FLOOR": flag
        }  # fmt: skip
        types = PRODUCT | {"floor": F32, "out": F32} | SIZES
        made.append((groups._maxima, types, maxima, tiles.warps, tiles.stages))
        types = PRODUCT | {"row": I64, "which": I32, "place": I64, "out": F32, "pairs": "i32"}
        types |= {"n": "i32", "d": "i32"}
        made.append((groups._members, types, shape | {"BLOCK_PAIRS": tiles.pairs}, 4, tiles.stages))
    bags = {"weight": F32, "matrix": BF16, "index": I64, "ends": I64, "out": F32, "d": "i32"}
    products = {"left": BF16, "right": BF16, "latent": I64, "offsets": I64, "out": F32, "d": "i32"}
    made += [(sums._bags, bags, BAG, 4, 3), (sums._products, products, BAG, 4, 3)]
    types = {"matrix": BF16, "latent": I64, "value": F32, "offsets": I64, "bias": F32}
    types |= {"target": F32, "y": F32, "error": BF16, "to_value": F32, "square": F32}
    types |= {"scale": "fp32", "d": "i32"}
    for width in (1024, compare.WIDEST):
        shape = {"ENTRIES": compare.HELD // width, "WIDTH": width}
        made.append((compare._compare, types, shape, 4 if width == 1024 else 8, 3))
    types = {"scores": F32, "out": I64, "n": "i32", "k": "i32"}
    made += [(rank._top, types, {"WIDTH": w}, min(16, w // 1024), 3) for w in (1024, rank.WIDEST)]
    squares = {"gradient": F32, "beside": F32, "out": F32, "d": "i32"}
    made.append((update._squares, squares, {"WIDTH": 1024, "UNIT": True}, 4, 3))
    made.append((update._adam, ADAM, {"WIDTH": 1024, "UNIT": True, "COPY": True}, 4, 3))
    return made


def _aligned(names: list[str]) -> list[int]:
    """Arguments that are multiples of sixteen, as a real launch finds by itself."""
    return [at for at, name in enumerate(names) if name in ("x", "W", "d")]


def compiled(capability: int) -> list[dict]:
    """Shared memory and whether tensor cores are used, kernel by kernel."""
    found = []
    for kernel, types, constants, warps, stages in jobs(wide=capability in (80, 90)):
        source = ASTSource(
            fn=kernel,
            signature=types | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            attrs={
                (kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in types if n in "xWd"
            },
        )
        made = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
        )
        ptx = made.asm["ptx"]
        found.append(
            {
                "kernel": kernel.__name__,
                "shared": made.metadata.shared,
                "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
            }
        )
    return found


if __name__ == "__main__":
    print(json.dumps(compiled(int(sys.argv[1]))))
