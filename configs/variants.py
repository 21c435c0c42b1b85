"""The words after the colon of `--config=configs/dith_xl.py:XL-512`, which choose a variant of an experiment."""

from collections.abc import Iterable

from rae_jax.spelling import nearest


def no_variant(file: str, variant: str, known: Iterable[str]) -> ValueError:
    """The error that `file` has no such `variant` of a config, or word of one, among `known`."""
    known = list(known)
    return ValueError(f"{file} has no variant {variant!r}{nearest(variant, known)}; there are {', '.join(known)}")


def words_of(variant: str, *groups: Iterable[str], file: str) -> list[str]:
    """The words, joined by hyphens, of a config's variant; of each of `groups` it has at most one.

    Raises:
      ValueError: a word is in no group, or two are in one; `file` is named.
    """
    words, groups = [word for word in variant.split("-") if word], [list(group) for group in groups]
    known = [word for group in groups for word in group]
    if unknown := [word for word in words if word not in known]:
        raise no_variant(file, unknown[0], known)
    for group in groups:
        if len(chosen := [word for word in words if word in group]) > 1:
            raise ValueError(f"{file}: {' and '.join(chosen)} exclude each other")
    return words
