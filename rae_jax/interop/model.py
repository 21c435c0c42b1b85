"""What one official checkpoint holds: the form between its tensors and a weights directory.

Each format's module beside this one has functions `read` and `write` that go from tensors to a `Model` and back, and
`kinds.py` gathers them.
"""

import dataclasses
from typing import Any

from rae_jax.interop.layout import Tensors


@dataclasses.dataclass(frozen=True)
class Model:
    """What one official checkpoint holds.

    Attributes:
      architecture: arguments of our module, or of several by part (`encoder`, `decoder`, ...).
      params: parameters with unrolled blocks, by part where there are several.
      carried: tensors that are no parameters of ours, by official name; an export puts them back, or computes them
        where there are none.
      names: which of several spellings the file has, for the export to use the same.
    """

    architecture: dict[str, Any]
    params: dict[str, Any]
    carried: Tensors = dataclasses.field(default_factory=dict)
    names: dict[str, Any] = dataclasses.field(default_factory=dict)
