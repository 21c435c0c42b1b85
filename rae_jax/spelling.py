"""What an unknown name was meant to be: the one hint of every error message about one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; nearest: ..."` with the known name that `name` may have been meant to be, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; nearest: {near[0]}" if near else ""
