"""Metrics as JSON lines, cut on resume so that no row is there twice; TensorBoard if asked."""

import json
import os
import pathlib
from typing import Any


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

    References:
      original.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is half a row
    return [json.loads(line) for line in lines]
