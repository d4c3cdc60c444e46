"""The one error that a person is meant to read."""


class UserError(Exception):
    """A request that cannot be carried out: one sentence saying what, where and what to do.

    The command line prints the sentence and exits with 2; nothing has been lost or half-written.
    """
