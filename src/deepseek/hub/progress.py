"""How a download tells how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


class Progress(Protocol):
    """Receives the state of one download."""

    def start(self, title: str, total: int) -> None:
        """A download of ``total`` bytes begins."""
        ...

    def update(self, done: int, detail: str) -> None:
        """``done`` bytes are here; ``detail`` says what is being done (``part 3 of 22``)."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def finish(self) -> None:
        """The download is over, whether it succeeded or not."""
        ...


class Silent:
    """Implements :class:`Progress` by saying nothing."""

    def start(self, title: str, total: int) -> None:
        return

    def update(self, done: int, detail: str) -> None:
        return

    def note(self, text: str) -> None:
        return

    def finish(self) -> None:
        return


class RichProgress:
    """Implements :class:`Progress` with a bar on the terminal's standard error."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, detail="")

    def update(self, done: int, detail: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, detail=detail)

    def note(self, text: str) -> None:
        from rich.console import Console

        (self._bar.console if self._bar is not None else Console(stderr=True)).print(text, highlight=False)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
