"""Which protocols and ports are compared, released, or kept for a checkpoint."""

from __future__ import annotations

import pytest

from pycolo.core.compare_policy import CONNECTIONS, Policy, Rule, Verdict
from pycolo.core.layers import TCP, UDP
from pycolo.core.tolerance_rules import Rule as ToleranceRule
from pycolo.core.tolerance_rules import Tolerances

RELEASE, COMPARE, CHECKPOINT = Verdict.RELEASE, Verdict.COMPARE, Verdict.CHECKPOINT
ICMP, ICMPV6 = 1, 58


def test_without_rules_everything_is_compared() -> None:
    policy = Policy()
    for protocol in range(256):
        assert policy.verdict(protocol, None) is policy.verdict(protocol, 65535) is COMPARE
    assert Policy(default=CHECKPOINT).verdict(TCP, 80) is CHECKPOINT


def test_the_first_rule_that_fits_decides() -> None:
    policy = Policy(
        [Rule(UDP, COMPARE, (5001, 5001)), Rule(UDP, RELEASE, (5000, 5100)), Rule(UDP, CHECKPOINT), Rule(UDP, RELEASE)]
    )
    verdicts = {port: policy.verdict(UDP, port) for port in (1, 4999, 5000, 5001, 5100, 5101, 65535)}
    assert list(verdicts.values()) == [CHECKPOINT, CHECKPOINT, RELEASE, COMPARE, RELEASE, CHECKPOINT, CHECKPOINT]
    assert policy.verdict(TCP, 5000) is COMPARE


def test_an_unknown_port_gets_the_most_careful_of_what_may_be_meant() -> None:
    assert Policy([Rule(UDP, RELEASE, (123, 123))]).verdict(UDP, None) is COMPARE
    assert Policy([Rule(UDP, COMPARE, (53, 53)), Rule(UDP, RELEASE)]).verdict(UDP, None) is COMPARE
    assert Policy([Rule(UDP, RELEASE), Rule(UDP, COMPARE, (53, 53))]).verdict(UDP, None) is RELEASE
    assert Policy([Rule(UDP, RELEASE, (0, 65535)), Rule(UDP, CHECKPOINT)]).verdict(UDP, None) is RELEASE


def test_protocols_without_ports() -> None:
    policy = Policy([Rule(ICMP, RELEASE), Rule(ICMPV6, CHECKPOINT), Rule(ICMP, COMPARE)])
    assert policy.verdict(ICMP, None) is RELEASE
    assert policy.verdict(ICMPV6, None) is CHECKPOINT


@pytest.mark.parametrize("protocol", sorted(CONNECTIONS))
def test_connections_are_never_released_uncompared(protocol: int) -> None:
    with pytest.raises(ValueError, match="has connections, which a takeover would break"):
        Policy([Rule(protocol, RELEASE)])
    assert Policy([Rule(protocol, CHECKPOINT)]).verdict(protocol, None) is CHECKPOINT


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule(256, COMPARE), "there is no IP protocol 256"),
        (Rule(-1, COMPARE), "there is no IP protocol -1"),
        (Rule(ICMP, COMPARE, (1, 2)), "has no ports"),
        (Rule(UDP, COMPARE, (2, 1)), "2-1 are no range"),
        (Rule(UDP, COMPARE, (1, 65536)), "1-65536 are no range"),
    ],
)
def test_what_a_rule_can_not_say(rule: Rule, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Policy([rule])


def test_the_default_never_releases() -> None:
    with pytest.raises(ValueError, match="TCP must be compared"):
        Policy(default=RELEASE)


def test_what_is_decoded_is_checked_as_well() -> None:
    for default, plain in ((0, []), (7, []), (1, [(TCP, 0, 65535, 0)]), (1, [(UDP, 9, 1, 1)]), (1, [(UDP, 1, 1, 9)])):
        with pytest.raises(ValueError, match=r".+"):
            Policy.decode(default, plain)


# ---------------------------------------------------------------- tolerances


def test_a_tolerance_holds_at_its_ports_only() -> None:
    tolerances = Tolerances([ToleranceRule("http-date", (80, 8080))])
    first, second = tolerances.for_stream(80, 1), tolerances.for_stream(80, 1)
    assert first is not None
    assert first is not second, "each connection has its own"
    assert tolerances.for_stream(443, 1) is None
    assert Tolerances().for_stream(80, 1) is None


def test_tolerances_as_plain_data() -> None:
    plain = Tolerances([ToleranceRule("http-date", (80,))]).encode()
    assert plain == [("http-date", [80])]
    assert Tolerances.decode(plain).encode() == plain
    with pytest.raises(ValueError, match="there is no tolerance 'http-age': known are http-date"):
        Tolerances.decode([("http-age", [80])])
