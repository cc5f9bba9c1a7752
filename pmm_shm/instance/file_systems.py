"""Detects file systems that cannot hold a ledger or an instance directory: those of networks and clusters; and for the
directory, those without sockets and permissions, such as exFAT. Also detects files that are mounted alone.

SQLite's `-shm` file and LMDB's map are memory that all processes share. On a file system that several machines mount
they are not shared, and locks may be granted twice. Unknown file systems count as local. Never opens a file in the
directory that is checked.
"""

from __future__ import annotations

import ctypes
import os
import struct

FUSE = 0x65735546
NETWORK: dict[int, str] = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x564C: "NCP",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x19830326: "BeeGFS",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0xBEEFDEAD: "StorNext",
    0x013111A8: "IBRIX",
    0x61636673: "ACFS",
    0x18031977: "WekaFS",
    0xBACBACBC: "VMware shared folders",
    0x786F4256: "VirtualBox shared folders",
    0x7C7C6673: "Parallels shared folders",
}
"""`f_type` of statfs(2) to the name of the file system."""
# fmt: off
NETWORK_FUSE = frozenset({
    "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "cosfs", "curlftpfs", "davfs", "davfs2", "dbxfs", "fuse_dfs",
    "gcsfuse", "geesefs", "glusterfs", "google-drive-ocamlfuse", "goofys", "grpcfuse", "gvfsd-fuse", "hdfs",
    "juicefs", "kio-fuse", "lizardfs", "mfs", "moosefs", "mount-s3", "mountpoint-s3", "nfs", "objectivefs", "obsfs",
    "onedriver", "osxfs", "ossfs", "rclone", "s3fs", "s3ql", "saunafs", "seaweedfs", "smbnetfs", "sshfs",
    "vmhgfs-fuse",
})
# fmt: on
"""Subtypes of FUSE, as they follow `fuse.` in /proc/self/mountinfo."""

PLAIN = {
    "exfat": "exFAT",
    "msdos": "FAT",
    "vfat": "FAT",
    "ntfs": "NTFS",
    "ntfs3": "NTFS",
    "fuseblk": "exFAT or NTFS (fuseblk)",
}
"""File systems that have neither sockets nor permissions, or not as they are usually mounted: kind in
/proc/self/mountinfo to name.
"""

_libc = ctypes.CDLL(None, use_errno=True)
_STATFS_BYTES_MAX = 256
_STATX_BYTES = 256
_STATX = struct.Struct("=8xQ40xQ")
"""Of statx(2): the attributes, and the mask of those that the kernel knows."""
_AT_FDCWD, _ATTR_MOUNT_ROOT = -100, 0x2000
_MOUNT_ESCAPES = str.maketrans({character: f"\\{ord(character):03o}" for character in " \t\n\\"})


def network_file_system(directory: str | os.PathLike[str]) -> str | None:
    """The name of the directory's network file system; None if it is local, or the directory is missing.

    One system call; for FUSE, the table of mounts is read, too.
    """
    number = type_number(os.fspath(directory))
    if number == FUSE:
        return _network_fuse(os.fspath(directory))
    return None if number is None else NETWORK.get(number)


def type_number(directory: str) -> int | None:
    """`f_type` of statfs(2); None if the system does not tell."""
    buffer = (ctypes.c_long * (_STATFS_BYTES_MAX // ctypes.sizeof(ctypes.c_long)))()
    if _libc.statfs(os.fsencode(directory), buffer) != 0:
        return None
    return int(buffer[0]) & 0xFFFFFFFF


def mounts() -> str:
    """This process's table of mounts, see proc_pid_mountinfo(5); "" if there is none."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            return table.read()
    except OSError:
        return ""


def is_mounted_alone(path: str) -> bool:
    """Whether the file itself is a mount point, so that the files beside it are not those beside its origin.

    One system call, which does not open the file.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        is_told = _libc.statx(_AT_FDCWD, os.fsencode(path), 0, 0, buffer) == 0
    except AttributeError:  # A C library without statx.
        is_told = False
    if is_told:
        attributes, known = _STATX.unpack_from(buffer.raw)
        if known & _ATTR_MOUNT_ROOT:
            return bool(attributes & _ATTR_MOUNT_ROOT)
    elif not os.path.exists(path):
        return False
    # A kernel before 5.8, or one that may not be asked.
    escaped = path.translate(_MOUNT_ESCAPES)
    return any(line.split(" ")[4] == escaped for line in mounts().splitlines())


def existing_part(directory: str | os.PathLike[str]) -> str:
    """The directory, or its nearest existing parent: a new directory will be on that file system."""
    path = os.path.abspath(os.fspath(directory))
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def plain_file_system(directory: str | os.PathLike[str]) -> str | None:
    """The name of the directory's file system where it is one of `PLAIN`; otherwise None."""
    kind, _ = _mounted_at(os.fspath(directory))
    return PLAIN.get(kind) or (PLAIN["exfat"] if kind.startswith("fuse.exfat") else None)


def kind_of(directory: str | os.PathLike[str]) -> str:
    """The directory's file system as messages name it."""
    return plain_file_system(directory) or _mounted_at(os.fspath(directory))[0] or "a file system"


def _network_fuse(directory: str) -> str | None:
    kind, source = _mounted_at(directory)
    subtype = kind.partition(".")[2]
    if subtype.lower() in NETWORK_FUSE:
        return subtype
    # Some, such as davfs2, have no subtype, but a URL as the source.
    return source if "://" in source else None


def _mounted_at(directory: str) -> tuple[str, str]:
    """(kind, source) of the mount that holds the directory; empty if it is not known."""
    try:
        device = os.stat(directory).st_dev
    except OSError:
        return "", ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts().splitlines():
        mount, _, details = line.partition(" - ")
        fields, (kind, source) = mount.split(" "), [*details.split(" "), "", ""][:2]
        if len(fields) >= 3 and fields[2] == wanted:
            return kind, source
    return "", ""
