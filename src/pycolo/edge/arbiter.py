"""The arbiter as the managers see it, and which one host.toml asks for."""

from __future__ import annotations

from typing import Protocol

from pycolo.config import ArbiterConfig, FileArbiterConfig
from pycolo.core.arbitration import ClaimAnswer, ClaimRecord
from pycolo.edge.etcd import EtcdArbiter
from pycolo.edge.etcd_gateway import EtcdGateway
from pycolo.edge.state_file import FileArbiter


class Arbiter(Protocol):
    """Keeps one record for each VM and changes it only by the rule of `core.arbitration.decide_claim`.

    The deadline is the caller's (`asyncio.timeout`). A claim that was cancelled, or that raised ArbiterUnanswered, may
    be granted all the same, then or later: nobody acts upon it unless asking again for the same term gives a yes.
    """

    async def claim(self, vm: str, term: int, host: str, claim_id: str = "") -> ClaimAnswer:
        """Claim `term` of `vm` for `host`, see `decide_claim`; the answer is always usable.

        Raises ArbiterUnanswered, which is never a yes; ValueError unless 0 < term and `vm` is a name.
        """
        ...

    async def end(self, vm: str, term: int, host: str) -> bool:
        """Note that `host`, the holder of `term`, has ended the VM in good order; whether it is the holder.

        Raises ArbiterUnanswered.
        """
        ...

    async def record(self, vm: str) -> ClaimRecord | None:
        """What is stored now, never something older. Raises ArbiterUnanswered; ValueError unless `vm` is a name."""
        ...


def make_arbiter(config: ArbiterConfig) -> Arbiter:
    """The arbiter that host.toml asks for. Raises EnvironmentFault when one of its files can't be used."""
    if isinstance(config, FileArbiterConfig):
        return FileArbiter(config.path)
    return EtcdArbiter(EtcdGateway(config), config.prefix)
