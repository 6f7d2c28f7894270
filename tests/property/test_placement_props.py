"""Placement, for any hosts: nobody is overbooked, nobody is forgotten, and one bad host does not change the others."""

from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.placement import HostReport, Silent, Wish, place

NAMES = st.sampled_from([f"h{number}" for number in range(1, 7)])
AMOUNTS = st.integers(0, 8)
REPORTS = st.builds(
    HostReport,
    name=NAMES,
    cpus=AMOUNTS,
    memory_mib=AMOUNTS,
    cpus_used=AMOUNTS,
    memory_mib_used=AMOUNTS,
    draining=st.booleans(),
    vms=st.frozensets(st.sampled_from(["web", "other"])),
)
HOSTS = st.lists(REPORTS | st.builds(Silent, NAMES, st.just("it is off")), unique_by=lambda host: host.name)
WISHES = st.builds(
    Wish,
    vm=st.just("web"),
    cpus=st.integers(1, 4),
    memory_mib=st.integers(1, 4),
    home=NAMES,
    allowed=st.lists(NAMES, unique=True, max_size=4).map(tuple),
    old_partner=NAMES | st.just(""),
    failed=st.dictionaries(NAMES, st.just("it hung")),
)


@given(WISHES, HOSTS)
def test_every_host_is_chosen_or_refused_for_a_reason(wish: Wish, hosts: list[HostReport | Silent]) -> None:
    placed = place(wish, hosts)
    assert sorted([*placed.order, *placed.refusals]) == sorted(host.name for host in hosts)
    assert all(name in why for name, why in placed.refusals.items())
    assert wish.home not in placed.order


@given(WISHES, HOSTS)
def test_a_chosen_host_has_room_and_no_copy(wish: Wish, hosts: list[HostReport | Silent]) -> None:
    by_name = {host.name: host for host in hosts}
    for name in place(wish, hosts).order:
        host = by_name[name]
        assert isinstance(host, HostReport)
        assert not host.draining
        assert wish.vm not in host.vms
        assert host.cpus_used + wish.cpus <= host.cpus
        assert host.memory_mib_used + wish.memory_mib <= host.memory_mib
        assert not wish.allowed or name in wish.allowed


@given(WISHES, HOSTS)
def test_the_better_ones_come_first(wish: Wish, hosts: list[HostReport | Silent]) -> None:
    order = place(wish, hosts).order
    assert [name in wish.failed for name in order] == sorted(name in wish.failed for name in order)
    good = [name for name in order if name not in wish.failed]
    if wish.old_partner in good:
        assert good[0] == wish.old_partner


@given(WISHES, HOSTS, st.data())
def test_a_host_that_is_refused_changes_nothing_for_the_others(
    wish: Wish, hosts: list[HostReport | Silent], data: st.DataObject
) -> None:
    placed = place(wish, hosts)
    if placed.refusals:
        gone = data.draw(st.sampled_from(sorted(placed.refusals)))
        assert place(wish, [host for host in hosts if host.name != gone]).order == placed.order
