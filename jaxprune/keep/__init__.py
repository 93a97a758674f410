"""Who stays: the closed set of words that a change of masks ends with.

Each is a function ``(scores, s, kept) -> Chosen``: the masks by site, where ``kept`` holds what
stays whatever its score. `at_end` tells beforehand how many stay in the end.
"""

from jaxprune.keep.blocks import in_blocks as in_blocks
from jaxprune.keep.counts import cheapest as cheapest
from jaxprune.keep.counts import largest as largest
from jaxprune.keep.counts import within as within
from jaxprune.keep.ends import at_end as at_end
from jaxprune.keep.groups import known_axes as known_axes
from jaxprune.keep.groups import n_of_m as n_of_m
from jaxprune.keep.others import above as above
from jaxprune.keep.others import everything as everything
