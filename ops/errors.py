"""What goes wrong in surgery, each as one sentence that names the operation, the layer and the remedy."""


class SurgeryError(ValueError):
    """An operation that cannot be done: the message says what, where, and what would be right."""


def said(error: BaseException) -> str:
    """The first line of what somebody else's error says, or else its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
