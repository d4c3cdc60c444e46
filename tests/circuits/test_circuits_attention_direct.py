"""Direct attribution: exact in every family, and by hand where head and source are known."""

import pytest
import torch
from hand_attention import hand_dictionary, hand_subject, repeated_rows
from tiny_subject import FAMILIES, START, bump, family_subject, tiny_llama, tiny_rows

from unweave.circuits.attention.direct import direct_attribution, mean_values
from unweave.circuits.attention.reading import (
    Places,
    codes_at,
    linear_reads,
    strongest_places,
)
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError
from unweave.subject import Subject

SITE = "blocks.1.attn.z"


def random_dictionary(subject: Subject, latents: int = 20, **changes: object) -> Dictionary:
    width = subject.n_heads * subject.d_head
    port = (Port(site=SITE, width=width, scale=1.7),)
    spec = DictionarySpec(
        name="random", reads=port, writes=port, n_latents=latents, activation=TopK(k=4), **changes
    )
    return bump(Dictionary(spec).requires_grad_(False).eval(), 0.5)


def some_places(rows: int, width: int, latents: int, count: int = 24) -> Places:
    g = torch.Generator().manual_seed(3)
    return Places(
        torch.randint(rows, (count,), generator=g),
        torch.randint(1, width, (count,), generator=g),
        torch.randint(latents, (count,), generator=g),
    )


def pre_activations(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    rows, _ = dictionary.normalise(x * dictionary.input_scale)
    return dictionary.encoder.dense(rows - dictionary.b_dec if dictionary.spec.pre_bias else rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_to_the_pre_activation_in_every_family(family: str) -> None:
    subject = family_subject(family)
    tokens = tiny_rows(5, 12, vocab=97)
    dictionary = random_dictionary(subject, pre_bias=True)
    places = some_places(5, 12, 20)
    found = direct_attribution(subject, SITE, dictionary, tokens, places, rows_at_once=2)
    z = subject.run(tokens, capture=[SITE]).sites[SITE]
    pre = pre_activations(dictionary, z.flatten(0, 1)).unflatten(0, z.shape[:2])
    torch.testing.assert_close(found.total, pre[places], rtol=0, atol=1e-4)
    w = linear_reads(dictionary).by_head(subject.n_heads)[places.latent]
    by_head = (w * z[places.row, places.position].unflatten(1, w.shape[1:])).sum(2)
    torch.testing.assert_close(found.by_head, by_head, rtol=0, atol=1e-4)
    later = torch.arange(12) > places.position[:, None]
    assert not found.by_source[later].any(), "nothing comes from what is still to come"
    assert found.by_source.std() > 1e-3


@pytest.mark.parametrize("layer_norm", [False, True])
def test_mean_values_move_to_the_offset_and_the_sum_stays(layer_norm: bool) -> None:
    subject, tokens, places = tiny_llama(), tiny_rows(5), some_places(5, 16, 20)
    dictionary = random_dictionary(subject, layer_norm=layer_norm)
    means = mean_values(subject, SITE, tokens, rows_at_once=2)
    v = subject.run(tokens, capture=["blocks.1.attn.v"]).sites["blocks.1.attn.v"]
    torch.testing.assert_close(means[::2], v[:, 1:].mean((0, 1)))
    plain = direct_attribution(subject, SITE, dictionary, tokens, places)
    found = direct_attribution(subject, SITE, dictionary, tokens, places, means=means)
    torch.testing.assert_close(found.total, plain.total, rtol=0, atol=1e-4)
    assert (found.offset - plain.offset).abs().max() > 1e-2
    still = direct_attribution(subject, SITE, dictionary, tokens, places, means=means * 0)
    torch.testing.assert_close(still.contributions, plain.contributions)


def test_a_layer_norm_is_taken_as_it_is_in_the_row() -> None:
    subject = tiny_llama()
    tokens, places = tiny_rows(3), some_places(3, 16, 20)
    dictionary = random_dictionary(subject, pre_bias=True, layer_norm=True)
    found = direct_attribution(subject, SITE, dictionary, tokens, places)
    z = subject.run(tokens, capture=[SITE]).sites[SITE]
    pre = pre_activations(dictionary, z.flatten(0, 1)).unflatten(0, z.shape[:2])
    torch.testing.assert_close(found.total, pre[places], rtol=0, atol=1e-4)


def test_a_part_whose_latents_read_one_head_each_gets_all_from_that_head() -> None:
    subject = tiny_llama()
    spec = PartSpec(
        name="L1.attn", input_site=SITE, output_site="blocks.1.attn.out", d_in=32, d_out=32,
        n_latents=20, k=4, heads=4, input_scale=1.3,
    )  # fmt: skip
    part = bump(Part(spec).requires_grad_(False))
    tokens, places = tiny_rows(3), some_places(3, 16, 20)
    found = direct_attribution(subject, SITE, part, tokens, places)
    own = places.latent // 5
    mine = found.by_head.gather(1, own[:, None])[:, 0]
    torch.testing.assert_close(found.by_head.sum(1), mine)
    z = subject.run(tokens, capture=[SITE]).sites[SITE].unflatten(2, (4, 8))
    x = z[places.row, places.position, own] * 1.3
    pre = (x * part.W_enc[places.latent]).sum(1) + part.b_enc[places.latent]
    torch.testing.assert_close(found.total, pre, rtol=0, atol=1e-4)


def test_the_head_and_the_source_that_were_built_in_are_found() -> None:
    """A latent that reads the induction head's token: one head, one source, nothing else."""
    subject, tokens = hand_subject(), repeated_rows(3, 8)
    wanted = int(tokens[0, 5])
    dictionary = hand_dictionary(1, [(0, wanted), (1, wanted)])
    at = 8 + 4  # where the token before it stands for the second time
    places = Places(torch.tensor([0, 0]), torch.tensor([at, at]), torch.tensor([0, 1]))
    found = direct_attribution(subject, SITE, dictionary, tokens, places)
    share = found.by_source[0] / found.by_source[0].sum()
    assert share[5] > 0.95
    assert found.by_head[0, 0] > 0.5
    assert found.by_head[0, 1].abs() < 1e-6
    assert found.by_source[1, 5] < 0.2 * found.by_source[0, 5], "a head that looks everywhere"


def test_the_strongest_firings_of_each_latent_are_found() -> None:
    dense = torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 5.0], [2.0, 4.0], [9.0, 0.0], [0.0, -1.0]])
    found = strongest_places(SparseCode.from_dense(dense), 3, 2)
    assert found.latent.tolist() == [0, 0, 1, 1]
    assert found.row.tolist() == [1, 1, 0, 1]
    assert found.position.tolist() == [2, 1, 3, 1]


def test_codes_leave_the_first_position_out() -> None:
    subject, tokens = hand_subject(), repeated_rows(3, 8)
    code = codes_at(subject, SITE, hand_dictionary(1, [(0, 5)]), tokens, rows_at_once=2)
    assert code.support.rows == 3 * 16
    assert tokens[0, 0] == START


def test_what_cannot_be_attributed_is_refused() -> None:
    subject, tokens, places = tiny_llama(), tiny_rows(2), some_places(2, 16, 20)
    plain = random_dictionary(subject)
    with pytest.raises(UserError, match=r"not the concatenated heads.*blocks\.N\.attn\.z"):
        direct_attribution(subject, "blocks.1.mlp.out", plain, tokens, places)
    with pytest.raises(UserError, match="has no site"):
        direct_attribution(subject, "blocks.7.attn.z", plain, tokens, places)
    with pytest.raises(UserError, match="does not encode linearly"):
        linear_reads(random_dictionary(subject, encoder=GLU()))
    with pytest.raises(UserError, match="does not encode linearly"):
        linear_reads(coordinates(32))
    subject.model.to(torch.bfloat16)
    with pytest.raises(UserError, match="dtype='float32'"):
        direct_attribution(subject, SITE, plain, tokens, places)
