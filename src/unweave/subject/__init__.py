"""The network under study: loading it, its sites, running it, and text for it."""

from unweave.subject.families import Family, families, register_family
from unweave.subject.loading import load_subject, wrap_module
from unweave.subject.network import Subject
from unweave.subject.running import Replacement, Run
from unweave.subject.sites import BLOCK_SITES
from unweave.subject.tokenizer import Tokenizer
from unweave.subject.weights import AttentionWeights, MLPWeights

__all__ = [
    "BLOCK_SITES",
    "AttentionWeights",
    "Family",
    "MLPWeights",
    "Replacement",
    "Run",
    "Subject",
    "Tokenizer",
    "families",
    "load_subject",
    "register_family",
    "wrap_module",
]
