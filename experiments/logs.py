"""Metrics as JSON lines, cut on resume so that no row is there twice; progress; TensorBoard."""

import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm


class Log:
    """Rows of metrics in a file that survives a kill at any moment."""

    def __init__(self, path: pathlib.Path, *, after: int, tensorboard: bool = False) -> None:
        """Open the file and drop the rows behind the step the run goes on from.

        Args:
          path: the file.
          after: step of the restored checkpoint; later rows, and a half-written one, are dropped.
          tensorboard: write events beside it too; needs tensorboardX.

        Raises:
          ModuleNotFoundError: if TensorBoard is asked for and tensorboardX is not installed.
        """
        rows = [row for row in read(path) if row["step"] <= after]
        whole = path.with_suffix(".part")
        whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(whole, path)
        self._events = _events(path.parent) if tensorboard else None
        self._file = path.open("a")

    def write(self, step: int, **values: float) -> None:
        """Add a row.

        Args:
          step: updates completed.
          **values: the metrics.
        """
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _events(folder: pathlib.Path) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        error.add_note("`tensorboard=True` needs the extra: pip install 'jaxprune[tensorboard]'")
        raise
    return SummaryWriter(str(folder / "tensorboard"))


class Progress:
    """A bar on a terminal; elsewhere, in a log, a line whenever there is something to tell."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        """Begin.

        Args:
          total: how many units there are.
          unit: what is counted.
          done: how many of them are done already.
        """
        self._total, self._unit, self._done = total, unit, done
        self._first = jax.process_index() == 0  # of several processes one speaks
        shown = self._first and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, disable=not shown)

    def advance(self) -> None:
        """Count one unit more."""
        self._done += 1
        self._bar.update()

    def tell(self, text: str) -> None:
        """Show a text: beside the bar, or in a line of its own.

        Args:
          text: what there is to tell.
        """
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif self._first:
            line = f"{self._unit} {self._done} of {self._total}: {text}"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Pace:
    """How many images a second a loop takes, and how much of its time it waits for them."""

    def __init__(self, images: int) -> None:
        """Begin.

        Args:
          images: of a step.
        """
        self._images = images
        self.begin()

    def begin(self) -> None:
        """Begin anew: what came between counts for nothing."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch, waited for.

        Args:
          batches: where it comes from.

        Returns:
          The batch.
        """
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        self._steps += 1
        return batch

    def tell(self, left: int) -> str:
        """The pace since it began.

        Args:
          left: how many steps there still are.

        Returns:
          Images a second, the share of time that was waited for data, the time that is left.
        """
        taken = max(time.perf_counter() - self._began, 1e-9)
        rest = datetime.timedelta(seconds=round(left * taken / max(self._steps, 1)))
        return (
            f"{self._steps * self._images / taken:,.0f} images/s, "
            f"{self._waited / taken:.0%} waiting for data, {rest} left"
        )


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file; a half-written last one is left out.

    Args:
      path: the file; it need not be there.

    Returns:
      The rows, in order.

    Examples:
      >>> import pathlib
      >>> from experiments import logs
      >>> logs.read(pathlib.Path("no", "such", "file"))
      []
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is half a row
    return [json.loads(line) for line in lines]
