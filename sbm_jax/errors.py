"""Errors whose text is meant for the user: the command line prints them without a traceback."""


class UserError(Exception):
    """Something the user can mend: says what was expected, what came, from which file, what to do.

    The command line prints the message and exits with code 2.
    """


class StoreError(UserError):
    """A store on disk is unfinished, damaged or not the one that was asked for."""
