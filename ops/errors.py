"""What goes wrong in surgery, each as one sentence that names the operation, the layer and the remedy."""


class SurgeryError(ValueError):
    """An operation that cannot be done: the message says what, where, and what would be right."""
