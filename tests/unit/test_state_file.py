"""The arbiter's file: one winner per term, whatever two processes do at once; no answer is never a yes."""

import fcntl
import json
import os
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
from pycolo.edge.state_file import ArbiterUnanswered, FileArbiter

TERMS = 200
CLAIMANT = """
import sys, time
from pathlib import Path
from pycolo.edge.state_file import FileArbiter
arbiter, host, terms, start_s = FileArbiter(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
time.sleep(max(0.0, start_s - time.monotonic()))
for term in range(1, terms + 1):
    while ((record := arbiter.record()) and record.term or 0) < term - 1:
        pass
    print(term, int(arbiter.claim("vm", term, host).granted))
"""


def test_two_processes_at_once_exactly_one_wins_each_term(tmp_path: Path) -> None:
    start_s = str(time.monotonic() + 1.0)
    path = str(tmp_path / "arbiter.json")
    claimants = [
        subprocess.Popen([sys.executable, "-c", CLAIMANT, path, host, str(TERMS), start_s], stdout=subprocess.PIPE)
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


def test_asking_again_gives_the_same_answer(tmp_path: Path) -> None:
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    assert arbiter.record() is None
    for _ in range(2):
        assert arbiter.claim("vm", 1, "alpha").granted
        assert not arbiter.claim("vm", 1, "beta").granted
    assert FileArbiter(tmp_path / "arbiter.json").record() == ClaimRecord("vm", 1, "alpha")
    assert json.loads((tmp_path / "arbiter.json").read_text()) == {"vm": "vm", "term": 1, "holder": "alpha"}


def test_a_claim_that_was_cut_short_changes_nothing(tmp_path: Path) -> None:
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    assert arbiter.claim("vm", 1, "alpha").granted
    (tmp_path / "arbiter.json.new").write_text('{"vm": "vm", "te')
    assert arbiter.record() == ClaimRecord("vm", 1, "alpha")
    assert arbiter.claim("vm", 2, "beta").granted
    assert arbiter.record() == ClaimRecord("vm", 2, "beta")


def test_a_place_that_is_none_gives_no_answer(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "arbiter.json", Path("/dev/null/x")):
        with pytest.raises(ArbiterUnanswered, match="can't be used"):
            FileArbiter(path).claim("vm", 1, "alpha")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArbiterUnanswered, match="can't be used"):
        FileArbiter(tmp_path / "folder").record()


def test_a_record_that_decides_nothing_is_no_answer(tmp_path: Path) -> None:
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    with pytest.raises(ArbiterUnanswered, match="decides nothing"):
        arbiter.claim("vm", 2, "alpha")  # the file was deleted: nobody is denied by that
    assert arbiter.claim("other", 1, "alpha").granted
    with pytest.raises(ArbiterUnanswered, match="decides nothing"):
        arbiter.claim("vm", 2, "alpha")
    (tmp_path / "arbiter.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArbiterUnanswered):
        arbiter.claim("vm", 2, "alpha")


def test_a_claim_given_up_is_not_granted_later(tmp_path: Path) -> None:
    arbiter, given_up = FileArbiter(tmp_path / "arbiter.json"), threading.Event()
    given_up.set()
    with pytest.raises(ArbiterUnanswered, match="too late"):
        arbiter.claim("vm", 1, "alpha", given_up)
    assert arbiter.record() is None


def test_a_full_disk_gives_no_answer_and_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    assert arbiter.claim("vm", 1, "alpha").granted

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(ArbiterUnanswered, match="No space left"):
            arbiter.claim("vm", 2, "beta")
    assert arbiter.record() == ClaimRecord("vm", 1, "alpha")


def test_a_lock_that_is_never_given_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "LOCK_S_MAX", 0.1)
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    files = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "arbiter.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        begun = time.monotonic()
        with pytest.raises(ArbiterUnanswered):
            arbiter.claim("vm", 1, "alpha")
        assert time.monotonic() - begun < 1.0
    assert arbiter.claim("vm", 1, "alpha").granted
    assert len(os.listdir("/proc/self/fd")) == files


@given(
    st.binary(max_size=100) | st.sampled_from([b"", b"null", b"[]", b"{}", b'{"vm": "vm", "term": "1", "holder": "a"}'])
)
def test_a_damaged_record_is_never_a_yes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ArbiterUnanswered):
        FileArbiter(path).claim("vm", 1, "alpha")
    assert path.read_bytes() == content


def test_a_record_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"vm": "v" * 5000, "term": 1, "holder": "a"}))
    with pytest.raises(ArbiterUnanswered, match="which no claim record has"):
        FileArbiter(path).claim("vm", 2, "alpha")
