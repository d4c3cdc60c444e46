"""The semantic splice writes what is said and nothing that was seen."""

import numpy as np
import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows

from unweave.describe.claims import TokenClaim, UnexplainedClaim
from unweave.describe.rules import compile_claims
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.validate.numbers.spoken import run_spoken
from unweave.validate.placed import placed

D, VOCAB, SITE, N, TOKEN = 32, 64, "blocks.1.resid_pre", 12, 7
SUBJECT = tiny_llama()
WORDS = Vocabulary.from_decode(lambda token: f" w{token}", VOCAB)
ROWS = tiny_rows(4, 12)


def claims() -> list:
    """Latent 0 fires at a token alone; of the others nothing is said but how often they fire."""
    rest = [UnexplainedClaim(otherwise_probability=0.25, otherwise_activation=2.0)] * (N - 1)
    first = TokenClaim(
        tokens=(TOKEN,), probability=(0.5,), activation=(4.0,),
        otherwise_probability=0.125, otherwise_activation=8.0,
    )  # fmt: skip
    return [first, *rest]


def expected() -> torch.Tensor:
    """[places, latents]: probability times activation, by hand."""
    at_token = (ROWS[:, 1:].flatten() == TOKEN).float()
    assert 0 < at_token.sum() < len(at_token)
    first = torch.where(at_token > 0, 0.5 * 4.0, 0.125 * 8.0)
    return torch.cat([first[:, None], torch.full((len(first), N - 1), 0.25 * 2.0)], 1)


def spoken(dictionary: Dictionary, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    one = placed("d", dictionary)
    table = compile_claims(claims(), VOCAB)
    with pytest.MonkeyPatch.context() as patch:
        seen = {}
        run = SUBJECT.run

        def watched(rows: torch.Tensor, **options: object) -> object:
            found = run(rows, **(options | {"capture": [site, *options.get("capture", ())]}))
            seen[site] = found.sites[site]
            return found

        patch.setattr(SUBJECT, "run", watched)
        run_spoken(SUBJECT, ROWS, [one], {"d": table}, WORDS)
    whole = run(ROWS, capture=[site], logits=False).sites[site]
    return seen[site], whole


def test_what_is_said_is_written_background_included():
    dictionary = bump(Dictionary(autoencoder(SITE, D, N, TopK(k=3)))).requires_grad_(False)
    now, was = spoken(dictionary, SITE)
    said = expected() @ dictionary.directions() + dictionary.b_dec
    torch.testing.assert_close(now[:, 1:].flatten(0, 1), said, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(now[:, 0], was[:, 0])
    assert not np.allclose(now[:, 1:], was[:, 1:], atol=0.1)


def test_a_linear_map_beside_the_latents_stays():
    reads, writes = "blocks.0.mlp.in", "blocks.0.mlp.out"
    spec = DictionarySpec(
        name="d", reads=(Port(site=reads, width=D),), writes=(Port(site=writes, width=D),),
        n_latents=N, activation=TopK(k=3), skip=True,
    )  # fmt: skip
    dictionary = bump(Dictionary(spec)).requires_grad_(False)
    now, _ = spoken(dictionary, writes)
    x = SUBJECT.run(ROWS, capture=[reads], logits=False).sites[reads][:, 1:].flatten(0, 1)
    said = expected() @ dictionary.directions() + dictionary.b_dec + x @ dictionary.W_skip.T
    torch.testing.assert_close(now[:, 1:].flatten(0, 1), said, atol=1e-3, rtol=1e-3)
