"""Markup escapes by construction and refuses what could load or run."""

import pytest

from unweave.report.html import Markup, clip, element, inline, text, visible


def test_text_is_escaped_and_markup_is_kept() -> None:
    inner = element("b", "a < b")
    assert element("p", inner, " & ", ["x", None, 3]) == "<p><b>a &lt; b</b> &amp; x3</p>"


def test_attributes_are_quoted_and_renamed() -> None:
    made = element("i", class_='a"b', data_part="L0.mlp", hidden=True, title=None, lang=False)
    assert made == '<i class="a&quot;b" data-part="L0.mlp" hidden></i>'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("onclick", "x"),
        ("src", "a.png"),
        ("style", "color: red"),
        ("href", "javascript:alert(1)"),
        ("href", "https://example.org"),
        ("a b", "x"),
        ("x>y", "x"),
    ],
)
def test_attributes_that_load_or_run_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"attribute|links"):
        element("a", **{name: value})


@pytest.mark.parametrize("tag", ["script", "style", "iframe", "b onclick", "", "b><i"])
def test_tags_that_load_or_run_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="no element"):
        element(tag)


def test_void_elements_hold_nothing() -> None:
    assert element("br") == "<br>"
    with pytest.raises(ValueError, match="holds nothing"):
        element("br", "x")


def test_own_blocks_cannot_be_closed_from_inside() -> None:
    assert inline("style", "p { margin: 0 }") == "<style>p { margin: 0 }</style>"
    with pytest.raises(ValueError, match="not fit"):
        inline("script", "'</script>'")


def test_joining_markup_with_text_makes_plain_text_again() -> None:
    assert not isinstance(Markup("<b>") + "<i>", Markup)
    assert text(Markup("<b></b>") + "<i>") == "&lt;b&gt;&lt;/b&gt;&lt;i&gt;"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("\u202eabc", "⟦RLO⟧abc"),
        ("\ud800", "\ufffd"),
        ("\x85\x7f", "\ufffd\ufffd"),
        ("a\tb\nc", "a\tb\nc"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("\ufeffx\u00ad", "⟦BOM⟧x⟦SHY⟧"),
    ],
)
def test_hidden_characters_become_visible(raw: str, shown: str) -> None:
    assert visible(raw) == shown


def test_clip_counts_the_ellipsis() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize("odd", [b"<b>", 1.5, object()])
def test_what_is_no_text_is_refused(odd) -> None:
    with pytest.raises(TypeError, match="cannot stand on a page"):
        element("p", odd)
