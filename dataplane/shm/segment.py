"""POSIX shared-memory segments: made once per boot, attached by every process.

A segment outlives processes. Its header says what it holds; a process that
finds something else than it expects refuses to touch it (DESIGN section 3).
"""

from __future__ import annotations

import mmap
import os

import posix_ipc

from dataplane.kernel import binding
from dataplane.kernel.binding import Region
from dataplane.shm.enums import RegionKind

SHARED_MEMORY_MODE = 0o600


class ShmError(RuntimeError):
    """A segment is missing, cannot be made, or is not what it should be. The
    message names the segment and what differs."""


class Segment:
    """A mapped segment. Readers map it read-only, so that only its writer can
    write to it."""

    def __init__(self, name: str, memory: mmap.mmap, region: Region) -> None:
        self.name = name
        self.region = region
        self._memory = memory

    @classmethod
    def attach(cls, name: str, kind: int, boot_id: bytes | str, writable: bool) -> Segment:
        """Map an existing segment. Raises ShmError unless magic, layout version,
        kind, row size and boot id are those expected."""
        memory = _map(name, writable)
        region = Region(memory, writable)
        problem = _mismatch(region, len(memory), RegionKind(kind), boot_id_bytes(boot_id))
        if problem:
            region.release()
            memory.close()
            raise ShmError(f"shared memory {name}: {problem}")
        return cls(name, memory, region)

    @property
    def row_count(self) -> int:
        return self.region.row_count

    @property
    def owner_index(self) -> int:
        """Of a flow table: its relay's index."""
        return int(self.region.header.owner_index)

    def close(self) -> None:
        """Unmap. Tables on this segment must not be used afterwards."""
        self.region.release()
        self._memory.close()


def create_segment(
    name: str,
    kind: int,
    row_count: int,
    row_bytes: int,
    boot_id: bytes | str,
    owner_index: int = 0,
) -> Segment:
    """Make a segment of zeroed rows. Raises ShmError when it exists, when
    ``row_bytes`` is not the kernel's, or when /dev/shm has no room."""
    expected = binding.row_bytes(kind)
    if row_bytes != expected:
        raise ShmError(f"shared memory {name}: rows of {row_bytes} bytes, the kernel's {expected}")
    size = binding.HEADER_BYTES + row_count * row_bytes
    _check_room(name, size)
    try:
        shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=SHARED_MEMORY_MODE, size=size)
    except posix_ipc.ExistentialError:
        raise ShmError(f"shared memory {name} exists already") from None
    except OSError as error:
        raise ShmError(f"shared memory {name}: {error.strerror}") from error
    try:
        memory = mmap.mmap(shared.fd, size)
    finally:
        shared.close_fd()
    region = Region(memory, writable=True)
    region.init(kind, row_count, boot_id_bytes(boot_id), owner_index)
    return Segment(name, memory, region)


def unlink(name: str) -> None:
    """Remove the name; mappings stay good until unmapped. A name that is not
    there is no error."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return


def boot_id_bytes(boot_id: bytes | str) -> bytes:
    """16 bytes from bytes or their hex text. It keys the flow tables' hash, so
    it must be random for each boot."""
    value = bytes.fromhex(boot_id.replace("-", "")) if isinstance(boot_id, str) else boot_id
    if len(value) != 16:
        raise ValueError(f"a boot id is 16 bytes, not {len(value)}")
    return value


def _map(name: str, writable: bool) -> mmap.mmap:
    try:
        shared = posix_ipc.SharedMemory(name, read_only=not writable)
    except posix_ipc.ExistentialError:
        raise ShmError(f"shared memory {name} does not exist: is the node running?") from None
    except (posix_ipc.PermissionsError, OSError) as error:
        raise ShmError(f"shared memory {name}: {error}") from error
    try:
        size = os.fstat(shared.fd).st_size
        if size < binding.HEADER_BYTES:
            raise ShmError(f"shared memory {name}: {size} bytes, too short for a header")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(shared.fd, size, access=access)
    finally:
        shared.close_fd()


def _mismatch(region: Region, size: int, kind: RegionKind, boot_id: bytes) -> str:
    """What is wrong with the segment, in words; empty when nothing is."""
    header = region.header
    if region.magic != binding.MAGIC:
        return "no Earshot segment (magic differs)"
    if header.layout_version != binding.LAYOUT_VERSION:
        return f"layout version {header.layout_version}, this is {binding.LAYOUT_VERSION}"
    if header.kind != kind:
        return f"holds table kind {header.kind}, wanted {kind.name.lower()}"
    if region.boot_id != boot_id:
        return f"boot id {region.boot_id.hex()}, wanted {boot_id.hex()}: of another start"
    if header.row_bytes != binding.row_bytes(kind):
        return f"rows of {header.row_bytes} bytes, this build's {binding.row_bytes(kind)}"
    need = binding.HEADER_BYTES + header.row_count * header.row_bytes
    return f"{size} bytes, its rows need {need}" if size < need else ""


def _check_room(name: str, size: int) -> None:
    """Touching a page that a full /dev/shm cannot give is a SIGBUS; better to
    refuse now. Pages are given when first touched, so this is a snapshot."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return
    free = room.f_bavail * room.f_frsize
    if free < size:
        raise ShmError(
            f"shared memory {name} needs {size >> 20} MiB, /dev/shm has {free >> 20} MiB free:"
            " enlarge it (in a container: --shm-size) or lower max_sessions"
        )
