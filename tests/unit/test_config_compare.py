"""The table [compare] of vm.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycolo.config import VmConfig, load_config
from pycolo.core.compare_policy import Verdict
from pycolo.core.layers import TCP, UDP
from pycolo.errors import EnvironmentFault

VM = 'name = "web"\nkernel = "/boot/vmlinuz"\naccel = "tcg"\n'
RULE = "[[compare.rules]]\n"


def vm_of(folder: Path, table: str) -> VmConfig:
    path = folder / "vm.toml"
    path.write_text(VM + table)
    return load_config(path, VmConfig)


def test_without_the_table_everything_is_compared_and_dates_are_tolerated_at_port_80(tmp_path: Path) -> None:
    compare = vm_of(tmp_path, "").compare
    assert compare.adaptive
    assert compare.policy().verdict(TCP, 80) is compare.policy().verdict(17, 123) is Verdict.COMPARE
    assert compare.tolerances().for_stream(80, 1) is not None
    assert compare.tolerances().for_stream(8080, 1) is None


def test_all_that_can_be_said(tmp_path: Path) -> None:
    table = (
        '[compare]\ndefault = "checkpoint"\nadaptive = false\nhttp_date = []\n'
        + RULE
        + 'protocol = "udp"\nport = 123\nverdict = "release"\n'
        + RULE
        + 'protocol = "udp"\nports = "5000-5100"\nverdict = "compare"\n'
        + RULE
        + 'protocol = 47\nverdict = "release"\n'
    )
    vm = vm_of(tmp_path, table)
    policy = vm.compare.policy()
    assert not vm.compare.adaptive
    assert vm.compare.tolerances().for_stream(80, 1) is None
    asked = [(UDP, 123), (UDP, 5000), (UDP, 5100), (UDP, 5101), (47, None), (TCP, 123)]
    kept, released, compared = Verdict.CHECKPOINT, Verdict.RELEASE, Verdict.COMPARE
    assert [policy.verdict(*one) for one in asked] == [released, compared, compared, kept, released, kept]
    assert VmConfig.model_validate_json(vm.model_dump_json()) == vm, "it goes to the copy's process as JSON"


@pytest.mark.parametrize(
    ("table", "key", "sentence"),
    [
        ('[compare]\ndefault = "release"\n', "compare.default", "'release'"),
        ("[compare]\nhttp_date = [0]\n", "http_date", "is 0: it should be a port, a whole number from 1 to 65535"),
        ("[compare]\nhttp_date = 80\n", "http_date", "is 80: it should be a list of ports, as in [80]; [] for none"),
        ("[compare]\nadaptiv = true\n", "compare.adaptiv", "is unknown"),
        ("[compare]\nadaptive = 1\n", "compare.adaptive", "is 1: "),
        (RULE + 'protocol = "udp"\n', "verdict", "is missing: add it"),
        (
            RULE + 'protocol = "upd"\nverdict = "release"\n',
            "protocol",
            "is 'upd': it should be icmp, icmpv6, tcp, udp, or the number of an IP protocol from 0 to 255",
        ),
        (RULE + 'protocol = 256\nverdict = "release"\n', "protocol", "is 256: it should be icmp,"),
        (RULE + 'protocol = true\nverdict = "release"\n', "protocol", "it should be icmp,"),
        (
            RULE + 'protocol = "tcp"\nport = 80\nverdict = "release"\n',
            "compare.rules",
            ": protocol tcp can't be released uncompared, as a takeover would break its connections: "
            'use "compare", or "checkpoint" where the outputs always differ',
        ),
        (RULE + 'protocol = 6\nverdict = "release"\n', "compare.rules", "protocol 6 can't be released uncompared"),
        (RULE + 'protocol = 132\nverdict = "release"\n', "compare.rules", "protocol 132 can't be released uncompared"),
        (
            RULE + 'protocol = "icmp"\nport = 1\nverdict = "release"\n',
            "compare.rules",
            ": ports are known of tcp and udp only: leave them out for protocol icmp",
        ),
        (
            RULE + 'protocol = "udp"\nport = 1\nports = "1-2"\nverdict = "release"\n',
            "compare.rules",
            ": it has both `port` and `ports`: keep the one that is meant",
        ),
        (
            RULE + 'protocol = "udp"\nports = "2-1"\nverdict = "release"\n',
            "ports",
            "is '2-1': it should be a range of ports from 1 to 65535 in quotes, as in \"5000-5100\"",
        ),
        (RULE + 'protocol = "udp"\nport = 70000\nverdict = "release"\n', "port", "is 70000: it should be a port,"),
        (RULE + 'protocol = "udp"\nport = "53"\nverdict = "release"\n', "port", "is '53': it should be a port,"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, table: str, key: str, sentence: str) -> None:
    with pytest.raises(EnvironmentFault) as told:
        vm_of(tmp_path, table)
    assert key in str(told.value)
    assert sentence in str(told.value)
