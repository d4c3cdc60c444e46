"""What an artifact says of its latents, as claims that can be scored on any text."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from unweave.artifact import layout
from unweave.artifact.descriptions import Descriptions
from unweave.describe.claims import CLAIM, Claim, UnexplainedClaim
from unweave.errors import UserError

_NEVER = UnexplainedClaim(otherwise_probability=2.0**-20, otherwise_activation=2.0**-16)
"""Of a latent that nothing is said of."""


def read_claims(path: Path, sizes: Sequence[tuple[str, int]]) -> dict[str, list[Claim]]:
    """The last claim about every latent of each part (name, latents).

    Raises:
        UserError: no descriptions, or claims that cannot be read.
    """
    found: dict[str, list[Claim]] = {part: [_NEVER] * size for part, size in sizes}
    with Descriptions(path / layout.DESCRIPTIONS) as store:
        if not len(store):
            raise UserError(f"{path} describes none of its features: run decompile again")
        for part, claims in found.items():
            for said in sorted(store.of_part(part), key=lambda one: one.round):
                try:
                    claims[said.feature.latent] = CLAIM.validate_python(said.claim)
                except (ValidationError, IndexError) as error:
                    raise UserError(
                        f"{path / layout.DESCRIPTIONS} says of {said.feature} what is no claim: "
                        "the file is damaged"
                    ) from error
    return found
