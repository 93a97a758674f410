"""Channels that are really cut: which ones, the smaller network, and whether it is the same."""

from jaxprune.shrinking.choosing import RemovableUnits as RemovableUnits
from jaxprune.shrinking.choosing import pool_scores as pool_scores
from jaxprune.shrinking.choosing import removable_units as removable_units
from jaxprune.shrinking.choosing import select_units as select_units
from jaxprune.shrinking.shrink import Shrunk as Shrunk
from jaxprune.shrinking.shrink import shrink as shrink
from jaxprune.shrinking.shrink import shrunk_from_plan as shrunk_from_plan
from jaxprune.shrinking.shrink import verify_shrink as verify_shrink
