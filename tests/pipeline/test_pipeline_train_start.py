"""Where decoder rows start is a setting of its own; attention outputs are flattened heads."""

import pytest
import torch
from pydantic import ValidationError
from test_pipeline_families import reading, text  # noqa: F401  (a fixture)
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.dictionary_files import load_dictionary
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.pipeline.train_sites import plan, ports_of

SITE = "blocks.1.attn.z"


def settings(**changes: object) -> TrainSiteSettings:
    return TrainSiteSettings(
        site=SITE, recipe="topk-short,l1-bricken", k=4, latents=64, tokens=1600, context=16,
        batch=96, threads=1, **changes,
    )  # fmt: skip


def test_only_the_decoders_start_is_taken_from_the_setting():
    subject = tiny_llama()
    ports = ports_of(subject, [SITE])
    assert ports[0].width == subject.n_heads * subject.d_head
    own = plan(subject, settings(), ports, ports)
    changed = plan(subject, settings(start="subspace"), ports, ports)
    for before, after in zip(own, changed, strict=True):
        first, then = before.built.settings.start, after.built.settings.start
        assert first is not None
        assert then is not None
        assert first.decoder != "subspace"
        assert then == first.model_copy(update={"decoder": "subspace"})
    with pytest.raises(ValidationError, match="start"):
        settings(start="everywhere")


def test_a_dictionary_of_concatenated_heads_starts_where_they_write(text, tmp_path):  # noqa: F811
    subject = reading(tiny_llama(max_position_embeddings=16))
    given = settings(text=text, lr=1e-6, start="subspace")
    out = train_site(subject, given, out=tmp_path / "out")
    found = load_dictionary(out / "dictionaries" / "topk-short-k4")
    assert [port.site for port in found.spec.writes] == [SITE]
    rows = tiny_rows(64)
    z = subject.run(rows, capture=[SITE], logits=False).sites[SITE][:, 1:].flatten(0, 1)
    assert z.shape[1] == found.spec.d_in == 32
    # A direction that the data leaves out: none of the rows that start within the data has it.
    unit = torch.linalg.eigh(torch.cov(z.T))[1][:, :2]
    within = (found.W_dec @ unit).square().sum(1).mean()
    g = torch.Generator().manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(4096, 32, generator=g), dim=1)
    assert within < 0.35 * (random @ unit).square().sum(1).mean()
