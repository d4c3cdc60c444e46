"""Cross-layer transcoders in place of all MLPs, in the subject's own skeleton.

    a^l = topk( W_enc^l mlp.in_l + b_l )
    mlp.out_m = sum over l <= m of W_dec^(l -> m) a^l + b_m

(Anthropic 2025's replacement model, which leaves attention to the original.) Here sparse parts can
stand for attention's values, queries and keys as well. No MLP of the subject runs; each member
reads the spliced stream, so errors compound.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.activations.workers import twin_of
from unweave.artifact.atomic import new_folder
from unweave.dictionaries.cross_layer import load_cross_layer, save_cross_layer
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.running import Run
from unweave.training.fit import load_parts, save_parts
from unweave.training.stand_in import AtStart, StandIn, stand_ins


class _Board:
    """What members have written to MLP outputs that are still to come, in one pass."""

    def __init__(self) -> None:
        self.written: dict[str, Tensor] = {}

    def add(self, site: str, part: Tensor) -> None:
        self.written[site] = self.written[site] + part if site in self.written else part


class CrossLayerMLP(nn.Module):
    """One member in the place of its MLP: writes there and leaves word for the later ones."""

    first: Tensor

    def __init__(self, member: Dictionary, board: _Board, first: Tensor, at_start: AtStart) -> None:
        super().__init__()
        self.member = member
        self.l0 = 0.0
        """Active latents per token in the last call, the start token left out."""
        self.register_buffer("first", first)
        self._board, self._at_start = board, at_start

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """`mlp.in` to `mlp.out`."""
        member = self.member
        ports = member.spec.writes
        if ports[0].site == "blocks.0.mlp.out":
            self._board.written = {}
        passed = member.run(x.flatten(0, 1).to(member.W_dec.dtype) * member.input_scale)
        raw = (passed.y / member.output_scale).unflatten(0, x.shape[:2])
        for port, part in zip(ports, raw.split([p.width for p in ports], dim=-1), strict=True):
            self._board.add(port.site, part)
        y = self._board.written.pop(ports[0].site).to(x.dtype)
        self.l0 = passed.sparse_code.l0()
        if not self._at_start.yes:
            return y
        return torch.cat([self.first.to(x.dtype).expand(len(y), 1, -1), y[:, 1:]], dim=1)


class CrossLayerNetwork(nn.Module):
    """A network that can stand where the original stood.

    ```python
    network = CrossLayerNetwork(subject, members, parts)
    logits = network(tokens)  # [batch, pos, vocab]
    ```

    Rows begin with the start token, where every MLP's output is a stored constant.
    """

    def __init__(
        self, subject: Subject, members: Mapping[str, Dictionary], parts: Mapping[str, Part] | None
    ) -> None:
        super().__init__()
        parts = parts or {}
        self.members_by_name, self.parts_by_name = dict(members), dict(parts)
        self.subject = twin_of(subject)
        """The subject's twin; the members and parts are put in place for each pass."""
        at_start, board = AtStart(), _Board()
        firsts = _firsts(subject, members)
        self._replacements = [
            CrossLayerMLP(member, board, first, at_start)
            for member, first in zip(members.values(), firsts, strict=True)
        ]
        self._members = nn.ModuleList(members.values())
        self._attention: dict[str, StandIn] = stand_ins(parts.values(), at_start)
        self._parts = nn.ModuleList(parts.values())

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits; differentiable in everything that was put in place."""
        logits = self.run(tokens).logits
        assert logits is not None
        return logits

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        capture: tuple[str, ...] = (),
        attention: Mapping[str, bool] | None = None,
    ) -> Run:
        """A pass that gives sites of the spliced network too.

        `attention` says of parts by name whether they are in place; those not named are.
        """
        placed: dict[str, nn.Module] = {
            f"L{n}.mlp": mlp for n, mlp in enumerate(self._replacements)
        }
        wanted = attention or {}
        placed |= {name: s for name, s in self._attention.items() if wanted.get(name, True)}
        with ExitStack() as stack:
            stack.enter_context(self.subject.swapped(placed))
            return self.subject.run(tokens, capture=list(capture))

    def active(self) -> dict[str, float]:
        """Active latents per token and MLP or part, in the last pass."""
        found = {f"L{n}.mlp": mlp.l0 for n, mlp in enumerate(self._replacements)}
        for name, stand in self._attention.items():
            if stand.code is not None:
                found[name] = (stand.code.value != 0).sum(1).float().mean().item()
        return found

    def save(self, folder: Path) -> None:
        """Write members and parts into a new folder, whole or not at all."""
        with new_folder(folder) as partial:
            save_cross_layer(self.members_by_name, partial / "members")
            (partial / "parts").mkdir()
            save_parts(self.parts_by_name, partial / "parts")

    @classmethod
    def load(cls, folder: Path, subject: Subject) -> "CrossLayerNetwork":
        """Read what `save` wrote.

        Raises:
            UserError: no set of members there, or one that does not fit the subject.
        """
        return cls(subject, load_cross_layer(folder / "members"), load_parts(folder / "parts"))


def _firsts(subject: Subject, members: Mapping[str, Dictionary]) -> list[Tensor]:
    """What each MLP writes at the start token."""
    sites = [f"blocks.{layer}.mlp.out" for layer in range(subject.n_layers)]
    own = [member.spec.writes[0].site for member in members.values()]
    if own != sites:
        raise UserError(
            f"these members write {', '.join(own)} first: {subject.name} needs one for each of its "
            f"{len(sites)} MLPs, in order"
        )
    first = torch.tensor([[subject.start_token]])
    found = subject.run(first, capture=sites, logits=False).sites
    return [found[site][0, 0].float().clone() for site in sites]
