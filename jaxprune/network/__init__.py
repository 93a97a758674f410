"""A network, known by tracing it: what is contracted along which axes, and what follows from it."""

from jaxprune.network.choice import ChannelChoice as ChannelChoice
from jaxprune.network.choice import at_least as at_least
from jaxprune.network.choice import rounded as rounded
from jaxprune.network.choice import steps_of as steps_of
from jaxprune.network.costs import Cost as Cost
from jaxprune.network.groups import Group as Group
from jaxprune.network.groups import Member as Member
from jaxprune.network.leaves import Leaf as Leaf
from jaxprune.network.rules import register_rule as register_rule
from jaxprune.network.traced import Network as Network
from jaxprune.network.traced import network_from_json as network_from_json
from jaxprune.network.traced import trace as trace
