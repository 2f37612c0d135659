"""The terminal: how lines get there, wherever in a search they come from."""

from rich.console import Console


class _Patient(Console):
    """A console that says no more where its reader is gone; Rich would end the process, and the search with it."""

    def on_broken_pipe(self) -> None:
        """Is quiet from now on."""
        self.quiet = True


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console for lines and tables of a search; of `stderr`, for its errors.

    In a notebook its lines are plain, too: Rich would make an output of the cell of each.
    """
    console = _Patient(stderr=stderr, highlight=False, markup=False)
    if not console.is_jupyter:
        return console
    return _Patient(stderr=stderr, highlight=False, markup=False, force_jupyter=False, force_terminal=False)


def say(console: Console, line: str, style: str = "") -> None:
    """Prints a line as it is, also on a console of the caller's: brackets are no markup, and long lines stay whole."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
