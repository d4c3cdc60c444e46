"""Collected firings against the parts' own codes at the captured sites."""

import numpy as np
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.window import HarvestSettings
from unweave.activations.workers import Workers
from unweave.decompile.firings import collect_firings
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs

ROWS = tiny_rows(5)


def random_parts(subject):
    parts = {}
    for seed, spec in enumerate(part_specs(subject, latents=2, k_mlp=6, k_attention=4, skip=False)):
        generator = torch.Generator().manual_seed(seed)
        part = Part(spec)
        with torch.no_grad():
            for tensor in part.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            part.b_enc.sub_(8.0)  # so that fewer than k fire now and then
        parts[spec.name] = part
    return parts


def collected(subject, parts, **settings):
    encoders = {name: (part.spec.input_site, part) for name, part in parts.items()}
    with Workers(2) as workers:
        return collect_firings(
            subject, encoders, ROWS, workers=workers, harvest=HarvestSettings(**settings)
        )


def test_they_are_what_the_parts_encode_where_the_subject_is():
    subject = tiny_llama()
    parts = random_parts(subject)
    found = collected(subject, parts, window_tokens=32, slice_tokens=16)
    fewer = 0
    for name, part in parts.items():
        site = part.spec.input_site
        with torch.inference_mode():
            x = subject.run(ROWS, capture=[site]).sites[site].flatten(0, 1)
            code = part.encode(x)
        for token in range(ROWS.numel()):
            begin, end = found[name].token_indptr[token : token + 2]
            latents = found[name].latent[begin:end]
            if token % ROWS.shape[1] == 0:
                assert len(latents) == 0
                continue
            on = code.value[token] > 0
            fewer += int((~on).any())
            expected = dict(
                zip(code.latent[token][on].tolist(), code.value[token][on].tolist(), strict=True)
            )
            assert latents.tolist() == sorted(expected)
            wanted = np.array([expected[latent] for latent in latents.tolist()])
            assert np.allclose(found[name].value[begin:end], wanted, rtol=2e-3, atol=1e-4)
    assert fewer > 0


def test_windows_and_slices_do_not_matter():
    subject = tiny_llama()
    parts = random_parts(subject)
    one = collected(subject, parts, window_tokens=1024, slice_tokens=16)
    many = collected(subject, parts, window_tokens=16, slice_tokens=16)
    for name in parts:
        assert np.array_equal(one[name].latent, many[name].latent)
        assert np.array_equal(one[name].token_indptr, many[name].token_indptr)
