"""What people wrote, in CUDA C: their texts as string literals, their names as comments.

The C identifiers are all the compiler's: `v_1`, `acc_2` from one counter, device functions with the prefix `pk_`. So no
name of the author's, in any language, can meet a word of C or one of the compiler's.
"""

from __future__ import annotations

import re

_PLAIN = frozenset(map(ord, " !#$%&'()*+,-./:;<=>@[]^_`{|}~")) | frozenset(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_SPELLED = [chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in range(256)]
_SHOWN = str.maketrans("\\{}", "___")


def string(text: str) -> str:
    """A C string literal with the text in UTF-8, pure ASCII itself: "α?" is `"\\316\\261\\077"`.

    Octal escapes have three digits, so that none runs into what follows; a question mark is escaped because two of
    them may begin a trigraph.
    """
    encoded = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace")
    return '"' + "".join(map(_SPELLED.__getitem__, encoded)) + '"'


def comment(text: str) -> str:
    """A comment to the end of the line that shows a text; nothing where there is none.

    No backslash, which would join the next line to it, no brace, which the indentation counts, and no trigraph.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "_" for c in text)
    shown = re.sub(r"\?(?=\?)", "? ", text.translate(_SHOWN))
    return f"  // {shown}" if shown else ""


def ascii_name(text: str) -> str:
    """A name in letters, digits and underscores, for the end of an identifier."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)
