"""The network under study: loading it, its sites, running it, and text for it."""

from unweave.subject.catalog import (
    Entry,
    fetch_subject,
    fetch_text,
    list_subjects,
    list_texts,
)
from unweave.subject.families import Family, families, register_family
from unweave.subject.generation import continue_rows, continue_text
from unweave.subject.loading import load_subject, wrap_module
from unweave.subject.memory import keep_freed_memory
from unweave.subject.network import Subject
from unweave.subject.rows import TokenRows, token_rows
from unweave.subject.running import Replacement, Run
from unweave.subject.sites import BLOCK_SITES
from unweave.subject.texts import TextSource, open_text
from unweave.subject.tokenizer import Tokenizer
from unweave.subject.weights import AttentionWeights, MLPWeights

__all__ = [
    "BLOCK_SITES",
    "AttentionWeights",
    "Entry",
    "Family",
    "MLPWeights",
    "Replacement",
    "Run",
    "Subject",
    "TextSource",
    "TokenRows",
    "Tokenizer",
    "continue_rows",
    "continue_text",
    "families",
    "fetch_subject",
    "fetch_text",
    "keep_freed_memory",
    "list_subjects",
    "list_texts",
    "load_subject",
    "open_text",
    "register_family",
    "token_rows",
    "wrap_module",
]
