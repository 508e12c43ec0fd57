"""One line per step, on a terminal or in a log: the time it took and the time that is left."""

import shutil
import sys
import time

REPORT_SECONDS = 60  # in a log, where a line cannot be overwritten, at most one report a minute


class Progress:
    """Prints '[3/12] name ... 41 s, about 12 min left' for steps with known expected minutes."""

    def __init__(self, minutes: list[float]):
        self.total, self.count = len(minutes), 0
        self.left, self.spent = sum(minutes), 0.0  # expected minutes
        self.began = self.started = self.reported = time.monotonic()
        self.live = sys.stdout.isatty()
        self.name = ""

    def start(self, name: str) -> None:
        """Begin a step."""
        self.name, self.started = name, time.monotonic()
        self._overwrite(f"[{self.count + 1}/{self.total}] {name} ...")

    def report(self, text: str) -> None:
        """Say how far the step is."""
        line = f"[{self.count + 1}/{self.total}] {self.name}: {text}"
        self._overwrite(line)
        if not self.live and time.monotonic() - self.reported >= REPORT_SECONDS:
            self.reported = time.monotonic()
            print(line, flush=True)

    def finish(self, name: str, minutes: float, word: str = "", seconds: float | None = None):
        """End a step that was expected to take `minutes`; `seconds` defaults to since its start."""
        seconds = time.monotonic() - self.started if seconds is None else seconds
        self.count += 1
        self.left -= minutes
        self.spent += minutes
        self._overwrite("")
        more = self.count < self.total and not word
        left = f", about {minutes_in_words(self._minutes_left())} left" if more else ""
        print(f"[{self.count}/{self.total}] {name} ... {word}{seconds:.0f} s{left}", flush=True)

    def _minutes_left(self) -> float:
        """What is left, at the pace so far; the first minute is not enough to tell the pace."""
        real = (time.monotonic() - self.began) / 60
        return self.left * (1 + real) / (1 + self.spent)

    def _overwrite(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)


def minutes_in_words(minutes: float) -> str:
    """Return a duration as a person would say it.

    >>> minutes_in_words(0.2), minutes_in_words(12.4), minutes_in_words(150)
    ('12 s', '12 min', '2.5 h')
    """
    if round(60 * minutes) < 60:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
