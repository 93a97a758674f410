"""A network, known by tracing it: what is contracted along which axes, and what follows from it."""

from jaxprune.network.facts import Leaf as Leaf
from jaxprune.network.facts import Network as Network
from jaxprune.network.facts import network_from_json as network_from_json
from jaxprune.network.facts import trace as trace
from jaxprune.network.rules import register_rule as register_rule
