"""A network's weight matrices as sums of rank-one pieces: W ~ sum over c of U_c V_c^T.

No activation dictionary here: the pieces are of the parameters themselves, and there may be more
of them than the matrix has rank. Which of them an input needs is what the gates say
(`importance.py`); running the network on a part of them is in `masked.py`. Biases stay whole.

Bushnaq, Braun & Sharkey 2025, Stochastic Parameter Decomposition (arXiv:2506.20790).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.artifact.atomic import write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.components.importance import Gates, Importance
from unweave.dictionaries.components.spec import ComponentsSpec, MatrixSpec
from unweave.errors import UserError


class MatrixComponents(nn.Module):
    """The pieces of one matrix, with their gates; piece c reads along V[c] and writes U[c]."""

    def __init__(self, spec: MatrixSpec) -> None:
        super().__init__()
        self.spec = spec
        self.V = nn.Parameter(torch.zeros(spec.n_components, spec.d_in))
        self.U = nn.Parameter(torch.zeros(spec.n_components, spec.d_out))
        self.gates = Gates(spec.n_components, spec.gate_width)

    def start_(self, generator: torch.Generator) -> None:
        """Normal entries, so that the sum of all pieces has the scale of a fresh linear layer."""
        with torch.no_grad():
            self.V.normal_(0, self.spec.d_in**-0.5, generator=generator)
            self.U.normal_(0, self.spec.n_components**-0.5, generator=generator)
        self.gates.start_(generator)

    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The sum of all pieces."""
        return self.U.T @ self.V

    def inner(self, a: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch components"]:
        """What every piece reads of the matrix's input: h_c = V_c . a."""
        return a @ self.V.T

    def written(
        self,
        inner: Float[Tensor, "*batch components"],
        mask: Float[Tensor, "*#batch components"],
    ) -> Float[Tensor, "*batch d_out"]:
        """What the pieces write when piece c is scaled by `mask[..., c]`."""
        return (inner * mask) @ self.U

    def importance(self, a: Float[Tensor, "*batch d_in"]) -> Importance:
        """How much every piece matters for each input."""
        inner = self.inner(a)
        return Importance(inner, self.gates(inner))


class Components(nn.Module):
    """The pieces of all decomposed matrices of one network."""

    def __init__(self, spec: ComponentsSpec) -> None:
        super().__init__()
        self.spec = spec
        self.matrices = nn.ModuleList(MatrixComponents(matrix) for matrix in spec.matrices)

    def by_name(self) -> dict[str, MatrixComponents]:
        """Every matrix's pieces under the matrix's name."""
        return {m.spec.name: m for m in self.matrices if isinstance(m, MatrixComponents)}

    def importances(self, inputs: Mapping[str, Tensor]) -> dict[str, Importance]:
        """What the gates say, from every matrix's own input [*batch, d_in]."""
        return {name: m.importance(inputs[name]) for name, m in self.by_name().items()}

    def faithfulness(self, target: nn.Module) -> Float[Tensor, ""]:
        """Mean squared difference between the sums of pieces and the target's weights.

        The mean is over all decomposed parameters together (the paper's L_faithfulness).
        """
        pairs = [(m.weight(), linear_layer(target, n).weight) for n, m in self.by_name().items()]
        total = torch.stack([(ours - theirs).square().sum() for ours, theirs in pairs]).sum()
        return total / sum(theirs.numel() for _, theirs in pairs)

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `spec.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_tensors(folder / "weights.safetensors", state)
        write_json(folder / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "Components":
        """Read what `save` wrote; a UserError names the file that is missing or does not fit."""
        spec = spec_in(folder, ComponentsSpec, "parameter components")
        with torch.device("meta"):
            shapes = {name: tuple(t.shape) for name, t in cls(spec).state_dict().items()}
        forms = {name: TensorForm(shape, torch.float32) for name, shape in shapes.items()}
        loaded = load_tensors(folder / "weights.safetensors", forms)
        components = cls(spec)
        components.load_state_dict(loaded)
        return components


def start_components(
    target: nn.Module, counts: Mapping[str, int], *, seed: int, gate_width: int = 16
) -> Components:
    """Random components for the named linear layers of `target`, `counts[name]` pieces each.

    Raises UserError for a name that is no `nn.Linear` of the target.
    """
    matrices = []
    for name, count in counts.items():
        d_out, d_in = linear_layer(target, name).weight.shape
        matrices.append(
            MatrixSpec(name=name, d_in=d_in, d_out=d_out, n_components=count, gate_width=gate_width)
        )
    components = Components(ComponentsSpec(matrices=tuple(matrices)))
    generator = torch.Generator().manual_seed(seed)
    for matrix in components.by_name().values():
        matrix.start_(generator)
    return components


def linear_layer(target: nn.Module, name: str) -> nn.Linear:
    """The named linear layer, or a UserError that lists the ones there are."""
    found = dict(target.named_modules()).get(name)
    if isinstance(found, nn.Linear):
        return found
    there = [path for path, module in target.named_modules() if isinstance(module, nn.Linear)]
    raise UserError(
        f"The network has no linear layer {name!r} to decompose: "
        f"name one of {', '.join(there) or 'none, it has no linear layers'}"
    )
