"""When, where and how far: steps at which something is due, phases of a course, sparsities.

Everything here is a function of one number, the age ``n`` of the network: the updates completed.
The first update is seen at ``n = 1``. Every bound is inclusive: ``end`` and ``stop`` name the last
update that may change masks. All are frozen and compared by value, so that they may stand in a
static place: ``n`` may be traced, the rest is known when the program is built (a sparsity may be
traced, too; it is then compared by identity).
"""

from jaxprune.schedules.moments import Either as Either
from jaxprune.schedules.moments import Every as Every
from jaxprune.schedules.moments import When as When
from jaxprune.schedules.moments import either as either
from jaxprune.schedules.moments import every as every
from jaxprune.schedules.moments import once as once
from jaxprune.schedules.moments import steps_due as steps_due
from jaxprune.schedules.phases import Cycles as Cycles
from jaxprune.schedules.phases import cycles as cycles
from jaxprune.schedules.ramps import Ramp as Ramp
from jaxprune.schedules.ramps import constant as constant
from jaxprune.schedules.ramps import cubic as cubic
from jaxprune.schedules.ramps import geometric as geometric
from jaxprune.schedules.ramps import linear as linear
