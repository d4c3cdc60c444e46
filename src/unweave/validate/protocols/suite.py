"""The public protocols by name, in the order in which they are run and shown.

A protocol joins by adding its line here; `unweave bench-suite` then knows it.
"""

from collections.abc import Sequence

from unweave.errors import UserError
from unweave.validate.protocols.core import core
from unweave.validate.protocols.protocol import Protocol
from unweave.validate.protocols.scr import scr
from unweave.validate.protocols.sparse_probing import sparse_probing
from unweave.validate.protocols.tpp import tpp

PROTOCOLS: tuple[Protocol, ...] = (
    Protocol("core", "what the network loses and how sparse it is (SAEBench core)", core),
    Protocol("sparse_probing", "whether one or a few latents tell a class", sparse_probing),
    Protocol("scr", "whether taking out latents removes a spurious cue (SHIFT)", scr),
    Protocol("tpp", "whether taking out a class's latents spares the others", tpp),
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
