"""Text from strangers, made safe for a terminal."""


def printable(text: str) -> str:
    """One line that cannot steer a terminal: control characters are written out.

    Names of files and models, and what libraries say of them, come from strangers.
    """
    return "".join(c if c.isprintable() else " " if c == "\n" else repr(c)[1:-1] for c in text)
