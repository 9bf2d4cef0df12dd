//! The only unsafe reads: a packet's bytes, a source's buckets, the socket that its ends lead to, and the listener that takes it.

pub mod bucket;
pub mod xdp;

use core::ffi::c_void;
use core::mem::{size_of, zeroed};

use agent_common::capture::{Owner, WORKER_TRIES};
use agent_common::packet::{Family, Frame, Segment};
use agent_common::policy::PolicyAddress;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_fib_lookup, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::helpers::generated::{
    bpf_get_hash_recalc, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release,
    bpf_skb_load_bytes, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::TcContext;

use crate::maps::{LISTENERS, ROUTE_QUESTION};

/// Socket states of the kernel's `enum`.
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// Address families of the kernel's.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Answers of the kernel's look-up of routes: `BPF_FIB_LKUP_RET_SUCCESS`, `_NO_NEIGH`, `_FRAG_NEEDED`. With all three the
/// interface is that of the route (since 5.12).
const FIB_FOUND: i64 = 0;
const FIB_NO_NEIGHBOUR: i64 = 7;
const FIB_TOO_LONG: i64 = 8;

/// A packet at a TC hook.
pub struct Packet<'a>(pub &'a TcContext);

impl Frame for Packet<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes at most N bytes to `bytes` and refuses offsets outside the packet.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.0.as_ptr().cast::<c_void>(),
                offset,
                bytes.as_mut_ptr().cast::<c_void>(),
                N as u32,
            )
        };
        if result == 0 { Some(bytes) } else { None }
    }
}

impl Packet<'_> {
    /// Whether the device or the stack took a VLAN tag off the frame.
    #[inline(always)]
    pub fn tagged(&self) -> bool {
        // SAFETY: a field of the context that the verifier checks.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    /// The network protocol, where no Ethernet header says it.
    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        // SAFETY: a field of the context that the verifier checks; 16 bits in network byte order.
        u16::from_be(unsafe { (*self.0.skb.skb).protocol } as u16)
    }

    /// Whether a socket of this very host sent it, rather than it being forwarded: it has a socket, and came by no interface
    /// (a frame that is switched past the IP stack keeps its sender's socket).
    #[inline(always)]
    pub fn sent_here(&self) -> bool {
        // SAFETY: fields of the context that the verifier checks.
        unsafe { (*self.0.skb.skb).ingress_ifindex == 0 && !(*self.0.skb.skb).__bindgen_anon_2.sk.is_null() }
    }

    /// The packet's mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: a field of the context that the verifier checks.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// The index of the interface whose hook sees it.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: a field of the context that the verifier checks.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// Whether it came by the interface that leads to its source, as the node's routes have it. Fail-closed: what no route or
    /// more than a plain one says did not.
    #[inline(always)]
    pub fn came_from(&self, source: &PolicyAddress, destination: &PolicyAddress) -> bool {
        // SAFETY: a field of the context that the verifier checks.
        let interface = unsafe { (*self.0.skb.skb).ingress_ifindex };
        let Some(place) = ROUTE_QUESTION.get_ptr_mut(0) else { return false };
        let ask = place.cast::<bpf_fib_lookup>();
        // SAFETY: this CPU's own slot, as long as the question and aligned for more; programs at TC hooks are not interrupted by
        // one another.
        let found = unsafe {
            place.write([0; 8]);
            (*ask).ifindex = interface;
            // The way back: from the receiver to the sender.
            if source.family == 4 {
                (*ask).family = AF_INET;
                (*ask).__bindgen_anon_4.ipv4_dst = word(&source.address);
                (*ask).__bindgen_anon_3.ipv4_src = word(&destination.address);
            } else {
                (*ask).family = AF_INET6;
                (*ask).__bindgen_anon_4.ipv6_dst = words(&source.address);
                (*ask).__bindgen_anon_3.ipv6_src = words(&destination.address);
            }
            let len = size_of::<bpf_fib_lookup>() as i32;
            helpers::bpf_fib_lookup(self.0.as_ptr().cast::<c_void>(), ask, len, 0)
        };
        // Whether the neighbour has been heard of, or the packet would fit, says nothing about the way.
        let routed = found == FIB_FOUND || found == FIB_NO_NEIGHBOUR || found == FIB_TOO_LONG;
        // SAFETY: as above.
        interface != 0 && routed && unsafe { (*ask).ifindex } == interface
    }

    /// Whose connection the segment belongs to.
    #[inline(always)]
    pub fn owner(&self, segment: &Segment) -> Owner {
        let (tuple, len) = tuple(segment);
        // SAFETY: `tuple` outlives the call and `len` is its family's part of it.
        let socket = unsafe {
            bpf_skc_lookup_tcp(
                self.0.as_ptr().cast::<c_void>(),
                (&raw const tuple).cast_mut(),
                len,
                BPF_F_CURRENT_NETNS as u64,
                0,
            )
        };
        if socket.is_null() {
            return Owner::None;
        }
        // SAFETY: not null, and released on the one path that leads out.
        unsafe {
            let owner = match (*socket).state {
                // The lookup also finds wildcard listeners of the host that have nothing to do with this destination.
                TCP_LISTEN => Owner::None,
                TCP_NEW_SYN_RECV => Owner::Request,
                TCP_TIME_WAIT => Owner::TimeWait,
                _ => full_owner(socket),
            };
            bpf_sk_release(socket.cast::<c_void>());
            owner
        }
    }

    /// Gives the packet to a live worker's listener, of those that begin at an entry of the socket map.
    #[inline(always)]
    pub fn assign(&self, segment: &Segment, workers: u32, first: u32) -> Assigned {
        if workers == 0 {
            return Assigned::NoListener;
        }
        // SAFETY: the helper only reads the context.
        let hash = unsafe { bpf_get_hash_recalc(self.0.skb.skb) };
        let family = match segment.family {
            Family::V4 => 0,
            Family::V6 => 1,
        };
        let mut assigned = Assigned::NoListener;
        for attempt in 0..WORKER_TRIES {
            if attempt >= workers {
                break;
            }
            let index = first + (hash.wrapping_add(attempt) % workers) * 2 + family;
            match self.assign_to(index) {
                Some(true) => return Assigned::Yes,
                Some(false) => assigned = Assigned::Refused,
                None => {}
            }
        }
        assigned
    }

    /// `None` where the slot is empty; else whether the kernel took it.
    #[inline(always)]
    fn assign_to(&self, index: u32) -> Option<bool> {
        // SAFETY: the map is a static that the loader relocates; the socket is released on the only path.
        unsafe {
            let listener = bpf_map_lookup_elem(
                (&raw const LISTENERS).cast_mut().cast::<c_void>(),
                (&raw const index).cast::<c_void>(),
            );
            if listener.is_null() {
                return None;
            }
            let result = bpf_sk_assign(self.0.as_ptr().cast::<c_void>(), listener, 0);
            bpf_sk_release(listener);
            Some(result == 0)
        }
    }
}

/// Whether a listener got the packet.
pub enum Assigned {
    /// It did.
    Yes,
    /// No worker has a live listener.
    NoListener,
    /// The kernel refused.
    Refused,
}

#[inline(always)]
unsafe fn full_owner(socket: *mut bpf_sock) -> Owner {
    // SAFETY: the caller holds a reference; the helper gives a view of the same socket and takes no other.
    unsafe {
        let full = bpf_sk_fullsock(socket);
        if full.is_null() { Owner::None } else { Owner::Full { mark: (*full).mark } }
    }
}

#[inline(always)]
fn tuple(segment: &Segment) -> (bpf_sock_tuple, u32) {
    // SAFETY: integers only.
    let mut tuple: bpf_sock_tuple = unsafe { zeroed() };
    // SAFETY: writes into the union's member whose length is returned with it.
    unsafe {
        match segment.family {
            Family::V4 => {
                let ends = &mut tuple.__bindgen_anon_1.ipv4;
                let [s, d] = [&segment.source, &segment.destination]
                    .map(|a| u32::from_ne_bytes([a[0], a[1], a[2], a[3]]));
                ends.saddr = s;
                ends.daddr = d;
                ends.sport = u16::from_ne_bytes(segment.source_port);
                ends.dport = u16::from_ne_bytes(segment.destination_port);
                let len = size_of_val(ends) as u32;
                (tuple, len)
            }
            Family::V6 => {
                let ends = &mut tuple.__bindgen_anon_1.ipv6;
                ends.saddr = words(&segment.source);
                ends.daddr = words(&segment.destination);
                ends.sport = u16::from_ne_bytes(segment.source_port);
                ends.dport = u16::from_ne_bytes(segment.destination_port);
                let len = size_of_val(ends) as u32;
                (tuple, len)
            }
        }
    }
}

/// An IPv4 address as the kernel keeps it.
#[inline(always)]
fn word(a: &[u8; 16]) -> u32 {
    u32::from_ne_bytes([a[0], a[1], a[2], a[3]])
}

/// An address as the kernel keeps it: four words in network byte order.
#[inline(always)]
fn words(a: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

const _: () = assert!(size_of::<bpf_sock_tuple>() == 36);
const _: () = assert!(size_of::<bpf_fib_lookup>() == 64);
