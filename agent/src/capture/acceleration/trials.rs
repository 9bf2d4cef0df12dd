//! What applications do with sockets, done with real ones: each trial is one thing that some kernel gets wrong for sockets in
//! a map. They run in a process and a network namespace of their own, over loopback, with the programs on its cgroup.

mod pair;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockRef, Socket, Type};

pub use pair::Fault;
use pair::{Outcome, PATIENCE, Pair, errno, expect, io, pattern, read_end, read_expected, send};

/// More than any socket buffer holds at once.
const LARGE: usize = 1_500_000;
/// A receiver that does not read must have stopped its sender by then.
const UNREAD_MAX: usize = 64 << 20;
/// How long the other end waits before it says something to one that waits in `recv`.
const PAUSE: Duration = Duration::from_millis(100);

/// One thing that is tried.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// What `check` and the log call it.
    pub name: &'static str,
    /// Does it.
    pub run: fn() -> Outcome,
}

/// All trials.
pub const TRIALS: [Trial; 14] = [
    Trial { name: "early writes", run: early_writes },
    Trial { name: "level-triggered epoll", run: level_epoll },
    Trial { name: "edge-triggered epoll", run: edge_epoll },
    Trial { name: "FIONREAD", run: fionread },
    Trial { name: "MSG_PEEK", run: peek },
    Trial { name: "half-close", run: half_close },
    Trial { name: "RST", run: reset },
    Trial { name: "large writes", run: large_writes },
    Trial { name: "sendfile", run: send_file },
    Trial { name: "splice to a socket", run: splice_to },
    Trial { name: "out-of-order close", run: closes },
    Trial { name: SPLICE_FROM, run: splice_from },
    Trial { name: BACKPRESSURE, run: backpressure },
    Trial { name: WAITING_RECV, run: waiting_recv },
];

/// Failed by kernels up to 6.18: `splice` from a socket looks for bytes in TCP's queue alone, and finds none.
pub const SPLICE_FROM: &str = "splice from a socket";
/// Failed by kernels up to 6.18: what is handed over is limited by the node's memory for TCP, not by the receiver's buffer.
pub const BACKPRESSURE: &str = "backpressure";
/// Failed by kernels up to 6.18: who waits in `recv` is woken by what brings no bytes, and told EAGAIN.
pub const WAITING_RECV: &str = "waiting in recv";

/// The dialling end sends before the other one is in: the handshake's last acknowledgement is held back until there is data
/// to go with it.
fn early_writes() -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("listening"))?;
    let address = listener.local_addr().map_err(io("listening"))?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(io("making a socket"))?;
    socket.set_tcp_quickack(false).map_err(io("holding acknowledgements back"))?;
    socket.connect(&address.into()).map_err(io("connecting"))?;
    let dialling = TcpStream::from(OwnedFd::from(socket));
    let bytes = pattern(64 * 1024);
    for piece in bytes.chunks(1000) {
        send(&dialling, piece)?;
    }
    let (answering, _) = listener.accept().map_err(io("accepting"))?;
    let pair = Pair { dialling, answering }.patient()?;
    send(&pair.answering, &bytes)?;
    read_expected(&pair.answering, "what was sent before the other end was in", &bytes)?;
    read_expected(&pair.dialling, "the answer", &bytes)?;
    expect("FIONREAD at the end", 0, unread(&pair.dialling)?)
}

fn wait_readable(epoll: &Epoll, what: &'static str) -> Outcome {
    let mut events = [EpollEvent::empty()];
    let timeout = EpollTimeout::try_from(PATIENCE).unwrap_or(EpollTimeout::ZERO);
    let seen = epoll.wait(&mut events, timeout).map_err(errno(what))?;
    expect(what, 1, seen)
}

fn watch(socket: &TcpStream, flags: EpollFlags) -> Result<Epoll, Fault> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(errno("making an epoll"))?;
    epoll.add(socket, EpollEvent::new(flags, 0)).map_err(errno("adding to an epoll"))?;
    Ok(epoll)
}

fn level_epoll() -> Outcome {
    let pair = Pair::new()?;
    for (from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        let epoll = watch(to, EpollFlags::EPOLLIN)?;
        let bytes = pattern(1000);
        send(from, &bytes)?;
        wait_readable(&epoll, "an event for the first bytes")?;
        read_expected(to, "the first half", &bytes[..500])?;
        wait_readable(&epoll, "an event for the rest")?;
        read_expected(to, "the rest", &bytes[500..])?;
        let none = epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).map_err(errno("polling"))?;
        expect("events with nothing to read", 0, none)?;
    }
    Ok(())
}

fn edge_epoll() -> Outcome {
    let pair = Pair::new()?;
    for (from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        to.set_nonblocking(true).map_err(io("setting non-blocking"))?;
        let epoll = watch(to, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)?;
        for _ in 0..50 {
            let bytes = pattern(3000);
            send(from, &bytes)?;
            let mut seen = Vec::new();
            while seen.len() < bytes.len() {
                wait_readable(&epoll, "an event for new bytes")?;
                drain(to, &mut seen)?;
            }
            if seen != bytes {
                return Err(Fault::Bytes("what came with events"));
            }
        }
        to.set_nonblocking(false).map_err(io("setting blocking"))?;
    }
    Ok(())
}

/// Reads until there is nothing more for now.
fn drain(mut from: &TcpStream, into: &mut Vec<u8>) -> Outcome {
    let mut piece = [0; 700];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Err(Fault::Number { what: "bytes before the end", expected: 1, seen: 0 }),
            Ok(len) => into.extend(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(io("reading all there is")(error)),
        }
    }
}

#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
fn unread(socket: &TcpStream) -> Result<usize, Fault> {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one integer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result).map_err(errno("asking how much is unread"))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn fionread() -> Outcome {
    let pair = Pair::new()?;
    for (from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        let bytes = pattern(1000);
        send(from, &bytes)?;
        wait_readable(&watch(to, EpollFlags::EPOLLIN)?, "an event for the bytes")?;
        expect("FIONREAD with all unread", 1000, unread(to)?)?;
        read_expected(to, "the first part", &bytes[..400])?;
        expect("FIONREAD with a part unread", 600, unread(to)?)?;
        read_expected(to, "the rest", &bytes[400..])?;
        expect("FIONREAD with all read", 0, unread(to)?)?;
    }
    Ok(())
}

fn peek() -> Outcome {
    let pair = Pair::new()?;
    for (from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        let bytes = pattern(1000);
        send(from, &bytes)?;
        let mut seen = [0; 600];
        for _ in 0..2 {
            let len = recv(to.as_raw_fd(), &mut seen, MsgFlags::MSG_PEEK).map_err(errno("peeking"))?;
            expect("bytes that a peek shows", seen.len(), len)?;
            if seen[..] != bytes[..seen.len()] {
                return Err(Fault::Bytes("what a peek shows"));
            }
        }
        read_expected(to, "what was peeked at", &bytes)?;
    }
    Ok(())
}

fn half_close() -> Outcome {
    for turned in [false, true] {
        let pair = Pair::new()?;
        let (first, second) =
            if turned { (&pair.answering, &pair.dialling) } else { (&pair.dialling, &pair.answering) };
        let bytes = pattern(100_000);
        send(first, &bytes)?;
        first.shutdown(Shutdown::Write).map_err(io("shutting one way down"))?;
        read_expected(second, "what came before the end", &bytes)?;
        read_end(second, "after the end")?;
        send(second, &bytes)?;
        second.shutdown(Shutdown::Write).map_err(io("shutting the other way down"))?;
        read_expected(first, "the answer after the end", &bytes)?;
        read_end(first, "after the answer's end")?;
    }
    Ok(())
}

fn reset() -> Outcome {
    for turned in [false, true] {
        let pair = Pair::new()?;
        let (gone, mut left) =
            if turned { (pair.answering, pair.dialling) } else { (pair.dialling, pair.answering) };
        send(&left, b"a joined connection")?;
        read_expected(&gone, "before the reset", b"a joined connection")?;
        SockRef::from(&gone).set_linger(Some(Duration::ZERO)).map_err(io("asking for a reset"))?;
        drop(gone);
        match left.read(&mut [0; 10]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(io("reading after a reset")(error)),
            Ok(len) => return Err(Fault::Number { what: "bytes after a reset", expected: 0, seen: len }),
        }
    }
    Ok(())
}

/// One end has shut down its sending side and waits in `recv` for the other's answer; later for what ends the connection.
fn waiting_recv() -> Outcome {
    for turned in [false, true] {
        let pair = Pair::new()?;
        let (asking, telling) =
            if turned { (pair.answering, pair.dialling) } else { (pair.dialling, pair.answering) };
        send(&asking, b"a question")?;
        read_expected(&telling, "a question", b"a question")?;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                asking.shutdown(Shutdown::Write).map_err(io("shutting one way down"))?;
                read_expected(&asking, "waiting for the answer after one's own end", b"an answer")?;
                match (&asking).read(&mut [0; 10]) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                    Err(error) => Err(io("waiting for a reset")(error)),
                    Ok(seen) => Err(Fault::Number { what: "bytes before a reset", expected: 0, seen }),
                }
            });
            std::thread::sleep(PAUSE);
            let said = send(&telling, b"an answer");
            std::thread::sleep(PAUSE);
            let asked =
                SockRef::from(&telling).set_linger(Some(Duration::ZERO)).map_err(io("asking for a reset"));
            drop(telling);
            let waited = waiting.join().unwrap_or(Err(Fault::Bytes("a thread that waits")));
            waited.and(said).and(asked)
        })?;
    }
    Ok(())
}

/// Runs `work` beside a thread that writes.
fn while_sending(from: &TcpStream, bytes: &[u8], work: impl FnOnce() -> Outcome) -> Outcome {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(from, bytes));
        let worked = work();
        let sent = sender.join().unwrap_or(Err(Fault::Bytes("a thread that writes")));
        worked.and(sent)
    })
}

fn large_writes() -> Outcome {
    let pair = Pair::new()?;
    let bytes = pattern(LARGE);
    for (from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        while_sending(from, &bytes, || read_expected(to, "a large write", &bytes))?;
    }
    // Both ways at once.
    while_sending(&pair.dialling, &bytes, || {
        while_sending(&pair.answering, &bytes, || {
            read_expected(&pair.dialling, "one of two large writes", &bytes)?;
            read_expected(&pair.answering, "the other of two large writes", &bytes)
        })
    })
}

fn send_file() -> Outcome {
    let pair = Pair::new()?;
    let file = std::fs::File::open("/proc/self/exe").map_err(io("opening a file"))?;
    let mut expected = vec![0; LARGE];
    (&file).read_exact(&mut expected).map_err(io("reading a file"))?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut offset = 0;
            while offset < i64::try_from(LARGE).unwrap_or(0) {
                let left = LARGE - usize::try_from(offset).unwrap_or(LARGE);
                sendfile(&pair.dialling, &file, Some(&mut offset), left).map_err(errno("sendfile"))?;
            }
            Ok(())
        });
        let read = read_expected(&pair.answering, "what sendfile sent", &expected);
        read.and(sender.join().unwrap_or(Err(Fault::Bytes("a thread that sends a file"))))
    })
}

/// From a pipe to a socket.
fn splice_to() -> Outcome {
    let bytes = pattern(32 * 1024);
    let pair = Pair::new()?;
    let (pipe_out, pipe_in) = nix::unistd::pipe().map_err(errno("making a pipe"))?;
    nix::unistd::write(&pipe_in, &bytes).map_err(errno("filling a pipe"))?;
    let mut left = bytes.len();
    while left > 0 {
        left -= splice(&pipe_out, None, &pair.dialling, None, left, SpliceFFlags::empty())
            .map_err(errno("splice"))?;
    }
    read_expected(&pair.answering, "what was spliced", &bytes)
}

/// From a socket to a pipe, as proxies move bytes.
fn splice_from() -> Outcome {
    let bytes = pattern(32 * 1024);
    let Pair { dialling, answering } = Pair::new()?;
    send(&dialling, &bytes)?;
    let (pipe_out, pipe_in) = nix::unistd::pipe().map_err(errno("making a pipe"))?;
    let mut seen: Vec<u8> = Vec::new();
    let mut piece = vec![0; bytes.len()];
    while seen.len() < bytes.len() {
        wait_readable(&watch(&answering, EpollFlags::EPOLLIN)?, "an event before a splice")?;
        let left = bytes.len() - seen.len();
        let len = splice(&answering, None, &pipe_in, None, left, SpliceFFlags::SPLICE_F_NONBLOCK)
            .map_err(errno("splice"))?;
        let read = nix::unistd::read(&pipe_out, &mut piece[..len]).map_err(errno("reading a pipe"))?;
        if read == 0 {
            return Err(Fault::Number { what: "spliced bytes", expected: bytes.len(), seen: seen.len() });
        }
        seen.extend(&piece[..read]);
    }
    if seen == bytes { Ok(()) } else { Err(Fault::Bytes("what was spliced")) }
}

/// A receiver that does not read stops its sender, and loses nothing.
fn backpressure() -> Outcome {
    let pair = Pair::new()?;
    for (mut from, to) in [(&pair.dialling, &pair.answering), (&pair.answering, &pair.dialling)] {
        from.set_nonblocking(true).map_err(io("setting non-blocking"))?;
        let bytes = pattern(64 * 1024);
        let mut sent = 0;
        loop {
            match from.write(&bytes[sent % bytes.len()..]) {
                Ok(len) => sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(io("writing without a reader")(error)),
            }
            if sent > UNREAD_MAX {
                return Err(Fault::Number { what: "unread bytes", expected: UNREAD_MAX, seen: sent });
            }
        }
        from.set_nonblocking(false).map_err(io("setting blocking"))?;
        let mut read = 0;
        while read < sent {
            let len = (bytes.len() - read % bytes.len()).min(sent - read);
            let start = read % bytes.len();
            read_expected(to, "what was held back", &bytes[start..start + len])?;
            read += len;
        }
    }
    Ok(())
}

/// Ends close in every order, with bytes unread or not, and the other one is told.
fn closes() -> Outcome {
    for (turned, unread) in [(false, false), (false, true), (true, false), (true, true)] {
        let pair = Pair::new()?;
        let (first, mut second) =
            if turned { (pair.answering, pair.dialling) } else { (pair.dialling, pair.answering) };
        send(&first, b"from the one that closes first")?;
        if unread {
            send(&second, b"never read")?;
        }
        drop(first);
        read_expected(&second, "what a closed end had sent", b"from the one that closes first")?;
        match second.read(&mut [0; 10]) {
            Ok(0) => {}
            // TCP resets a connection whose bytes nobody will read.
            Err(error) if unread && error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(io("reading from a closed end")(error)),
            Ok(len) => return Err(Fault::Number { what: "bytes after a close", expected: 0, seen: len }),
        }
        // The first write after the other end is gone is answered with a reset, the next one fails.
        let mut refused = false;
        for _ in 0..100 {
            refused = second.write(b"to nobody").is_err();
            if refused {
                break;
            }
            std::thread::yield_now();
        }
        expect("writes to a closed end that succeed for ever", 0, usize::from(!refused))?;
    }
    Ok(())
}
