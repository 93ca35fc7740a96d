"""Names from files that anybody may have written, for a terminal."""


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not print but obey: control characters, changes of direction."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
