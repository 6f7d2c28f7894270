"""The arbiter's folder: one winner per term, whatever two processes do at once; no answer is never a yes."""

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.arbitration import ClaimRecord
from pycolo.edge import state_file
from pycolo.edge.state_file import FileArbiter
from pycolo.errors import ArbiterUnanswered

TERMS = 200
CLAIMANT = """
import asyncio, sys, time
from pathlib import Path
from pycolo.edge import state_file
from pycolo.edge.state_file import FileArbiter

state_file.LOCK_S_MAX = 60.0  # who stands still with the lock in hand is waited for

async def claim_all(arbiter, host, terms):
    for term in range(1, terms + 1):
        while ((record := await arbiter.record("vm")) and record.term or 0) < term - 1:
            pass
        print(term, int((await arbiter.claim("vm", term, host)).granted))

arbiter, host, terms, start_s = FileArbiter(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
time.sleep(max(0.0, start_s - time.monotonic()))
asyncio.run(claim_all(arbiter, host, terms))
"""


async def granted(folder: Path, term: int, host: str, vm: str = "vm") -> bool:
    """Whether a claim right above the last term is granted."""
    return (await FileArbiter(folder).claim(vm, term, host)).granted


def test_two_processes_at_once_exactly_one_wins_each_term(tmp_path: Path) -> None:
    start_s = str(time.monotonic() + 1.0)
    claimants = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, str(tmp_path), host, str(TERMS), start_s], stdout=subprocess.PIPE
        )
        for host in ("alpha", "beta")
    ]
    won: list[set[int]] = []
    for claimant in claimants:
        output, _ = claimant.communicate(timeout=60)
        assert claimant.returncode == 0
        answers = [tuple(map(int, line.split())) for line in output.decode().splitlines()]
        assert len(answers) == TERMS
        won.append({term for term, granted in answers if granted})
    assert won[0] & won[1] == set()
    assert won[0] | won[1] == set(range(1, TERMS + 1))


async def test_asking_again_gives_the_same_answer(tmp_path: Path) -> None:
    assert await FileArbiter(tmp_path).record("vm") is None
    for _ in range(2):
        assert await granted(tmp_path, 1, "alpha")
        assert not await granted(tmp_path, 1, "beta")
    assert await FileArbiter(tmp_path).record("vm") == ClaimRecord("vm", 1, "alpha")
    assert json.loads((tmp_path / "vm.json").read_text()) == {"vm": "vm", "term": 1, "holder": "alpha"}


async def test_vms_do_not_share_a_record(tmp_path: Path) -> None:
    """Nor do those whose names look like another's lock or scratch file."""
    names = ("vm", "vm.json", "vm.json.lock", "vm.json.new", "v" * 63)
    for name in names:
        assert await granted(tmp_path, 1, f"host-of-{name[:9]}", name)
    assert await granted(tmp_path, 2, "beta")
    for name in names[1:]:
        assert await FileArbiter(tmp_path).record(name) == ClaimRecord(name, 1, f"host-of-{name[:9]}")


@pytest.mark.parametrize("name", ["../vm", "", "vm/other", ".hidden"])
async def test_a_name_that_leads_elsewhere_is_a_bug(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a VM"):
        await FileArbiter(tmp_path).record(name)
    with pytest.raises(ValueError, match="is not the name of a VM"):
        await granted(tmp_path, 1, "alpha", name)
    assert list(tmp_path.iterdir()) == []


async def test_what_was_given_up_and_what_has_ended(tmp_path: Path) -> None:
    arbiter = FileArbiter(tmp_path)
    assert (await arbiter.claim("vm", 1, "alpha", "loss-1")).granted
    answer = await arbiter.claim("vm", 1, "alpha", "loss-2")
    assert (answer.granted, answer.term) == (True, 2)
    assert not await arbiter.end("vm", 2, "beta")
    assert await arbiter.end("vm", 2, "alpha")
    assert await arbiter.record("vm") == ClaimRecord("vm", 2, "alpha", "loss-2", ended=True)
    assert await granted(tmp_path, 3, "beta")


async def test_a_claim_that_was_cut_short_changes_nothing(tmp_path: Path) -> None:
    assert await granted(tmp_path, 1, "alpha")
    (tmp_path / "vm.json.new").write_text('{"vm": "vm", "te')
    assert await FileArbiter(tmp_path).record("vm") == ClaimRecord("vm", 1, "alpha")
    assert await granted(tmp_path, 2, "beta")
    assert await FileArbiter(tmp_path).record("vm") == ClaimRecord("vm", 2, "beta")


async def test_a_place_that_is_none_gives_no_answer_and_is_not_made(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", Path("/dev/null")):
        with pytest.raises(ArbiterUnanswered, match="can't be used"):
            await granted(folder, 1, "alpha")
    assert not (tmp_path / "none").exists()
    (tmp_path / "vm.json").mkdir()
    with pytest.raises(ArbiterUnanswered, match="can't be used"):
        await FileArbiter(tmp_path).record("vm")


async def test_a_record_that_decides_nothing_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ArbiterUnanswered, match="decides nothing"):
        await granted(tmp_path, 2, "alpha")  # the file was deleted: nobody is denied by that
    assert await granted(tmp_path, 1, "alpha", "other")
    (tmp_path / "other.json").rename(tmp_path / "vm.json")
    with pytest.raises(ArbiterUnanswered, match="decides nothing"):
        await granted(tmp_path, 2, "alpha")
    (tmp_path / "vm.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArbiterUnanswered):
        await granted(tmp_path, 2, "alpha")


async def test_a_claim_given_up_is_not_granted_later(tmp_path: Path) -> None:
    """The claimant's thread waits for the lock when its deadline passes; then it gets the lock."""
    arbiter = FileArbiter(tmp_path)
    with (tmp_path / "vm.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await arbiter.claim("vm", 1, "alpha")
    await asyncio.get_running_loop().shutdown_default_executor()  # the thread has come to its end
    assert not (tmp_path / "vm.json").exists()


def test_a_grant_outlives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the content, then the name: both have reached the disk when the answer is a yes."""
    synced: list[str] = []

    def fsync(fd: int) -> None:
        in_place = "in-place" if (tmp_path / "vm.json").exists() else "not-yet"
        synced.append(f"{'folder' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'} {in_place}")

    monkeypatch.setattr(os, "fsync", fsync)
    assert FileArbiter(tmp_path)._claim("vm", 1, "alpha", "", threading.Event()).granted
    assert synced == ["file not-yet", "folder in-place"]


async def test_a_full_disk_gives_no_answer_and_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await granted(tmp_path, 1, "alpha")

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(ArbiterUnanswered, match="No space left"):
            await granted(tmp_path, 2, "beta")
    assert await FileArbiter(tmp_path).record("vm") == ClaimRecord("vm", 1, "alpha")


async def test_a_lock_that_is_never_given_back_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCK_S_MAX", 0.1)
    files = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "vm.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        async with asyncio.timeout(10):
            with pytest.raises(ArbiterUnanswered):
                await granted(tmp_path, 1, "alpha")
    assert await granted(tmp_path, 1, "alpha")
    assert len(os.listdir("/proc/self/fd")) == files


@given(
    st.binary(max_size=100) | st.sampled_from([b"", b"null", b"[]", b"{}", b'{"vm": "vm", "term": "1", "holder": "a"}'])
)
def test_a_damaged_record_is_never_a_yes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ArbiterUnanswered):
        FileArbiter(path.parent)._claim("damaged", 1, "alpha", "", threading.Event())
    assert path.read_bytes() == content


async def test_a_record_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vm.json").write_text(json.dumps({"vm": "v" * 5000, "term": 1, "holder": "a"}))
    with pytest.raises(ArbiterUnanswered, match="which no claim record has"):
        await granted(tmp_path, 2, "alpha")
