"""Dictionaries in the running network: each reads the spliced stream and writes back into it."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.subject import Subject
from unweave.subject.running import Run
from unweave.training.objectives.loss import Watched


class Splice:
    """One forward pass with dictionaries at their sites.

    Position 0 is left as it was: every row has the same vector there, often an enormous one. What
    several dictionaries write to one site is added up (cross-layer transcoders). Each is watched
    against what the network itself computes at the sites it writes, from the same spliced input,
    less what the others write there: their sum is what has that to reach.
    """

    def __init__(
        self, dictionaries: Mapping[str, Dictionary], sites: Collection[str] | None = None
    ) -> None:
        """With `sites`, dictionaries are watched at all of theirs and write to these alone."""
        self._dictionaries, self._sites = dictionaries, sites
        self._read: dict[str, Tensor] = {}
        self._target: dict[str, Tensor] = {}
        self._total: dict[str, Tensor] = {}
        self._done: dict[str, tuple[Tensor, Pass, list[Tensor]]] = {}

    def run(self, subject: Subject, rows: Tensor, *, capture: Sequence[str] = ()) -> Run:
        """Run; gradients reach the dictionaries where they are enabled."""
        self._read, self._target, self._total, self._done = {}, {}, {}, {}
        writers: dict[str, list[tuple[str, int]]] = {}
        for name, dictionary in self._dictionaries.items():
            for place, port in enumerate(dictionary.spec.writes):
                writers.setdefault(port.site, []).append((name, place))
        read = {port.site for d in self._dictionaries.values() for port in d.spec.reads}
        replace = {
            site: self._visit(site, site in read, writers.get(site, []))
            for site in read | set(writers)
        }
        return subject.run(rows, capture=list(capture), replace=replace)

    @property
    def seen(self) -> dict[str, Watched]:
        """What each dictionary did in the last run."""
        found = {}
        for name, (x, passed, parts) in self._done.items():
            dictionary = self._dictionaries[name]
            ports = zip(dictionary.spec.writes, parts, strict=True)
            y = torch.cat([self._left(port.site, part) for port, part in ports], dim=1)
            scale = dictionary.output_scale
            y = x if dictionary.spec.layer_norm else y.to(scale.dtype) * scale
            found[name] = Watched(x.detach(), y.detach(), passed)
        return found

    def _left(self, site: str, part: Tensor) -> Tensor:
        """What the network computes at a site less all that is written there but `part`."""
        target = self._target[site]
        return target if site not in self._total else target - (self._total[site] - part)

    def _visit(
        self, site: str, read: bool, writers: list[tuple[str, int]]
    ) -> Callable[[Tensor], Tensor]:
        def visit(tensor: Tensor) -> Tensor:
            inside = tensor[:, 1:].flatten(2).flatten(0, 1)
            if read:
                self._read[site] = inside
            if not writers:
                return tensor
            self._target[site] = inside
            total = torch.stack([self._output(name)[place] for name, place in writers]).sum(0)
            if len(writers) > 1:
                self._total[site] = total
            if self._sites is not None and site not in self._sites:
                return tensor
            back = total.view(tensor.shape[0], -1, *tensor.shape[2:])
            return torch.cat([tensor[:, :1], back.to(tensor.dtype)], dim=1)

        return visit

    def _output(self, name: str) -> list[Tensor]:
        """What a dictionary writes to each of its sites, computed at the first of them."""
        if name not in self._done:
            dictionary = self._dictionaries[name]
            spec = dictionary.spec
            x = torch.cat([self._read[port.site] for port in spec.reads], dim=1)
            x = x.to(dictionary.W_dec.dtype)
            x, back = dictionary.normalise(x * dictionary.input_scale)
            passed = dictionary.run(x)
            raw = back(passed.y) / dictionary.output_scale
            self._done[name] = x, passed, list(raw.split([p.width for p in spec.writes], dim=1))
        return self._done[name][2]
