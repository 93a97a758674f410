"""Programs within programs: calls, custom derivatives, loops and branches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxprune.network.small import Keeps, Small, small
from jaxprune.network.values import Axis, Value, common, fixed_axis, leaves_of, made_of
from jaxprune.network.walk import Equation, Walk, rule

_ROUNDS = 16
"""Rounds in which what is known of a loop's carry settles; each loses some of what was known."""


@rule(
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_lin"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    return walk.inside(equation, called(equation), inputs)


def called(equation: Equation) -> Any:
    """The program that an equation calls."""
    programs = (equation.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    return next(found for found in programs if found is not None)


@small("jit", "pjit", "closed_call", "core_call")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    return run.inside(equation, called(equation), args)


@small("remat", "remat2", "checkpoint")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    params = {name: equation.params[name] for name in ("prevent_cse", "policy")}
    program = called(equation)
    return jax.checkpoint(lambda *args: run.inside(equation, program, args), **params)(*args)


def _met(walk: Walk, a: Value, b: Value, equation: Equation) -> Value:
    """What is true of both of two values: a carry before and after a round, two branches."""
    made = made_of([a, b])
    axes = []
    for k, (x, y) in enumerate(zip(a.axes, b.axes, strict=True)):
        walk.tie(x, y, equation)
        states = common(np.stack([a.masked(k), b.masked(k)]))
        axes.append(Axis(x.ids, states, () if made is None else leaves_of([x, y])))
    return Value(
        tuple(axes),
        made,
        a.number if a.number == b.number else None,
        a.origin if a.origin == b.origin else None,
    )


def _settled(a: Value, b: Value) -> bool:
    """Whether as much is known of one value as of the other."""
    return a[1:4] == b[1:4] and all(
        x.of == y.of and np.array_equal(x.masked, y.masked)
        for x, y in zip(a.axes, b.axes, strict=True)
    )


def _loop(
    walk: Walk,
    run: Callable[[list[Value]], list[Value]],
    carry: list[Value],
    equation: Equation,
) -> list[Value]:
    """The carry of any round: what is tied stays tied, what is noted is that of the last round."""
    before = walk.notes
    carry = [value._replace(hot=(), counts=()) for value in carry]
    for _ in range(_ROUNDS):
        walk.notes = before.copied()
        met = [_met(walk, a, b, equation) for a, b in zip(carry, run(carry), strict=True)]
        if all(map(_settled, carry, met)):
            return met
        after, walk.notes = walk.notes, before
        walk.ended(*(a for a, b in zip(carry, met, strict=True) if b.origin is None))
        walk.notes, carry = after, met
    raise RuntimeError(f"what is known of a loop does not settle: {equation.why()}")


def scan_parts(equation: Any) -> tuple[int, int]:
    """How many constants and carries a scan has, by ranks: its parameters have been renamed."""
    body = equation.params["jaxpr"].jaxpr
    outs = zip(equation.outvars, body.outvars, strict=True)
    ins = zip(equation.invars, body.invars, strict=True)
    carried = sum(len(o.aval.shape) == len(b.aval.shape) for o, b in outs)
    scanned = sum(len(i.aval.shape) == len(b.aval.shape) + 1 for i, b in ins)
    return len(equation.invars) - carried - scanned, carried


@rule("scan")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    constants, carried = scan_parts(equation.of)
    fixed, carry = inputs[:constants], inputs[constants : constants + carried]
    slices = []
    for value in inputs[constants + carried :]:
        first, *rest = value.axes
        walk.pin(first, equation)
        for path, axis in first.of:
            walk.notes.uses.setdefault(path, set()).add(f"stacked along {axis}")
        slices.append(value._replace(axes=tuple(rest), hot=(), counts=()))
    length, collected = equation.params["length"], []

    def run(carry: list[Value]) -> list[Value]:
        program = equation.params["jaxpr"]
        outs = walk.inside(equation, program, [*fixed, *carry, *slices], "body", length)
        collected[:] = outs[carried:]
        return outs[:carried]

    after = _loop(walk, run, carry, equation)
    stacked = [v._replace(axes=(fixed_axis(length), *v.axes), hot=(), counts=()) for v in collected]
    return [*after, *stacked]


@small("scan")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    constants, carried = scan_parts(equation.of)
    fixed, params = args[:constants], equation.params

    def body(carry: list[Any], scanned: list[Any]) -> tuple[list[Any], list[Any]]:
        found = run.inside(equation, params["jaxpr"], [*fixed, *carry, *scanned], "body")
        return found[:carried], found[carried:]

    carry, scanned = args[constants : constants + carried], args[constants + carried :]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(body, carry, scanned, **options)
    return [*carry, *stacked]


@rule("while")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    params = equation.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = inputs[:tests], inputs[tests : tests + bodies]

    def run(carry: list[Value]) -> list[Value]:
        return walk.inside(equation, params["body_jaxpr"], [*of_body, *carry], "body")

    carry = _loop(walk, run, inputs[tests + bodies :], equation)
    walk.inside(equation, params["cond_jaxpr"], [*of_test, *carry], "test")
    return carry


@small("while")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    params = equation.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = args[:tests], args[tests : tests + bodies]

    def test(carry: list[Any]) -> Any:
        return run.inside(equation, params["cond_jaxpr"], [*of_test, *carry], "test")[0]

    def body(carry: list[Any]) -> list[Any]:
        return run.inside(equation, params["body_jaxpr"], [*of_body, *carry], "body")

    return lax.while_loop(test, body, args[tests + bodies :])


@rule("cond")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    sites = [(*equation.site, f"branch {k}") for k in range(len(equation.params["branches"]))]
    outs = [
        walk.inside(equation, branch, inputs[1:], str(site[-1]))
        for branch, site in zip(equation.params["branches"], sites, strict=True)
    ]
    products, depth = walk.notes.products, len(equation.site) + 1
    costs = [sum(p.flops for at, p in products.items() if at[:depth] == s) for s in sites]
    dearest = sites[int(np.argmax(costs))]
    for at, product in products.items():  # the one that costs most is what is counted
        if at[:depth] in sites and at[:depth] != dearest:
            products[at] = product._replace(flops=0.0)
    met = outs[0]
    for other in outs[1:]:
        met = [_met(walk, a, b, equation) for a, b in zip(met, other, strict=True)]
    return met


@small("cond")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    branches = [
        lambda *args, k=k, branch=branch: run.inside(equation, branch, args, f"branch {k}")
        for k, branch in enumerate(equation.params["branches"])
    ]
    return lax.switch(args[0].astype("int32"), branches, *args[1:])
