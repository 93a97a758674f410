"""Custom derivatives of functions that run on cut arrays: kept, by public functions alone.

The derivative of one equation is traced at full size, as `jax.jvp` and `jax.vjp` give it, when
somebody asks for it; that program is cut like any other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.network.calls import called
from jaxprune.network.small import Keeps, Small, bound, on_cut, small
from jaxprune.network.walk import Equation


@small("custom_jvp_call")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    floats = _floats(equation)

    @jax.custom_jvp
    def call(*args: Any) -> list[Any]:
        return run.inside(equation, called(equation), args)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        def both(primals: Any, tangents: Any) -> Any:
            of_floats = _of_floats(equation, primals)
            return jax.jvp(of_floats, [primals[k] for k in floats], tangents)

        shapes = _shapes(equation.of.invars)
        program = jax.make_jaxpr(both)(shapes, [shapes[k] for k in floats])
        found, _ = on_cut(
            program,
            [*primals, *(tangents[k] for k in floats)],
            [*ins, *(ins[k] for k in floats)],
            [*outs, *outs],
            run.inexact,
        )
        return found[: len(outs)], found[len(outs) :]

    return call(*args)


@small("custom_vjp_call", "custom_vjp_call_jaxpr")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    floats, box = _floats(equation), {}

    @jax.custom_vjp
    def call(*args: Any) -> list[Any]:
        return run.inside(equation, called(equation), args)

    def forward(*args: Any) -> tuple[list[Any], list[Any]]:
        def both(*primals: Any) -> Any:
            of_floats = _of_floats(equation, primals)
            outputs, pull = jax.vjp(of_floats, *(primals[k] for k in floats))
            residuals, box["pull"] = jax.tree.flatten(pull)
            return outputs, residuals

        program = jax.make_jaxpr(both)(*_shapes(equation.of.invars))
        found, keeps = on_cut(program, args, ins, outs, run.inexact)
        box["keeps"] = keeps[len(outs) :]
        box["shapes"] = [_shape(aval) for aval in program.out_avals[len(outs) :]]
        return found[: len(outs)], found[len(outs) :]

    def backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        def pulled(residuals: Any, cotangents: Any) -> Any:
            return jax.tree.unflatten(box["pull"], residuals)(cotangents)

        program = jax.make_jaxpr(pulled)(box["shapes"], _shapes(equation.of.outvars))
        wanted = [ins[k] for k in floats]
        given = [*box["keeps"], *outs]
        found, _ = on_cut(program, [*residuals, *cotangents], given, wanted, run.inexact)
        cotangent = dict(zip(floats, found, strict=True))
        nothing = (np.zeros(jnp.shape(x), jax.dtypes.float0) for x in args)
        return tuple(cotangent.get(k, none) for k, none in enumerate(nothing))

    call.defvjp(forward, backward)
    return call(*args)


def _floats(equation: Equation) -> list[int]:
    """The operands that have derivatives."""
    return [
        k
        for k, variable in enumerate(equation.of.invars)
        if jnp.issubdtype(variable.aval.dtype, jnp.inexact)
    ]


def _of_floats(equation: Equation, operands: Any) -> Callable[..., list[Any]]:
    """An equation as a function of the operands that have derivatives."""

    def function(*floats: Any) -> list[Any]:
        given = dict(zip(_floats(equation), floats, strict=True))
        return bound(equation, [given.get(k, x) for k, x in enumerate(operands)])

    return function


def _shapes(atoms: Any) -> list[jax.ShapeDtypeStruct]:
    return [_shape(atom.aval) for atom in atoms]


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    layout = getattr(aval, "sharding", None)
    known = layout is not None and not layout.mesh.empty
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=layout if known else None)
