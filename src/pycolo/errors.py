"""Every failure that may reach a user, with its exit status; the message is one sentence that ends in the remedy."""


class PycoloError(Exception):
    """Base of all failures of ours; `exit_status` is what the command line returns."""

    exit_status = 1


class EnvironmentFault(PycoloError):
    """The machine or the configuration can't do what was asked: a tool, a kernel feature, a port, a file."""

    exit_status = 2


class CaptureDamaged(EnvironmentFault):
    """A capture file is whole only up to a place; all that is before it has been delivered."""


class DemoFailed(PycoloError):
    """The demo ran, and a client noticed."""

    exit_status = 3


class ArbiterUnanswered(PycoloError):
    """The arbiter gave no answer, or what is stored there decides nothing; that is never a yes."""

    exit_status = 10


class VmLost(PycoloError):
    """Our own copy of the VM is gone: QEMU crashed, hung past its deadline or refused a command."""

    exit_status = 4


class VmEnds(PycoloError):
    """The VM has come to its end by the guest's or the operator's will; there is nothing to protect any more."""

    exit_status = 0


class PeerLost(PycoloError):
    """The other host does not answer any more; what it did last is unknown."""

    exit_status = 5


class PeerClosed(PeerLost):
    """The process at the other end has closed the connection, or is dead: it does nothing with it any more."""


class PeerViolation(PeerLost):
    """The other host sent something that the protocol forbids; the session ends."""

    exit_status = 6


class PeerUntrusted(PeerViolation):
    """The other host can't prove who it is, or does not believe who we are; nothing was said to it."""


class CheckpointFailed(PycoloError):
    """A checkpoint was given up before its commit point; its pages count as dirty again."""

    exit_status = 7


class DiskTrouble(PycoloError):
    """This host's copy of a disk can't be kept right: it has no room, or its disk fails. The partner goes on alone."""

    exit_status = 9


class Fenced(PycoloError):
    """The other side holds the claim; our VM copy has been killed so that it can never speak."""

    exit_status = 8


class UnknownVm(PycoloError):
    """This host has neither a copy nor a record of that VM."""

    exit_status = 20


class WrongState(PycoloError):
    """What was asked does not fit the state that the VM or the host is in."""

    exit_status = 21


class NotAllowed(PycoloError):
    """Who asks has not shown that it may."""

    exit_status = 22


def failure_of(exit_status: int, sentence: str) -> PycoloError:
    """A failure that another process had, as it was there; one of an unknown kind is EnvironmentFault."""
    known = [*PycoloError.__subclasses__(), *PeerLost.__subclasses__()]
    return next((kind for kind in known if kind.exit_status == exit_status), EnvironmentFault)(sentence)
