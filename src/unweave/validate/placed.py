"""Coders in the running network: what they read is encoded, changed if asked, and written back.

Trained dictionaries, baselines and the network's own neurons stand in it the same way, so one
measurement serves all. Position 0 is left as it was: every row has the same vector there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.subject import Subject
from unweave.subject.running import Replacement, Run


class Placed(NamedTuple):
    """A coder and the places of a network that it reads and writes."""

    name: str
    """What it is called in tables."""
    coder: Coder
    """Whatever encodes and decodes."""
    reads: tuple[str, ...]
    """Sites read, concatenated in this order."""
    writes: tuple[str, ...]
    """Sites written, cut apart in this order; the same for an autoencoder."""

    @property
    def autoencodes(self) -> bool:
        """Whether it writes what it reads."""
        return self.reads == self.writes

    def cut(self, y: Float[Tensor, "rows d_out"]) -> list[Tensor]:
        """What is written, site by site."""
        if isinstance(self.coder, Dictionary):
            return list(y.split([port.width for port in self.coder.spec.writes], dim=1))
        return list(y.tensor_split(len(self.writes), dim=1))


@contextmanager
def judged(coders: Iterable[Coder]) -> Iterator[None]:
    """Every dictionary among them as after training, for a while: thresholds in the place of
    batches, exact products."""
    modes = [(one, one.training) for one in coders if isinstance(one, Dictionary)]
    try:
        for dictionary, _ in modes:
            dictionary.eval()
        yield
    finally:
        for dictionary, training in modes:
            dictionary.train(training)


def needs_input(coder: Coder) -> bool:
    """Whether a coder's output cannot be had from its code alone (skip, layer norm)."""
    return isinstance(coder, Dictionary) and (coder.spec.skip or coder.spec.layer_norm)


def placed(name: str, dictionary: Dictionary) -> Placed:
    """A dictionary at the sites that its own spec names."""
    spec = dictionary.spec
    return Placed(
        name, dictionary, tuple(p.site for p in spec.reads), tuple(p.site for p in spec.writes)
    )


Edit = Callable[[SparseCode, tuple[int, int]], SparseCode]
"""A change of the code of `batch` rows times `pos - 1` positions, flattened in that order."""


def reconstruct(
    coder: Coder,
    x: Float[Tensor, "rows d_in"],
    edit: Edit | None = None,
    shape: tuple[int, int] = (1, -1),
) -> Float[Tensor, "rows d_out"]:
    """What a coder writes on reading `x`; with `edit`, of the code that it makes of the code.

    A dictionary whose output needs the input besides the code (skip, layer norm) gets what its
    change of the code adds to its output; with a layer norm that is in the units of each row.
    """
    if edit is None and isinstance(coder, Dictionary):
        return _whole(coder, x)
    code = coder.encode(x)
    if edit is None:
        return coder.decode(code)
    changed = edit(code, shape)
    if not needs_input(coder):
        return coder.decode(changed)
    assert isinstance(coder, Dictionary)
    return _whole(coder, x) + difference(coder, x, code, changed)


def _whole(dictionary: Dictionary, x: Tensor) -> Tensor:
    with judged([dictionary]):
        return dictionary(x)


def difference(
    coder: Coder, x: Float[Tensor, "rows d_in"], code: SparseCode, changed: SparseCode
) -> Float[Tensor, "rows d_out"]:
    """What a change of the code changes in what is written: linear in it, the offset cancels."""
    rows = torch.cat([changed.support.row, code.support.row])
    latent = torch.cat([changed.support.latent, code.support.latent])
    value = torch.cat([changed.value, -code.value])
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, latent]), value, (code.support.rows, code.n_latents)
    )
    directions = coder.directions().to(value.dtype)
    moved = torch.sparse.mm(matrix, directions)
    if isinstance(coder, Dictionary) and coder.spec.layer_norm:
        scaled = x.to(directions.dtype) * coder.input_scale
        centred = scaled - scaled.mean(1, keepdim=True)
        moved = moved * (centred.square().mean(1, keepdim=True).sqrt() + 1e-5)
    return moved


@torch.no_grad()
def run_with(
    subject: Subject,
    rows: Int[Tensor, "batch pos"],
    standing: Sequence[Placed],
    *,
    edit: Edit | Mapping[str, Edit] | None = None,
    keep_error: bool = False,
    capture: Sequence[str] = (),
    logits: bool = True,
) -> Run:
    """One pass of the subject with coders standing in it (splice mode `propagated`).

    With `edit`, every code is changed before it is decoded; a mapping has an edit for the coders it
    names. With `keep_error`, what a coder does
    not reproduce stays in the stream, so that without an edit the network is the original: what is
    written is the site's own value plus what the edit changes.
    """
    return subject.run(
        rows,
        capture=list(capture),
        replace=_Standing(standing, edit, keep_error).visits(),
        logits=logits,
    )


class _Standing:
    """Coders of one pass: each encodes once what all its reads have shown."""

    def __init__(
        self,
        standing: Sequence[Placed],
        edit: Edit | Mapping[str, Edit] | None,
        keep_error: bool,
    ) -> None:
        self._standing, self._keep_error = standing, keep_error
        each = dict.fromkeys((one.name for one in standing), edit) if callable(edit) else edit
        self._edits: Mapping[str, Edit | None] = each or {}
        self._read: dict[str, Tensor] = {}
        self._written: dict[str, list[Tensor]] = {}

    def visits(self) -> dict[str, Replacement]:
        """What happens at each site."""
        sites = dict.fromkeys(s for one in self._standing for s in (*one.reads, *one.writes))
        return {site: self._visit(site) for site in sites}

    def _visit(self, site: str) -> Callable[[Tensor], Tensor]:
        writers = [
            (one, place)
            for one in self._standing
            for place, s in enumerate(one.writes)
            if s == site
        ]

        def visit(tensor: Tensor) -> Tensor:
            self._read[site] = inside = tensor[:, 1:].flatten(2).flatten(0, 1)
            if not writers:
                return tensor
            shape = tensor.shape[0], tensor.shape[1] - 1
            new = inside.float() if self._keep_error else torch.zeros_like(inside.float())
            for one, place in writers:
                new = new + self._output(one, shape)[place]
            back = new.view(*shape, *tensor.shape[2:]).to(tensor.dtype)
            return torch.cat([tensor[:, :1], back], dim=1)

        return visit

    def _output(self, one: Placed, shape: tuple[int, int]) -> list[Tensor]:
        if one.name not in self._written:
            x = torch.cat([self._read[site] for site in one.reads], dim=1).float()
            edit = self._edits.get(one.name)
            if not self._keep_error:
                y = reconstruct(one.coder, x, edit, shape)
            elif edit is None:
                y = x.new_zeros(len(x), one.coder.directions().shape[1])
            else:
                code = one.coder.encode(x)
                y = difference(one.coder, x, code, edit(code, shape))
            self._written[one.name] = one.cut(y.float())
        return self._written[one.name]
