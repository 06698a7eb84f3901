"""Every error that promptcdm raises on purpose.

    PromptCDMError
      UnknownSource     LookupError    no such adapter in the store, or not allowed: the same words for both
      AdapterMismatch   ValueError     another backbone, wrong shapes, wrong digest, unknown format
      BadSource         ValueError     a folder that cannot be trained on; `problems` names every file
      BadQuestions      ValueError     a question file that cannot be read
      BadInput          ValueError     any other wrong argument or setting
      RunFailed         RuntimeError   the input was right and the work failed all the same

The command line prints the message as one line and exits with 1 for `RunFailed`, with 2 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence


class PromptCDMError(Exception):
    """The base of every error below."""


class UnknownSource(PromptCDMError, LookupError):
    """A source that the store does not hold."""


class AdapterMismatch(PromptCDMError, ValueError):
    """An adapter file that does not fit its record, its format or the backbone."""


class BadSource(PromptCDMError, ValueError):
    """A source folder with problems, all of them listed, one a line, in `problems`."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class BadQuestions(PromptCDMError, ValueError):
    """A question or image-map file that does not hold what it should."""


class BadInput(PromptCDMError, ValueError):
    """An argument or setting out of range or of the wrong kind."""


class RunFailed(PromptCDMError, RuntimeError):
    """Work on good input that failed, such as a prediction that is not finite."""
