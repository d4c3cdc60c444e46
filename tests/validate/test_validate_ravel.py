"""RAVEL: a network of two known attributes, dictionaries that can and cannot part them."""

import json

import pytest
import torch
from torch import Tensor, nn

from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject import load_subject, wrap_module
from unweave.validate.placed import Placed
from unweave.validate.protocols.protocol import Bench, Refused
from unweave.validate.protocols.ravel import RavelSettings, ravel, swaps_of
from unweave.validate.protocols.ravel_data import (
    AskSettings,
    Prompt,
    all_prompts,
    ask_entities,
    fetch_entities,
    load_all_entities,
    our_cities,
)
from unweave.validate.protocols.ravel_mask import (
    MaskSettings,
    Pair,
    Swapping,
    at_entities,
    entity_vectors,
    learned_mask,
    swap_scores,
)

KINDS = 5
"""Values of each attribute; an entity is a pair of values."""
ENTITIES = KINDS * KINDS
SETTINGS = RavelSettings(pairs=120, mask=MaskSettings(rate=0.1, epochs=4))


class TwoAttributes(nn.Module):
    """An entity writes its two attributes on the stream; the question after it reads out one.

    Tokens: entities, then two questions; logits 0..4 name the first attribute, 5..9 the second.
    """

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(ENTITIES + 3, 2 * KINDS + 2)
        for entity in range(ENTITIES):
            table[entity, entity // KINDS] = 1.0
            table[entity, KINDS + entity % KINDS] = 1.0
        table[ENTITIES, -2] = table[ENTITIES + 1, -1] = 1.0
        self.embed = nn.Embedding.from_pretrained(table)
        self.mid = nn.Identity()
        head = torch.zeros(2 * KINDS, 2 * KINDS + 2)
        head[:, : 2 * KINDS] = torch.eye(2 * KINDS)
        head[:KINDS, -2] = head[KINDS:, -1] = 10.0
        self.head = nn.Linear(2 * KINDS + 2, 2 * KINDS, bias=False)
        self.head.weight.data = head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mid(self.embed(tokens)).cumsum(1))


SUBJECT = wrap_module(TwoAttributes(), name="two attributes")
START = ENTITIES + 2
PROMPTS = [
    Prompt(
        str(entity), name, str(value), (START, entity, ENTITIES + which), 1, KINDS * which + value
    )
    for entity in range(ENTITIES)
    for which, name in enumerate(("first", "second"))
    for value in [entity // KINDS if which == 0 else entity % KINDS]
]


def _bench(coder, tmp_path) -> Bench:
    return Bench(SUBJECT, Placed("d", coder, ("mid",), ("mid",)), tmp_path)


def _whole_entities() -> Coefficients:
    """One latent for each entity, which writes both its attributes."""
    rows = SUBJECT.model.embed.weight[:ENTITIES]
    return Coefficients(lambda x: (x @ rows.T == 2).float(), rows)


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    whole = Coefficients(lambda x: x, torch.eye(2 * KINDS + 2))
    return swaps_of(
        _bench(whole, tmp_path_factory.mktemp("a")), SETTINGS, PROMPTS, ["first", "second"]
    )


@pytest.mark.parametrize("attribute", ["first", "second"])
def test_a_dictionary_with_a_latent_for_each_value_parts_the_attributes(parted, attribute):
    found = parted["dictionary"].by_attribute[attribute]
    assert found.score == 1.0
    assert len(found.cause) > 20
    assert len(found.isolation) > 20
    assert parted["dictionary"].chosen[attribute] in (KINDS, KINDS + 1, KINDS + 2)


def test_a_latent_for_each_entity_cannot_part_them(tmp_path):
    found = swaps_of(_bench(_whole_entities(), tmp_path), SETTINGS, PROMPTS, ["first", "second"])
    for each in found["dictionary"].by_attribute.values():
        assert each.score < 0.65


def test_the_ends_of_the_scale(parted):
    for each in parted["nothing"].by_attribute.values():
        assert (float(each.cause.mean()), float(each.isolation.mean())) == (0.0, 1.0)
    for each in parted["everything"].by_attribute.values():
        assert (float(each.cause.mean()), float(each.isolation.mean())) == (1.0, 0.0)


def _swap(coder, *, keep_error: bool) -> Swapping:
    x = entity_vectors(SUBJECT, "mid", PROMPTS)
    return Swapping(SUBJECT, "mid", PROMPTS, at_entities(coder, x), keep_error=keep_error)


def test_vectors_are_read_at_the_entity():
    x = entity_vectors(SUBJECT, "mid", PROMPTS, batch=7)
    entity = torch.tensor([int(p.entity) for p in PROMPTS])
    assert torch.equal(x, SUBJECT.model.embed.weight[entity])


def test_without_the_error_a_dictionary_that_lost_an_attribute_cannot_keep_its_answers():
    first_only = Coefficients(lambda x: x[:, :KINDS], torch.eye(2 * KINDS + 2)[:KINDS])
    pairs = [Pair(i, j, True) for i in range(0, 50, 2) for j in (0, 18, 36) if i // 10 != j // 10]
    stay = [Pair(i, j, False) for i in range(1, 50, 2) for j in (1, 13, 25)]
    kept = swap_scores(_swap(first_only, keep_error=True), pairs + stay, torch.ones(KINDS))
    assert kept.score == 1.0
    dropped = swap_scores(_swap(first_only, keep_error=False), pairs + stay, torch.ones(KINDS))
    assert float(dropped.cause.mean()) == 1.0
    assert float(dropped.isolation.mean()) < 0.5


def test_the_mask_is_the_same_for_the_same_seed():
    swap = _swap(Coefficients(lambda x: x, torch.eye(2 * KINDS + 2)), keep_error=True)
    pairs = [Pair(i, (i + 14) % 50, i % 4 < 2) for i in range(0, 50)]
    one, other = (learned_mask(swap, pairs, SETTINGS.mask, seed=3) for _ in range(2))
    assert torch.equal(one, other)


def test_positive_and_negative_values_are_swapped_alike():
    rows = SUBJECT.model.embed.weight[:ENTITIES]
    signed = Coefficients(lambda x: -(x @ rows.T == 2).float(), -rows)
    seen = at_entities(signed, entity_vectors(SUBJECT, "mid", PROMPTS))
    assert torch.allclose(seen.lost, torch.zeros_like(seen.lost))
    assert torch.equal(SparseCode.from_dense(seen.code).dense(), seen.code)


def test_a_subject_that_knows_no_cities_is_refused_with_what_it_was_asked(tmp_path):
    wren, site = load_subject("wren"), "blocks.2.resid_post"
    coder = Coefficients(lambda x: x, torch.eye(wren.d_model))
    bench = Bench(wren, Placed("id", coder, (site,), (site,)), tmp_path)
    with pytest.raises(Refused, match=r"Country \d+ of 392"):
        ravel(bench)


def test_prompts_know_where_their_entity_ends():
    wren = load_subject("wren")
    cities = our_cities()
    few = cities._replace(attributes=dict(list(cities.attributes.items())[:5]))
    asked = ask_entities(wren, few, AskSettings())
    assert asked.asked == {"Country": 10, "Continent": 10, "Language": 10}
    made = all_prompts(wren, few)
    assert len(made) == 30
    for prompt in made:
        assert wren.tokenizer.decode(prompt.row[: prompt.position + 1]).endswith(prompt.entity)


def test_the_public_form_is_read_and_what_is_wrong_is_named(tmp_path):
    (tmp_path / "ravel_city_entity_attributes.json").write_text(
        json.dumps({"Paris": {"Country": "France", "Continent": "Europe"}})
    )
    with pytest.raises(UserError, match="attribute_to_prompts"):
        load_all_entities(tmp_path)
    (tmp_path / "ravel_city_attribute_to_prompts.json").write_text(
        json.dumps({"Country": ["%s lies in"], "Continent": ["%s is on"]})
    )
    (found,) = load_all_entities(tmp_path)
    assert found.name == "city"
    assert found.only(["Country", "Timezone"]).templates == {"Country": ["%s lies in"]}
    (tmp_path / "ravel_city_attribute_to_prompts.json").write_text('{"Country": 3}')
    with pytest.raises(UserError, match="is no RAVEL file"):
        load_all_entities(tmp_path)
    with pytest.raises(UserError, match="has no RAVEL set"):
        load_all_entities(tmp_path / "nowhere")


def test_public_sets_are_asked_for_where_they_are(tmp_path, monkeypatch):
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        kind = "templates" if "prompts" in name else "labels"
        content = {"templates": {"Field": ["%s won for"]}, "labels": {"Curie": {"Field": "x"}}}
        (tmp_path / name).write_text(json.dumps(content[kind]))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = fetch_entities("nobel_prize_winner")
    assert found.attributes == {"Curie": {"Field": "x"}}
    assert {repo for repo, _, _ in asked} == {"adamkarvonen/ravel_prompts"}
    assert {kind for _, _, kind in asked} == {"dataset"}

    def gone(*_: str, **__: str) -> str:
        raise OSError("no such host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    with pytest.raises(UserError, match="did not give the RAVEL set city: no such host"):
        fetch_entities("city")
