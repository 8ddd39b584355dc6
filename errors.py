"""The two ways a command ends early, and how lines for the person count; shared by every package.

`UserError`: wrong use or bad input; the message says what is wrong, where, and what to do (exit code 2).
`MachineError`: the machine failed or a check found damage (exit code 1).
Both are `click.ClickException`s, so the command line prints one line and no traceback, and plain
exceptions to whoever calls the Python API.
"""

import click

__all__ = ["MachineError", "UserError", "count_of"]


def count_of(n: int, one: str, many: str | None = None) -> str:
    """How many there are, in words: count_of(1, "row") is "1 row", count_of(2000, "row is", "rows are") is "2,000 rows
    are"; many: the plural, where another letter s does not make it."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


class UserError(click.ClickException):
    """Wrong use or bad input: what, where (file, row, field), and what to do about it."""

    exit_code = 2

    def __str__(self) -> str:
        return self.message


class MachineError(click.ClickException):
    """The machine failed (disk full, I/O), or a check found damage."""

    exit_code = 1

    def __str__(self) -> str:
        return self.message
