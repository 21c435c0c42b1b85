"""How exactly a program asks for its matrix products, which is what a TPU goes by."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

HIGHEST, HIGH, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT


def products(jaxpr) -> Iterator[tuple[jnp.dtype, jax.lax.Precision]]:
    """The dtype and the precision of every matrix product and convolution of a program, loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            precision = equation.params["precision"]
            precision = precision[0] if isinstance(precision, tuple) else precision
            yield equation.invars[0].aval.dtype, precision or DEFAULT
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from products(getattr(inner, "jaxpr", inner))


def kinds_of_products(program) -> set[tuple[str, jax.lax.Precision]]:
    """Each kind that there is in a closed jaxpr, once."""
    return {(str(dtype), precision) for dtype, precision in products(program.jaxpr)}
