"""What a kill looks like from inside."""


class Killed(BaseException):
    """Passes every ``except Exception``, as a kill does."""


def die_after(patch, owner, name, reached=lambda *_: True):
    """Let a function do its work, and die then where ``reached`` says so of its arguments."""
    original = getattr(owner, name)

    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        if reached(*args):
            raise Killed
        return result

    patch.setattr(owner, name, wrapper)
