"""The page, section by section, in the order in which it is read."""

import base64
import hashlib
from importlib.resources import files

from unweave.report.facts import Story
from unweave.report.html import Markup, element, inline
from unweave.report.sections.features import features
from unweave.report.sections.four import four
from unweave.report.sections.head import head
from unweave.report.sections.interactions import interactions
from unweave.report.sections.layers import layers
from unweave.report.sections.making import making
from unweave.report.sections.samples import samples
from unweave.report.sections.splice import splices

_PLACES = (
    ("numbers", "Four numbers"),
    ("splice", "Splice modes"),
    ("layers", "Fidelity"),
    ("features", "Features"),
    ("interactions", "Interactions"),
    ("samples", "Continuations"),
    ("making", "Making"),
)


def page(story: Story) -> str:
    """The whole HTML document: no network, no script but its own, whose hash the policy names."""
    style, script = _own("style.css"), _own("page.js")
    body = element(
        "body",
        _contents(),
        element(
            "main",
            head(story.manifest, story.scores),
            four(story.scores),
            splices(story.scores),
            layers(story.scores),
            features(story.gallery, story.scores),
            interactions(story.graph),
            samples(story.samples),
            making(story.manifest, story.scores.stages),
        ),
        inline("script", script),
    )
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{story.manifest.subject.name}, unwoven"),
        inline("style", style),
    )
    return "<!doctype html>\n" + element("html", top, body, lang="en") + "\n"


def _contents() -> Markup:
    links = [element("a", words, href=f"#{name}") for name, words in _PLACES]
    return element("nav", links, aria_label="Contents")


def _own(name: str) -> str:
    """A file of this package."""
    return files("unweave.report").joinpath(name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    """How a content security policy names an inline block."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
