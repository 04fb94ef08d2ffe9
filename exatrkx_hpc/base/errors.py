"""The errors that a user sees, each with its exit code.

    ExatrkxError (1)
    ├── ConfigError (2)        farm.toml, an environment variable or a flag is wrong
    ├── MissingComponent (3)   a program or an optional package is not here
    │   └── NotStarted         a program is here, but this machine cannot start it now
    ├── LaunchError (4)        a job could not be submitted, found or stopped
    ├── EndpointError (5)      nothing useful answers at the endpoint
    ├── InputError (6)         an event or a folder cannot be used
    ├── ModelError (7)         a model repository, a weight or a model's answer is wrong
    ├── OutputError (8)        a result cannot be written
    └── IncompleteRun (9)      the run ended, but not every event has a result

A message is one line: what happened, where, what to do next. For an OSError, the command line exits with 8. Any
other exception is a fault of this program: the command line writes a report file and exits with 70 (cli/fault.py).
"""

from __future__ import annotations

from typing import ClassVar


class ExatrkxError(Exception):
    """The root of all errors; its message is the line that a user reads."""

    exit_code: ClassVar[int] = 1


class ConfigError(ExatrkxError):
    """A value in farm.toml, the environment or a flag cannot be used."""

    exit_code = 2


class MissingComponent(ExatrkxError):
    """A program or an optional Python package is not installed."""

    exit_code = 3


class NotStarted(MissingComponent):
    """A program could not be started: no process, memory or file is left, or the file system failed. It may work later.

    Whoever watches a farm waits and tries again; whoever needs the program now reports it.
    """


class LaunchError(ExatrkxError):
    """A job could not be submitted, found or stopped."""

    exit_code = 4


class EndpointError(ExatrkxError):
    """Nothing useful answers at the endpoint."""

    exit_code = 5


class InputError(ExatrkxError):
    """An event or a folder of events cannot be used."""

    exit_code = 6


class ModelError(ExatrkxError):
    """A model repository, a weight or a model's answer is wrong."""

    exit_code = 7


class OutputError(ExatrkxError):
    """A result cannot be written."""

    exit_code = 8


class IncompleteRun(ExatrkxError):
    """The run ended, but not every event has a result."""

    exit_code = 9
