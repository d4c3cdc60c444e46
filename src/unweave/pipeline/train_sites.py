"""Which sites dictionaries are trained at, and what is trained there."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unweave.dictionaries.dictionary_spec import Port
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.pipeline.train_settings import Choice, TrainSiteSettings
from unweave.subject import Subject
from unweave.subject.sites import canonical, list_sites
from unweave.training.recipes.ask import Ask, Built
from unweave.training.recipes.catalog import recipe


class Planned(NamedTuple):
    """One choice carried out as far as can be told before training."""

    name: str
    """What its folder and its lines in the log are called."""
    built: Built
    """Its specs and settings."""

    @property
    def end_to_end(self) -> bool:
        """Whether its steps run the subject."""
        return self.built.settings.objective.kind == "end_to_end"

    @property
    def later(self) -> tuple[str, ...]:
        """Sites after its own that its objective looks at."""
        return getattr(self.built.settings.objective, "downstream_sites", ())


def ports_of(subject: Subject, sites: Sequence[str]) -> tuple[Port, ...]:
    """Sites with the width of their vectors, measured in a run of two tokens.

    Raises:
        UserError: no such site, one that holds no vectors of a fixed width, or the same one twice.
    """
    if twice := [site for site in sites if list(sites).count(site) > 1]:
        raise UserError(f"site {twice[0]} is given twice")
    widths = []
    for rows in (2, 3):
        tokens = torch.full((1, rows), subject.start_token or 0, dtype=torch.long)
        found = subject.run(tokens, capture=list(sites), logits=False).sites
        widths.append([found[site][0, 0].numel() for site in sites])
    ports = []
    for site, width, again in zip(sites, *widths, strict=True):
        if width != again or canonical(site).endswith("attn.pattern"):
            raise UserError(f"{site} holds no vectors of one width, so that no dictionary fits it")
        ports.append(Port(site=site, width=width))
    return tuple(ports)


def check_order(subject: Subject, reads: Sequence[Port], writes: Sequence[Port]) -> None:
    """Refuse to write what the network computes before what is read.

    Where no table row knows the network, nobody knows the order, and nothing is refused.

    Raises:
        UserError: a dictionary that could never stand in the network.
    """
    try:
        order = list_sites(subject.geometry)
    except UserError:
        return
    for read, write in zip(reads, writes, strict=False):
        first, second = canonical(read.site), canonical(write.site)
        if first in order and second in order and order.index(first) > order.index(second):
            raise UserError(
                f"{write.site} is computed before {read.site}: read the earlier and write the later"
            )


def later_sites(subject: Subject, written: Sequence[str]) -> tuple[str, ...]:
    """The residual stream before every block that comes after what is written."""
    if subject.family == "module":
        return ()
    names = [canonical(site) for site in written]
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    first = max(blocks, default=-1) + 1
    return tuple(f"blocks.{i}.resid_pre" for i in range(first, subject.n_layers))


def expanded(subject: Subject, sites: Sequence[str]) -> tuple[str, ...]:
    """Sites with every `*` replaced by the number of each layer in turn."""
    return tuple(
        site.replace("*", str(layer))
        for site in sites
        for layer in (range(subject.n_layers) if "*" in site else (0,))
    )


def plan(
    subject: Subject,
    settings: TrainSiteSettings,
    reads: tuple[Port, ...],
    writes: tuple[Port, ...],
) -> list[Planned]:
    """Every choice as a recipe makes it, with `each` once for every pair of sites.

    Raises:
        UserError: no such recipe, one that cannot be carried out at these sites, or sites that
            make no pairs.
    """
    if not settings.each:
        later = later_sites(subject, [port.site for port in writes])
        return [
            Planned(choice.name, _built(choice, settings, reads, writes, later))
            for choice in settings.choices()
        ]
    if len(reads) != len(writes):
        raise UserError(
            f"{len(reads)} sites read and {len(writes)} written make no pairs: name as many of each"
        )
    return [
        Planned(
            f"{choice.name}-{write.site}",
            _built(choice, settings, (read,), (write,), later_sites(subject, [write.site])),
        )
        for choice in settings.choices()
        for read, write in zip(reads, writes, strict=True)
    ]


def _built(
    choice: Choice,
    settings: TrainSiteSettings,
    reads: tuple[Port, ...],
    writes: tuple[Port, ...],
    later: tuple[str, ...],
) -> Built:
    make = recipe(choice.recipe)
    latents = settings.latents or 8 * sum(port.width for port in writes)
    ask = Ask(
        reads=reads, writes=writes, n_latents=latents, k=choice.k, penalty=choice.penalty,
        lr=settings.lr, later=later,
    )  # fmt: skip
    try:
        built = make(ask)
    except ValueError as error:  # what a spec refuses it says in its last line
        raise UserError(f"{choice.name}: {str(error).splitlines()[-1].strip()}") from error
    own = {"schedule": settings.schedule, "dead": settings.dead}
    changes: dict[str, object] = {name: value for name, value in own.items() if value is not None}
    if settings.start is not None:
        start = built.settings.start or Start()
        changes["start"] = start.model_copy(update={"decoder": settings.start})
    return built._replace(settings=built.settings.model_copy(update=changes))
