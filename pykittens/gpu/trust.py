"""Whether files may be believed: a cubin is code, so where others could have put it, it is not loaded.

As ssh asks of its keys: a file, its directory and all that leads there belong to this user or to root, and nobody else
may write them. A directory above may be writable by all where it is sticky, as /tmp is: what lies there stays its
owner's. Windows has no such modes; there, files are believed inside of the user's profile folder.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def distrusted(directory: Path) -> str:
    """Why nothing is loaded from a directory, as "..., which ...", with the fix; empty where it may be. It need not
    exist.
    """
    if sys.platform == "win32":
        home = Path.home().resolve()
        inside = directory.resolve().is_relative_to(home)
        return "" if inside else f"{directory} lies outside of the user's profile folder {home}: use one inside"
    real = Path(os.path.realpath(directory))
    for place in (real, *real.parents):
        try:
            about = place.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{place} cannot be looked at ({error.strerror})"
        if wrong := _wrong(about, sticky=place != real):
            return f"{place} {wrong}"
    return ""


def distrusted_file(handle: int) -> str:
    """Why an open file is not believed; empty where it may be."""
    return "" if sys.platform == "win32" else _wrong(os.fstat(handle), sticky=False)


def _wrong(about: os.stat_result, sticky: bool) -> str:
    user = os.getuid()
    if about.st_uid not in (0, user):
        return f"belongs to user {about.st_uid}, not to user {user} or root: chown it"
    if about.st_mode & 0o022 and not (sticky and about.st_mode & stat.S_ISVTX):
        return "can be written by others: chmod go-w it"
    return ""
