"""SIGTERM, by which clusters announce that a machine goes: a run saves, and ends cleanly."""

import signal
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether this run is asked to end; on several processes, at a step that all agree on."""

    def __enter__(self) -> Self:
        """From now on SIGTERM is noted; of several processes JAX itself listens to it."""
        self._asked, self._before = False, None
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        """SIGTERM means what it meant before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self._asked = True

    def at(self, step: int) -> bool:
        """Whether to save and end after this step.

        Args:
          step: updates completed.

        Returns:
          The same on all processes.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
