"""Text of models, data and people cannot become markup, nor hide or reorder what is shown."""

import pytest
from report_artifact import WORDS, Plan, write_artifact
from report_walk import Walk

from unweave.report import write_report

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "</style><svg onload=alert(3)>",
    "' onmouseover='alert(4)",
    "<!-- <!doctype",
    "]]>&lt;&#60;javascript:alert(5)",
    "{{7*7}} ${7*7}",
    "\u202egnp.exe\u202c",
    "a\u200fb\u2066c",
    "nul\x00bell\x07esc\x1b[31m",
    "\u2028line\u2029",
    "\ufffd\ufffd",
    "👩‍👩‍👧 🐕",
    "مرحبا שלום",
    "x" * 5000,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an artifact in which every text is an attack."""
    every = " ".join(ATTACKS[:-1])
    plan = Plan(
        layers=1,
        latents=len(WORDS) - 1,
        name="<b>wren</b>" + ATTACKS[0],
        text=every,
        words=(WORDS[0], *ATTACKS, *WORDS[len(ATTACKS) + 1 :]),
        describe="{word} <i>{latent}</i>",
        prompt=every,
        original=" <u>" + every,
        decompiled=" <s>" + every,
    )
    path = write_report(write_artifact(tmp_path_factory.mktemp("hostile"), plan))
    return path.read_text(encoding="utf-8")


def test_no_attack_becomes_markup(hostile: str, page: str) -> None:
    walk, tame = Walk(hostile), Walk(page)
    assert set(walk.tags) <= set(tame.tags)
    assert {name for _, name, _ in walk.attributes} <= {name for _, name, _ in tame.attributes}
    assert walk.tags.count("script") == 1
    assert walk.own == tame.own


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.isprintable() and len(a) < 40])
def test_attacks_are_shown_as_the_text_they_are(hostile: str, attack: str) -> None:
    assert attack in Walk(hostile).text


@pytest.mark.parametrize("sign", ["\x00", "\x07", "\x1b", "\u202e", "\u202c", "\u200f", "\u2066"])
def test_what_hides_or_reorders_is_spelt_out(hostile: str, sign: str) -> None:
    assert sign not in hostile
    assert "␀" in hostile
    assert "⟦RLO⟧" in hostile


def test_no_text_is_without_end(hostile: str) -> None:
    assert "x" * 300 not in hostile
    assert len(hostile) < 1_000_000
