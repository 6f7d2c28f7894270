"""The mailbox image is right by QEMU's own judgement, and its data is where we say."""

import json
import subprocess
from pathlib import Path

import pytest

from pycolo.core.mailbox import (
    CLUSTER_BYTES,
    MAILBOX_CAPACITY_BYTES_MAX,
    MAILBOX_DATA_OFFSET,
    MAILBOX_TAG,
    build_mailbox,
)


def qemu_img(*arguments: str) -> dict[str, object]:
    answer = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=30, check=True)
    parsed = json.loads(answer.stdout)
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("capacity_bytes", [1, CLUSTER_BYTES, CLUSTER_BYTES + 1, 16 << 20])
def test_qemu_img_finds_nothing_wrong(tmp_path: Path, capacity_bytes: int) -> None:
    image = tmp_path / "mailbox"
    image.write_bytes(build_mailbox(capacity_bytes))

    report = qemu_img("check", "-f", "qcow2", "--output=json", str(image))

    assert report["check-errors"] == 0
    assert not {"leaks", "corruptions"} & report.keys()


def test_the_check_would_find_a_lost_reference(tmp_path: Path) -> None:
    broken = bytearray(build_mailbox(CLUSTER_BYTES))
    broken[2 * CLUSTER_BYTES : 2 * CLUSTER_BYTES + 2] = bytes(2)  # the first reference count
    image = tmp_path / "mailbox"
    image.write_bytes(broken)

    answer = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(image)], capture_output=True, timeout=30)

    assert answer.returncode != 0


def test_one_snapshot_with_the_whole_capacity(tmp_path: Path) -> None:
    image = tmp_path / "mailbox"
    image.write_bytes(build_mailbox(3 << 20))

    snapshots = qemu_img("info", "-f", "qcow2", "--output=json", str(image))["snapshots"]

    assert isinstance(snapshots, list)
    assert [(entry["name"], entry["vm-state-size"]) for entry in snapshots] == [(MAILBOX_TAG, 3 << 20)]


def test_data_is_the_end_of_the_image() -> None:
    image = build_mailbox(2 * CLUSTER_BYTES)

    assert len(image) == MAILBOX_DATA_OFFSET + 2 * CLUSTER_BYTES
    assert not any(image[MAILBOX_DATA_OFFSET:])


@pytest.mark.parametrize("capacity_bytes", [0, -1, MAILBOX_CAPACITY_BYTES_MAX + 1])
def test_capacities_that_cannot_be(capacity_bytes: int) -> None:
    with pytest.raises(ValueError, match="mailbox holds"):
        build_mailbox(capacity_bytes)
