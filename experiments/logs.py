"""Metrics as JSON lines, cut on resume so that no row is there twice; progress; TensorBoard."""

import json
import os
import pathlib
import sys
from typing import Any

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
        self._bar = tqdm(total=total, initial=done, unit=unit, disable=not sys.stderr.isatty())

    def advance(self) -> None:
        """Count one unit more."""
        self._done += 1
        self._bar.update()

    def tell(self, text: str) -> None:
        """Show a text: beside the bar, or in a line of its own.

        Args:
          text: what there is to tell.
        """
        if self._bar.disable:
            line = f"{self._unit} {self._done} of {self._total}: {text}"
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


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
