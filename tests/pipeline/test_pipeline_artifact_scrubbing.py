"""An artifact's own claims as hypotheses: they recover more than those of other latents."""

from pathlib import Path

import pytest
import torch

from unweave.artifact.manifest import read_manifest
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.pipeline.artifact_scrubbing import ArtifactScrubbingSettings, scrub_artifact

FEW = ArtifactScrubbingSettings(rows=4)


def test_own_claims_recover_more_than_those_of_others(artifact: Path) -> None:
    found = scrub_artifact(artifact, FEW)
    assert list(found.parts) == list(read_manifest(artifact).parts)
    assert found.together.own[1].low > found.together.shuffled[1].high
    assert found.together.own[1].value > 0.3
    own, shuffled = (
        sum(getattr(one, which)[1].value for one in found.parts.values())
        for which in ("own", "shuffled")
    )
    assert own > shuffled + 0.2 * len(found.parts)


def test_what_makes_no_claims_is_said_to_make_none(tmp_path: Path) -> None:
    dictionary = Dictionary(autoencoder("blocks.3.resid_post", 128, 8, TopK(k=2)))
    with torch.no_grad():
        dictionary.W_dec.fill_(1.0)
    save_dictionary(dictionary.eval(), tmp_path / "alone")
    with pytest.raises(UserError, match="no claims about features"):
        scrub_artifact(tmp_path / "alone")
