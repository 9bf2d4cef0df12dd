//! Calls of the kernel that have no safe wrapper: links of any kind by their pins, all keys of a map at once, the namespace's
//! cookie, and the end of what programs do with what they have read.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

/// `BPF_OBJ_PIN`, `BPF_OBJ_GET`, `BPF_PROG_QUERY`, `BPF_MAP_LOOKUP_BATCH` and `BPF_LINK_UPDATE` of the kernel's `enum bpf_cmd`.
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const PROG_QUERY: i64 = 16;
const MAP_LOOKUP_BATCH: i64 = 24;
const LINK_UPDATE: i64 = 29;

/// `MEMBARRIER_CMD_GLOBAL` of the kernel's `enum membarrier_cmd`.
const MEMBARRIER_GLOBAL: i64 = 1;

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` read.
#[repr(C)]
struct PinnedObject {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_UPDATE` reads.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` reads, and where it writes how many programs there are.
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
}

/// The part of `union bpf_attr` that `BPF_MAP_LOOKUP_BATCH` reads, and where it writes how many entries there are.
#[repr(C)]
struct Batch {
    begin_after: u64,
    ended_at: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Entries of a map that are read at once; no chain of a hash map is as long.
const BATCH: usize = 4096;

/// Programs of one hook that are told at the most; the kernel itself allows 64.
const PROGRAMS_MAX: usize = 64;

/// Opens what is pinned at a path.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinnedObject { path: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(OBJ_GET, &mut attributes)?;
    #[expect(unsafe_code, reason = "a descriptor that the kernel has just made")]
    // SAFETY: the call gives a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}

/// Pins a map or link at a path where nothing is yet.
pub fn pin(held: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let bpf_fd = u32::try_from(held.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attributes = PinnedObject { path: path.as_ptr() as u64, bpf_fd, file_flags: 0 };
    bpf(OBJ_PIN, &mut attributes).map(drop)
}

/// Puts another program in a link's place; no packet sees neither or both. The link's kind must be the program's.
pub fn replace_program(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut attributes = LinkUpdate {
        link_fd: number(link.as_raw_fd())?,
        new_program_fd: number(program.as_raw_fd())?,
        flags: 0,
        old_program_fd: 0,
    };
    bpf(LINK_UPDATE, &mut attributes).map(drop)
}

/// The programs that are attached to a cgroup itself, by their numbers.
pub fn attached_to(cgroup: &File, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let target_fd = u32::try_from(cgroup.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attributes = ProgQuery {
        target_fd,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        program_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(PROGRAMS_MAX).expect("64 fits"),
        padding: 0,
    };
    bpf(PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).unwrap_or(0).min(PROGRAMS_MAX);
    Ok(ids[..count].to_vec())
}

/// The cookie of the calling thread's network namespace: unlike an inode, never used again until the machine boots.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("eight bytes fit");
    #[expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Waits, some milliseconds as a rule, until every program run that is under way now has ended (an RCU grace period). Kernels
/// with CPUs that are never interrupted (`nohz_full`) refuse it.
pub fn wait_for_program_runs() -> io::Result<()> {
    #[expect(unsafe_code, reason = "the system call has no safe wrapper")]
    // SAFETY: the call reads and writes no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Shows every key of a hash map with keys and values of these types, some thousand in one call. What comes and goes meanwhile
/// may be shown or not.
pub fn each_key<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut show: impl FnMut(&K)) -> io::Result<()> {
    let (mut keys, mut values) = (Vec::<K>::with_capacity(BATCH), Vec::<V>::with_capacity(BATCH));
    let map_fd = u32::try_from(map.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (mut before, mut after) = (0u32, 0u32);
    let mut is_first = true;
    loop {
        let mut attributes = Batch {
            begin_after: if is_first { 0 } else { &raw mut before as u64 },
            ended_at: &raw mut after as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(BATCH).expect("4096 fits"),
            map_fd,
            elem_flags: 0,
            flags: 0,
        };
        let read = bpf(MAP_LOOKUP_BATCH, &mut attributes);
        let over = match read {
            Ok(_) => false,
            // The last ones.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = usize::try_from(attributes.count).unwrap_or(0).min(BATCH);
        #[expect(unsafe_code, reason = "the kernel has written the keys")]
        // SAFETY: the kernel has written `count` keys, which is no more than there is room for, and every pattern of bits is one.
        unsafe {
            keys.set_len(count);
        }
        keys.iter().for_each(&mut show);
        keys.clear();
        if over {
            return Ok(());
        }
        (before, is_first) = (after, false);
    }
}

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<RawFd> {
    #[expect(unsafe_code, reason = "the system call has no safe wrapper")]
    // SAFETY: the kernel reads `size_of::<T>()` bytes, all of them set, takes what is beyond as zero, and writes only into
    // them and into the buffer that they name, which the caller holds.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_not_pinned_cannot_be_opened() {
        assert!(pinned(Path::new("/nonexistent/pin")).is_err());
        assert!(pinned(Path::new("a\0b")).is_err(), "a path with a zero byte");
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(pin(&file, Path::new("/nonexistent/pin")).is_err(), "a file is no map");
    }

    #[test]
    fn what_is_no_map_has_no_keys() {
        let file = tempfile::tempfile().unwrap();
        assert!(each_key::<u32, u32>(file.as_fd(), |_| panic!("a key")).is_err());
    }

    #[test]
    fn program_runs_end() {
        // Where the kernel refuses, it says so in one way only.
        let refused = wait_for_program_runs().err().and_then(|error| error.raw_os_error());
        assert!(matches!(refused, None | Some(libc::EINVAL | libc::ENOSYS)), "{refused:?}");
    }

    #[test]
    fn a_namespace_has_one_cookie() {
        assert_eq!(netns_cookie().unwrap(), netns_cookie().unwrap());
        assert_ne!(netns_cookie().unwrap(), 0);
    }
}
