"""Rules for primitives of the user's own."""

from typing import Any

from jaxprune.network.elementwise import elementwise
from jaxprune.network.walk import RULES, Rule
from jaxprune.types import wrong


def register_rule(primitive: Any, rule: Rule | str) -> None:
    """Says what a primitive of your own does, so that `trace` need not pin what it meets.

    Args:
      primitive: the primitive, or its name. A rule that it had is replaced.
      rule: "elementwise", for what works entry by entry on operands of one shape and scalars; or
        ``(walk, equation, inputs) -> outputs``, which gives a `network.values.Value` for each
        output, and ties, pins and notes by the walk what follows, as those of
        `jaxprune.network.shapes` do.

    Raises:
      ValueError: if ``rule`` is another word.
      TypeError: if it is no function, or ``primitive`` neither a primitive nor a name.

    Examples:
      >>> import jaxprune
      >>> jaxprune.register_rule("my_activation", "elementwise")
    """
    name = getattr(primitive, "name", primitive)
    if not isinstance(name, str):
        raise TypeError(wrong("primitive", "be a primitive or the name of one", primitive))
    if isinstance(rule, str) and rule != "elementwise":
        raise ValueError(wrong("rule", "be 'elementwise' or a function", rule))
    if not isinstance(rule, str) and not callable(rule):
        raise TypeError(wrong("rule", "be 'elementwise' or a function", rule))
    RULES[name] = elementwise if isinstance(rule, str) else rule
