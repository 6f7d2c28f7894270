"""Where the second copy goes: each rule, and each refusal as a sentence."""

from dataclasses import replace

import pytest

from pycolo.core.placement import HostReport, Silent, Wish, place

H2, H3, H4 = (HostReport(name, cpus=4, memory_mib=4096) for name in ("h2", "h3", "h4"))
WISH = Wish("web", cpus=2, memory_mib=1024, home="h1")


def test_the_configured_order_counts() -> None:
    assert place(WISH, [H3, H2, H4]).order == ("h3", "h2", "h4")


def test_the_order_of_the_allowed_hosts_counts_more() -> None:
    placed = place(replace(WISH, allowed=("h4", "h2")), [H2, H3, H4])
    assert placed.order == ("h4", "h2")
    assert placed.refusals == {"h3": "h3 is not among the hosts that may hold web: h4, h2"}


def test_the_old_partner_comes_first() -> None:
    assert place(replace(WISH, old_partner="h4"), [H2, H3, H4]).order == ("h4", "h2", "h3")


def test_who_failed_lately_comes_last_but_is_tried() -> None:
    assert place(replace(WISH, failed={"h2": "it hung"}, old_partner="h2"), [H2, H3]).order == ("h3", "h2")
    assert place(replace(WISH, failed={"h2": "it hung"}), [H2]).order == ("h2",)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (HostReport("h1", 4, 4096), "h1 has the first copy of web: the second has to be elsewhere"),
        (Silent("h2", "connection refused"), "h2 does not answer: connection refused"),
        (replace(H2, draining=True), "h2 is being drained and takes no new copies"),
        (replace(H2, vms=frozenset({"web"})), "h2 has a copy of web already"),
        (replace(H2, cpus_used=3), "h2 offers 4 cpus, 3 are taken, and web needs 2"),
        (replace(H2, memory_mib_used=3073), "h2 offers 4096 MiB of memory, 3073 are taken, and web needs 1024"),
    ],
)
def test_who_will_not_do_and_why(host: HostReport | Silent, says: str) -> None:
    placed = place(WISH, [host])
    assert placed.order == ()
    assert placed.refusals == {host.name: says}


def test_what_just_fits_fits() -> None:
    assert place(WISH, [replace(H2, cpus_used=2, memory_mib_used=3072)]).order == ("h2",)
