"""The one exception type for mistakes that a user or the environment made."""


class L2TFastError(Exception):
    """What went wrong, where, and what would be right, in one sentence.

    Data, model, configuration and checkpoint code raises it. The command line prints the sentence alone and leaves with
    exit code 2; ``--debug`` adds the traceback. Tensor functions raise ``ValueError`` and ``TypeError`` instead.
    """
