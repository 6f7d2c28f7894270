"""The table [compare] of vm.toml: what is compared, what is not, and which differences are tolerated."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from pycolo.core.compare_policy import CONNECTIONS, WITH_PORTS, Policy, Rule, Verdict
from pycolo.core.layers import PROTOCOLS
from pycolo.core.tolerance_rules import Rule as ToleranceRule
from pycolo.core.tolerance_rules import Tolerances

_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)
_VERDICTS = {"release": Verdict.RELEASE, "compare": Verdict.COMPARE, "checkpoint": Verdict.CHECKPOINT}


def _port(value: object) -> object:
    if value is None or (type(value) is int and 1 <= value <= 65535):
        return value
    raise ValueError("it should be a port, a whole number from 1 to 65535")


def _range(value: object) -> object:
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if value is None or (match is not None and 1 <= int(match[1]) <= int(match[2]) <= 65535):
        return value
    raise ValueError('it should be a range of ports from 1 to 65535 in quotes, as in "5000-5100"')


def _ports(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    raise ValueError("it should be a list of ports, as in [80]; [] for none")


def _protocol(value: object) -> int | str:
    if type(value) is int and 0 <= value <= 255:
        return value
    if isinstance(value, str) and value in PROTOCOLS:
        return value
    raise ValueError(f"it should be {', '.join(sorted(PROTOCOLS))}, or the number of an IP protocol from 0 to 255")


Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_port)]
PortRange = Annotated[str, BeforeValidator(_range)]
Protocol = Annotated[int | str, BeforeValidator(_protocol), WithJsonSchema({"type": ["string", "integer"]})]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CompareRule(_Model):
    """One rule: `port` or `ports` are the guest's; neither: all of the protocol."""

    protocol: Protocol
    port: Port | None = None
    ports: PortRange | None = None
    verdict: Literal["compare", "release", "checkpoint"]

    @property
    def protocol_number(self) -> int:
        """As in the IP header."""
        return self.protocol if isinstance(self.protocol, int) else PROTOCOLS[self.protocol]

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and the last port, None without."""
        if self.port is not None:
            return self.port, self.port
        first, dash, last = (self.ports or "").partition("-")
        return (int(first), int(last)) if dash else None

    @model_validator(mode="after")
    def _fits(self) -> CompareRule:
        if self.port is not None and self.ports is not None:
            raise ValueError("it has both `port` and `ports`: keep the one that is meant")
        if self.span is not None and self.protocol_number not in WITH_PORTS:
            raise ValueError(f"ports are known of tcp and udp only: leave them out for protocol {self.protocol}")
        if self.verdict == "release" and self.protocol_number in CONNECTIONS:
            raise ValueError(
                f"protocol {self.protocol} can't be released uncompared, as a takeover would break its connections: "
                'use "compare", or "checkpoint" where the outputs always differ'
            )
        return self


class CompareConfig(_Model):
    """How the outputs of the two copies are compared.

    `adaptive`: outputs that differ again and again get checkpoints at a pace instead of one for each difference.
    `http_date`: the guest's ports where an HTTP/1.x server may name another second in its `Date:`.
    """

    default: Literal["compare", "checkpoint"] = "compare"
    adaptive: bool = True
    http_date: Annotated[tuple[Port, ...], Field(strict=False, max_length=64), BeforeValidator(_ports)] = (80,)
    rules: Annotated[tuple[CompareRule, ...], Field(strict=False, max_length=256)] = ()

    def policy(self) -> Policy:
        """The rules, compiled."""
        rules = [Rule(one.protocol_number, _VERDICTS[one.verdict], one.span) for one in self.rules]
        return Policy(rules, _VERDICTS[self.default])

    def tolerances(self) -> Tolerances:
        """The differences that are tolerated."""
        return Tolerances([ToleranceRule("http-date", self.http_date)])
