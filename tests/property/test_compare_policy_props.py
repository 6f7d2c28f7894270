"""The compiled policy against going through the rules one by one."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.compare_policy import CONNECTIONS, WITH_PORTS, PlainRule, Policy, Rule, Verdict

ports = st.one_of(st.integers(0, 65535), st.sampled_from([0, 1, 53, 123, 65534, 65535]))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.one_of(st.sampled_from([1, 6, 17, 17, 58, 132]), st.integers(0, 255)))
    verdict = draw(st.sampled_from([v for v in Verdict if v != Verdict.RELEASE or protocol not in CONNECTIONS]))
    span = draw(st.none() | st.tuples(ports, ports)) if protocol in WITH_PORTS else None
    return Rule(protocol, verdict, None if span is None else (min(span), max(span)))


def naive(rules: list[Rule], default: Verdict, protocol: int, port: int) -> Verdict:
    for rule in rules:
        if rule.protocol == protocol and (rule.ports is None or rule.ports[0] <= port <= rule.ports[1]):
            return rule.verdict
    return default


policies = st.tuples(st.lists(rules(), max_size=12), st.sampled_from([Verdict.COMPARE, Verdict.CHECKPOINT]))


@settings(max_examples=200)
@given(policies, st.lists(st.tuples(st.integers(0, 255), ports), max_size=30))
def test_as_if_gone_through_one_by_one(policy: tuple[list[Rule], Verdict], asked: list[tuple[int, int]]) -> None:
    rules, default = policy
    compiled = Policy(rules, default)
    edges = [(rule.protocol, port) for rule in rules for port in rule.ports or (0, 65535)]
    for protocol, port in asked + edges:
        for near in {max(0, port - 1), port, min(65535, port + 1)}:
            assert compiled.verdict(protocol, near) is naive(rules, default, protocol, near)


@settings(max_examples=200)
@given(policies, ports)
def test_an_unknown_port_is_treated_no_less_carefully_than_any(policy: tuple[list[Rule], Verdict], port: int) -> None:
    rules, default = policy
    compiled = Policy(rules, default)
    for protocol in {rule.protocol for rule in rules}:
        assert compiled.verdict(protocol, None) >= naive(rules, default, protocol, port)


@settings(max_examples=200)
@given(policies)
def test_connections_are_never_released_and_plain_data_say_the_same(policy: tuple[list[Rule], Verdict]) -> None:
    compiled = Policy(*policy)
    sent = msgspec.msgpack.encode(compiled.encode())
    default, plain = msgspec.msgpack.decode(sent, type=tuple[int, list[PlainRule]])
    again = Policy.decode(default, plain)
    assert again.encode() == compiled.encode()
    for protocol in range(256):
        for port in (None, 0, 123, 65535):
            assert again.verdict(protocol, port) is compiled.verdict(protocol, port)
            assert protocol not in CONNECTIONS or compiled.verdict(protocol, port) is not Verdict.RELEASE
