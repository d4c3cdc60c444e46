"""A compiled program: its network, and everything that is known about it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.worlds.programs.language import Aggregate, Share
from unweave.validate.worlds.programs.layout import (
    EMBED,
    LOGITS,
    POSITIONS,
    Edge,
    Layout,
    Variable,
    head_name,
    mlp_name,
)
from unweave.validate.worlds.programs.network import NetworkConfig, ProgramNetwork
from unweave.validate.worlds.programs.program import Program


@dataclass(frozen=True)
class Compiled:
    """A program as a network whose variables, directions and circuit are known."""

    program: Program
    """What it computes."""
    subject: Subject
    """The network."""
    layout: Layout
    """Variables and the components that write them."""
    directions: Float[Tensor, "directions d_model"]
    """Row i: where direction i of the layout lies in the residual stream. Orthonormal, unless the
    network is compressed. Row 0 marks the start of a row."""
    edges: frozenset[Edge]
    """The true circuit."""

    @property
    def variables(self) -> list[Variable]:
        """In the order of computation."""
        return list(self.layout.variables.values())

    @cached_property
    def labels(self) -> list[str]:
        """What each row of `directions` says."""
        return ["start", *(label for v in self.variables for label in v.labels)]

    @property
    def nodes(self) -> list[str]:
        """All components that can write to the stream, in the order of computation."""
        return components(self.subject)

    @property
    def true_nodes(self) -> frozenset[str]:
        """The components that the program uses."""
        return frozenset(edge.source for edge in self.edges)

    @torch.no_grad()
    def accuracy(self, rows: Int[Tensor, "rows pos"]) -> float:
        """Share of places after the start at which the highest logit is the program's answer."""
        logits = self.subject.run(rows).logits
        assert logits is not None
        return (logits[:, 1:].argmax(-1) == self.program.answers(rows)).float().mean().item()

    def activity(
        self, rows: Int[Tensor, "rows pos"], site: str = "final"
    ) -> Float[Tensor, "rows pos directions"]:
        """How much of each direction the program puts on the stream at a site.

        `site` is `embed`, `final` or a block's `resid_pre`, `resid_mid` or `resid_post`. Times
        `directions` it is the stream of the network that is not compressed.
        """
        if site not in _streams(self.subject.n_layers):
            raise UserError(
                f"{self.program.name} knows what is on the residual stream (embed, "
                f"blocks.0.resid_pre ... final), not at {site}"
            )
        others = [v.operator for v in self.variables if not v.used]
        out = torch.zeros(*rows.shape, self.layout.size)
        out[:, 0, 0] = 1.0
        there = [v for v in self.variables if v.at(site)]
        for row, words in enumerate(self.program.decode(rows)):
            found = self.program.values(words, *others)
            for variable in there:
                self._put(out[row], variable, found[variable.operator])
        return out

    def _put(self, out: Tensor, variable: Variable, values: list) -> None:
        domain = variable.values
        # At the start every selection is empty.
        if isinstance(variable.operator, Share):
            out[0, variable.start] = 1.0
        elif isinstance(variable.operator, Aggregate) and domain is not None:
            out[0, variable.start + domain.index(None)] = 1.0
        for place, value in enumerate(values, start=1):
            if domain is None:
                out[place, variable.start] = float(value)
            else:
                out[place, variable.start + domain.index(value)] = 1.0

    def truth(
        self, rows: Int[Tensor, "rows pos"], site: str = "final"
    ) -> tuple[Float[Tensor, "kept d_model"], SparseCode]:
        """What a dictionary of a site should find: the unit directions that are there after the
        start of a row, and how strong each is at every place, row by row, for `measure_recovery`.
        """
        kept = self.directions_at(site)
        directions = self.directions[kept]
        strength = self.activity(rows, site)[:, 1:, kept].flatten(0, 1)
        code = SparseCode.from_dense(strength * directions.norm(dim=1))
        return nn.functional.normalize(directions, dim=1), code

    def directions_at(self, site: str) -> Int[Tensor, " kept"]:
        """The directions that are on the stream at a site after the start of a row, by number."""
        there = [v for v in self.variables if v.at(site)]
        return torch.cat([torch.arange(v.start, v.start + v.size) for v in there])


def components(subject: Subject) -> list[str]:
    """All components of a network that write to the stream, in the order of computation."""
    found = [EMBED, POSITIONS]
    for layer in range(subject.n_layers):
        found += [head_name(layer, head) for head in range(subject.n_heads)]
        found.append(mlp_name(layer))
    return found


def candidate_edges(subject: Subject) -> list[Edge]:
    """Every edge that the architecture allows: each component into all that come after it."""
    sources, found = [EMBED, POSITIONS], []
    for layer in range(subject.n_layers):
        heads = [head_name(layer, head) for head in range(subject.n_heads)]
        found += [Edge(s, f"{head}.{role}") for head in heads for role in "qkv" for s in sources]
        sources += heads
        found += [Edge(s, mlp_name(layer)) for s in sources]
        sources.append(mlp_name(layer))
    return found + [Edge(s, LOGITS) for s in sources]


def _streams(n_layers: int) -> list[str]:
    inner = [f"blocks.{i}.resid_{p}" for i in range(n_layers) for p in ("pre", "mid", "post")]
    return [EMBED, *inner, "final"]


def projected(
    state: dict[str, Tensor], basis: Float[Tensor, "directions d_model"]
) -> dict[str, Tensor]:
    """Weights of a network over directions as weights over a stream in which those lie as `basis`.

    Everything is written through the basis and read through its transpose (Tracr's compression);
    differentiable in the basis.
    """
    new = {}
    for name, weight in state.items():
        if name.endswith(("attn_in.weight", "mlp_in.weight", "final.weight")):
            new[name] = weight.new_ones(basis.shape[1])
        elif name.endswith(("attn.out.weight", "mlp.down.weight")):
            new[name] = basis.T @ weight
        elif name.endswith((".q.bias", ".k.bias", ".v.bias", "up.bias")):
            new[name] = weight
        else:
            new[name] = weight @ basis
    return new


@torch.no_grad()
def project(network: ProgramNetwork, basis: Float[Tensor, "directions d_model"]) -> ProgramNetwork:
    """The same network with its directions laid into another residual stream."""
    sizes = vars(network.config) | {"hidden_size": basis.shape[1]}
    new = ProgramNetwork(NetworkConfig(**sizes))
    new.load_state_dict(projected(network.state_dict(), basis))
    return new
