//! Calls of the kernel that have no safe wrapper: links of any kind by their pins, and the namespace's cookie.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of the kernel's `enum bpf_cmd`.
const OBJ_GET: i64 = 7;
const LINK_UPDATE: i64 = 29;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjGet {
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

/// Opens what is pinned at a path.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjGet { path: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(OBJ_GET, &attributes)?;
    #[expect(unsafe_code, reason = "a descriptor that the kernel has just made")]
    // SAFETY: the call gives a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}

/// Puts another program in a link's place; no packet sees neither or both. The link's kind must be the program's.
pub fn replace_program(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let attributes = LinkUpdate {
        link_fd: number(link.as_raw_fd())?,
        new_program_fd: number(program.as_raw_fd())?,
        flags: 0,
        old_program_fd: 0,
    };
    bpf(LINK_UPDATE, &attributes).map(drop)
}

/// The cookie of the caller's network namespace: unlike an inode, never used again until the machine boots.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
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

fn bpf<T>(command: i64, attributes: &T) -> io::Result<RawFd> {
    #[expect(unsafe_code, reason = "the system call has no safe wrapper")]
    // SAFETY: the kernel reads `size_of::<T>()` bytes, all of them set, and takes what is beyond as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_cannot_be_opened() {
        assert!(pinned(Path::new("/nonexistent/pin")).is_err());
        assert!(pinned(Path::new("a\0b")).is_err(), "a path with a zero byte");
    }

    #[test]
    fn a_namespace_has_one_cookie() {
        assert_eq!(netns_cookie().unwrap(), netns_cookie().unwrap());
        assert_ne!(netns_cookie().unwrap(), 0);
    }
}
