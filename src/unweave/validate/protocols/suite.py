"""The public protocols by name, in the order in which they are run and shown.

A protocol joins by adding its line here; `unweave bench-suite` then knows it.
"""

from collections.abc import Sequence

from unweave.errors import UserError
from unweave.validate.interventions.aggregation_protocol import aggregation
from unweave.validate.interventions.iia_protocol import iia
from unweave.validate.interventions.protocol import interventions, scrubbing
from unweave.validate.protocols.absorption import absorption
from unweave.validate.protocols.autointerp import autointerp
from unweave.validate.protocols.core import core
from unweave.validate.protocols.mib import mib
from unweave.validate.protocols.protocol import Protocol
from unweave.validate.protocols.ravel import ravel
from unweave.validate.protocols.scr import scr
from unweave.validate.protocols.sparse_probing import sparse_probing
from unweave.validate.protocols.sva import sva
from unweave.validate.protocols.tpp import tpp
from unweave.validate.protocols.unlearning import unlearning

PROTOCOLS: tuple[Protocol, ...] = (
    Protocol("core", "what the network loses and how sparse it is (SAEBench core)", core),
    Protocol("sparse_probing", "whether one or a few latents tell a class", sparse_probing),
    Protocol("scr", "whether taking out latents removes a spurious cue (SHIFT)", scr),
    Protocol("tpp", "whether taking out a class's latents spares the others", tpp),
    Protocol("absorption", "whether other latents swallow a word's first letter", absorption),
    Protocol("ravel", "whether attributes of an entity can be changed apart (RAVEL)", ravel),
    Protocol("unlearning", "whether clamped latents make one subject alone forgotten", unlearning),
    Protocol("autointerp", "whether an explanation tells where a latent fires", autointerp),
    Protocol("sva", "whether few latents make verbs agree (sparse feature circuits)", sva),
    Protocol("mib", "how good circuits of the network's own edges are (MIB)", mib),
    Protocol("iia", "whether latents carry a variable from prompt to prompt (MIB)", iia),
    Protocol("interventions", "whether what a latent's change does is foreseen", interventions),
    Protocol("scrubbing", "whether descriptions say which places are interchangeable", scrubbing),
    Protocol("aggregation", "whether united explanations still explain (Angsten)", aggregation),
)


def protocols_named(names: Sequence[str]) -> list[Protocol]:
    """The protocols of these names, in the order of the table; all where no name is given.

    Raises:
        UserError: a name that the table does not have.
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"There is no protocol {', '.join(unknown)}: choose from {', '.join(known)}"
        )
    return [protocol for name, protocol in known.items() if name in names or not names]
