"""What a user can put right, as one sentence: what is wrong, where, what would be right."""


class StudyError(Exception):
    """Bad input or an environment that a study cannot work in. The command line shows it and exits with code 2."""


class Diverged(Exception):
    """Training has become NaN or infinite; the message says when. A trial that diverges is recorded as failed."""
