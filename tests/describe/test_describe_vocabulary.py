import pytest

from unweave.describe.vocabulary import CLASSES, Vocabulary, token_class, visible


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "special token"),
        ("<s>", "special token"),
        ("<|endoftext|>", "special token"),
        ("\n\n", "line break"),
        ("   ", "white space"),
        (" 42", "number"),
        ("?!", "end of sentence"),
        (",", "comma or dash"),
        ('."', "end of sentence"),
        (' "', "quotation mark"),
        (" (", "bracket"),
        ("=", "symbol"),
        ("'s", "contraction"),
        (" the", "determiner"),
        ("The", "determiner"),
        ("\u2581she", "pronoun"),
        ("the", "lowercase word piece"),
        (" of", "preposition"),
        (" Anna", "capitalised word"),
        ("Ann", "capitalised word piece"),
        (" NASA", "capitals"),
        (" running", "word in -ing"),
        (" ring", "lowercase word"),
        (" walked", "word in -ed"),
        (" dog", "lowercase word"),
        ("og", "lowercase word piece"),
        (" мир", "non-Latin text"),
        ("x1", "mixed text"),
    ],
)
def test_class_of_a_token_follows_from_its_text(text: str, name: str) -> None:
    assert token_class(text) == name
    assert name in CLASSES


def test_every_character_alone_has_exactly_one_known_class() -> None:
    assert {token_class(chr(code)) for code in range(0x3000)} <= set(CLASSES)


def test_hostile_text_is_shown_not_obeyed() -> None:
    shown = visible(' a\n\t\x1b[31m\u202e\u200b"')
    assert shown == "␣a⏎⇥\\u001b[31m\\u202e\\u200b”"
    assert shown.isprintable()


def test_long_tokens_are_cut() -> None:
    vocabulary = Vocabulary.from_decode(lambda token: "=" * 500, 1)
    assert len(vocabulary.show(0)) == 42
