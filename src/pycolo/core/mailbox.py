"""The mailbox: a qcow2 image with one internal snapshot, through which device state enters a QEMU that is
already there.

QEMU's `snapshot-load` reads the snapshot's VM state from the image. Ours is laid out so that the VM state is
one contiguous run of bytes at `MAILBOX_DATA_OFFSET`: whoever maps the image writes the next device state
there and sends `snapshot-load`. Guaranteed: the image passes `qemu-img check`, and nothing but those bytes
ever has to change. Source: QEMU, docs/interop/qcow2.txt (version 3, 64 KiB clusters, 16-bit reference
counts).
"""

import struct

MAILBOX_TAG = "ck"
CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS

# One structure per cluster, in this order; the VM state follows.
_HEADER_CLUSTER = 0
_REFCOUNT_TABLE_CLUSTER = 1
_REFCOUNT_BLOCK_CLUSTER = 2
_ACTIVE_L1_CLUSTER = 3
_SNAPSHOT_L1_CLUSTER = 4
_SNAPSHOT_TABLE_CLUSTER = 5
_SNAPSHOT_L2_CLUSTER = 6
_DATA_CLUSTER = 7

MAILBOX_DATA_OFFSET = _DATA_CLUSTER * CLUSTER_BYTES
_L2_ENTRIES = CLUSTER_BYTES // 8
MAILBOX_CAPACITY_BYTES_MAX = _L2_ENTRIES * CLUSTER_BYTES

_DISK_BYTES = CLUSTER_BYTES  # the guest never sees this disk; the format wants one
_REFERENCED_ONCE = 1 << 63  # QCOW_OFLAG_COPIED in L1 and L2 entries
_NO_ICOUNT = 2**64 - 1


def build_mailbox(capacity_bytes: int) -> bytes:
    """A whole mailbox image whose snapshot `MAILBOX_TAG` holds `capacity_bytes` (whole clusters are reserved)
    of zeros.

    ValueError when the capacity is not in 1..`MAILBOX_CAPACITY_BYTES_MAX` (what one L2 table can map: 512
    MiB).
    """
    if not 1 <= capacity_bytes <= MAILBOX_CAPACITY_BYTES_MAX:
        raise ValueError(f"a mailbox holds 1 to {MAILBOX_CAPACITY_BYTES_MAX} bytes, not {capacity_bytes}")
    data_clusters = -(-capacity_bytes // CLUSTER_BYTES)
    clusters = _DATA_CLUSTER + data_clusters
    image = bytearray(clusters * CLUSTER_BYTES)
    _put(image, _HEADER_CLUSTER, _header())
    _put(image, _REFCOUNT_TABLE_CLUSTER, struct.pack(">Q", _offset(_REFCOUNT_BLOCK_CLUSTER)))
    _put(image, _REFCOUNT_BLOCK_CLUSTER, struct.pack(">H", 1) * clusters)
    # VM state lies behind the disk: the disk is all of L1[0], so the state begins with L1[1].
    _put(image, _SNAPSHOT_L1_CLUSTER, struct.pack(">QQ", 0, _offset(_SNAPSHOT_L2_CLUSTER) | _REFERENCED_ONCE))
    _put(image, _SNAPSHOT_TABLE_CLUSTER, _snapshot(capacity_bytes))
    _put(image, _SNAPSHOT_L2_CLUSTER, _l2_table(data_clusters))
    return bytes(image)


def _offset(cluster: int) -> int:
    return cluster * CLUSTER_BYTES


def _put(image: bytearray, cluster: int, content: bytes) -> None:
    start = _offset(cluster)
    image[start : start + len(content)] = content


def _header() -> bytes:
    """The qcow2 header; the disk itself is never written, so its L1 table stays empty."""
    version_2_part = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        3,  # version
        0,  # backing file offset: none
        0,  # backing file name size
        CLUSTER_BITS,
        _DISK_BYTES,
        0,  # encryption: none
        1,  # entries of the active L1 table
        _offset(_ACTIVE_L1_CLUSTER),
        _offset(_REFCOUNT_TABLE_CLUSTER),
        1,  # clusters of the reference count table
        1,  # snapshots
        _offset(_SNAPSHOT_TABLE_CLUSTER),
    )
    version_3_part = struct.pack(
        ">QQQII",
        0,  # incompatible features
        0,  # compatible features
        0,  # autoclear features
        4,  # reference count order: 2**4 bits
        104,  # header length
    )
    end_of_extensions = bytes(8)
    return version_2_part + version_3_part + end_of_extensions


def _snapshot(capacity_bytes: int) -> bytes:
    """The only entry of the snapshot table."""
    extra_data = struct.pack(">QQQ", capacity_bytes, _DISK_BYTES, _NO_ICOUNT)
    identifier = b"1"
    name = MAILBOX_TAG.encode()
    fixed = struct.pack(
        ">QIHHIIQII",
        _offset(_SNAPSHOT_L1_CLUSTER),
        2,  # L1 entries: the disk, the VM state
        len(identifier),
        len(name),
        0,  # taken at, seconds
        0,  # taken at, nanoseconds
        0,  # guest's running time, nanoseconds
        capacity_bytes,  # VM state size, 32 bits; the extra data has it in 64
        len(extra_data),
    )
    return fixed + extra_data + identifier + name


def _l2_table(data_clusters: int) -> bytes:
    entries = (_offset(_DATA_CLUSTER + i) | _REFERENCED_ONCE for i in range(data_clusters))
    return struct.pack(f">{data_clusters}Q", *entries)
