"""A sparse part: reads a site, writes a site, through k latents a token.

    f = topk(relu(W_enc (s_in x) + b_enc))
    y = (W_dec^T f + b_dec + W_skip (s_in x)) / s_out

or, where latents are gated like the neurons of a GLU,

    f = topk(silu(W_gate (s_in x) + b_gate) relu(W_enc (s_in x) + b_enc))     by size

At position 0 of a row that begins with the start token every block sees the same input, so its
output there is one constant vector, often of enormous norm (massive activations). A part stores
that vector (`start_output`) instead of spending latents on it.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.artifact.atomic import write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.kernels.gated import GatedPart, select_gated
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.sparse import Code, SparsePart, product_dtype, select_topk
from unweave.dictionaries.spec import PartSpec


class Part(nn.Module):
    """One TopK dictionary, trainable; call it with the input site's vectors.

    A new or loaded part is in `eval` mode and exact. In `train` mode `run` multiplies as
    `product_dtype` says, in bfloat16 where the processor can: then activations keep three digits.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_gate: Tensor | None
    b_gate: Tensor | None
    W_skip: Tensor | None
    start_output: Tensor

    def __init__(self, spec: PartSpec) -> None:
        super().__init__()
        self.spec = spec
        self.W_enc = nn.Parameter(torch.zeros(spec.n_latents, spec.d_read))
        self.b_enc = nn.Parameter(torch.zeros(spec.n_latents))
        self.W_dec = nn.Parameter(torch.zeros(spec.n_latents, spec.d_out))
        self.b_dec = nn.Parameter(torch.zeros(spec.d_out))
        gate, shift = (nn.Parameter(torch.zeros_like(t)) for t in (self.W_enc, self.b_enc))
        self.register_parameter("W_gate", gate if spec.gated else None)
        self.register_parameter("b_gate", shift if spec.gated else None)
        skip = nn.Parameter(torch.zeros(spec.d_out, spec.d_in)) if spec.skip else None
        self.register_parameter("W_skip", skip)
        self.register_buffer("start_output", torch.zeros(spec.d_out))
        self.eval()

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The part's output for every vector, without regard to positions."""
        return self.run(x)[0]

    def run(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Code]:
        """The output and the code of the flattened rows it came from; differentiable in both."""
        rows = (x.reshape(-1, x.shape[-1]) * self.spec.input_scale).contiguous()
        able = self.training and rows.dtype == torch.float32
        here = rows.device.type == "cpu"
        fast = product_dtype() if here else gpu.number_format(rows.device)
        dtype = fast if able else rows.dtype
        total, code = self.run_scaled(rows, dtype)
        y = (total / self.spec.output_scale).view(*x.shape[:-1], self.spec.d_out)
        return y, code

    def run_scaled(
        self, rows: Float[Tensor, "rows d_in"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "rows d_out"], Code]:
        """The same within the part's own scales, s_in x to s_out y; the encoder's product is taken
        in `dtype`, by default that of the rows.
        """
        spec, up = self.spec, (self.W_enc, self.b_enc)
        if self.W_gate is None:
            found = SparsePart.apply(rows, *up, self.W_dec, spec.k, spec.heads, dtype)
        else:
            gate = (self.W_gate, self.b_gate)
            found = GatedPart.apply(rows, *gate, *up, self.W_dec, spec.k, dtype)
        total, latent, value = found
        total = total + self.b_dec
        if self.W_skip is not None:
            total = torch.addmm(total, rows, self.W_skip.T)
        return total, Code(latent, value)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """Which latents are active in each row and how strongly; no gradients, `run` has those."""
        rows, up = (x * self.spec.input_scale).contiguous(), (self.W_enc, self.b_enc)
        if self.W_gate is None or self.b_gate is None:
            return select_topk(rows, *up, self.spec.k, heads=self.spec.heads)
        found = select_gated(rows, (self.W_gate, self.b_gate), up, self.spec.k)
        return Code(found.latent, found.value)

    def unit_decoder_(self) -> None:
        """Bring every decoder row back to unit norm, so that selection compares like with like.

        An activation is then the norm of what its latent writes, in units of 1/s_out (Gao et al.
        2024 keep the rows so during training).
        """
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `spec.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_tensors(folder / "weights.safetensors", state)
        write_json(folder / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "Part":
        """Read what `save` wrote; a UserError names the file that is missing or does not fit."""
        spec = spec_in(folder, PartSpec, "one dictionary")
        weights = folder / "weights.safetensors"
        loaded = load_tensors(weights, _forms(spec))
        part = cls(spec)
        part.load_state_dict(loaded)
        return part


def _forms(spec: PartSpec) -> dict[str, TensorForm]:
    """What each tensor of a part must look like, told before any memory is taken."""
    n, d_out = spec.n_latents, spec.d_out
    shapes = {
        "W_enc": (n, spec.d_read),
        "b_enc": (n,),
        "W_dec": (n, d_out),
        "b_dec": (d_out,),
        "start_output": (d_out,),
    } | ({"W_skip": (d_out, spec.d_in)} if spec.skip else {})
    if spec.gated:
        shapes |= {"W_gate": shapes["W_enc"], "b_gate": shapes["b_enc"]}
    return {name: TensorForm(shape, torch.float32) for name, shape in shapes.items()}
