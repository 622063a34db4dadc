"""What a user can mend."""


class UserError(ValueError):
    """A mistake in the user's input, config or files: commands print it without a traceback and exit with code 2.

    The message says the rule, the value found, where it stands and what to do.
    """
