//! What the HTTP connections of one worker share: upstream connections, buffers, random numbers and the date.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;

use super::HttpSettings;
use crate::http::h1::{RequestHead, ResponseHead};
use crate::pool::{Http2Pool, Pool, PoolKey};
use crate::proxy::admission::{Admission, AdmissionSettings, Load, Slot};
use crate::proxy::answer::Problem;
use crate::proxy::{ProxySettings, Random};
use crate::telemetry::Origin;

/// The size of a fresh read buffer: a 16 KiB body with its head fits.
const READ_BUFFER_BYTES: usize = 32 * 1024;
/// Less room than this is not worth a read.
const MIN_READ_BYTES: usize = 2 * 1024;
/// Buffers that grew beyond this are not kept.
const MAX_KEPT_BYTES: usize = 64 * 1024;
/// The length of a UUID as text.
const REQUEST_ID_BYTES: usize = 36;
/// How finely timeouts are spread.
const SPREAD_STEPS: u32 = 1024;
/// Sets of buffers kept for connections that wake up.
const MAX_SPARE: usize = 128;

/// What the HTTP connections of one worker share. Lives on one thread.
#[derive(Debug)]
pub struct HttpWorker {
    captured: Rc<HttpSettings>,
    inbound: Rc<HttpSettings>,
    gateway: Rc<HttpSettings>,
    pool: Pool,
    http2: Http2Pool,
    /// What it is busy with for captured pods, and for whoever comes from elsewhere.
    loads: (Rc<Load>, Rc<Load>),
    admission: Arc<Admission>,
    random: Rc<Random>,
    #[expect(clippy::vec_box, reason = "the boxes themselves go to connections and come back")]
    spare: RefCell<Vec<Box<Buffers>>>,
    date: RefCell<(u64, String)>,
}

/// What a worker shares with the others of its agent.
#[derive(Debug)]
pub struct Share {
    /// How many they are.
    pub workers: usize,
    /// Counts their connections.
    pub admission: Arc<Admission>,
}

impl Default for Share {
    /// A single worker.
    fn default() -> Self {
        Self { workers: 1, admission: Arc::new(Admission::new(&AdmissionSettings::default())) }
    }
}

/// The buffers of one connection while it has a request. An idle connection has none.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Buffers {
    /// The request's head.
    pub head: RequestHead,
    /// The response's head.
    pub response: ResponseHead,
    /// Bytes from the client that are not used up yet.
    pub client_in: BytesMut,
    /// Encoded bytes for the client.
    pub client_out: BytesMut,
    /// Bytes from the upstream that are not used up yet.
    pub upstream_in: BytesMut,
    /// Encoded body bytes for the upstream.
    pub upstream_out: BytesMut,
    /// The encoded request head, kept for another try.
    pub request: BytesMut,
    /// The request's id.
    pub request_id: String,
}

impl Buffers {
    /// Empties everything but what the client has sent.
    pub fn next_request(&mut self) {
        self.client_out.clear();
        self.upstream_in.clear();
        self.upstream_out.clear();
        self.request.clear();
        self.request_id.clear();
    }

    fn is_modest(&self) -> bool {
        [&self.client_in, &self.client_out, &self.upstream_in, &self.upstream_out]
            .iter()
            .all(|buffer| buffer.capacity() <= MAX_KEPT_BYTES)
    }
}

/// A connection's buffers, in a box as they move between the connection and the worker's spare ones with each request.
/// None while the connection is idle.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Held(Option<Box<Buffers>>);

impl Held {
    /// Empty ones, of which nothing is allocated yet.
    pub fn fresh() -> Self {
        Self(Some(Box::default()))
    }

    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl Deref for Held {
    type Target = Buffers;

    fn deref(&self) -> &Buffers {
        self.0.as_ref().expect("only an idle connection has none, and nothing to do with them")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Buffers {
        self.0.as_mut().expect("only an idle connection has none, and nothing to do with them")
    }
}

/// Makes room for another read. Space before what is unread is used again where `buffer` is empty.
pub(in crate::proxy) fn make_room(buffer: &mut BytesMut) {
    let room = buffer.capacity() - buffer.len();
    if buffer.is_empty() || room < MIN_READ_BYTES {
        buffer.reserve(READ_BUFFER_BYTES);
    }
}

/// The size of the next read of a body: doubled while reads fill what they are offered, as larger reads are fewer.
#[derive(Debug)]
pub(in crate::proxy) struct ReadSize<'a> {
    offer: usize,
    most: usize,
    load: &'a Load,
}

impl<'a> ReadSize<'a> {
    /// The usual size, which may grow to `most` while there is memory for it.
    pub fn new(most: usize, load: &'a Load) -> Self {
        Self { offer: READ_BUFFER_BYTES, most, load }
    }

    /// Makes room for the next read.
    pub fn make_room(&self, buffer: &mut BytesMut) {
        if buffer.is_empty() { buffer.reserve(self.offer) } else { make_room(buffer) }
    }

    /// Learns from a read that gave `bytes`.
    pub fn learn(&mut self, bytes: usize) {
        let larger = (self.offer * 2).min(self.most);
        if bytes >= self.offer && larger > self.offer && self.load.take(larger - self.offer) {
            self.offer = larger;
        }
    }

    /// Gives memory back once the body is over.
    pub fn settle(&self, buffer: &mut BytesMut) {
        if self.offer > MAX_KEPT_BYTES && buffer.is_empty() {
            *buffer = BytesMut::new();
        }
    }
}

impl Drop for ReadSize<'_> {
    fn drop(&mut self) {
        self.load.give_back(self.offer - READ_BUFFER_BYTES);
    }
}

/// The text of a UUID, without what `write!` brings along.
fn uuid_text(uuid: u128) -> [u8; REQUEST_ID_BYTES] {
    let mut text = [b'-'; REQUEST_ID_BYTES];
    let mut bytes = uuid.to_be_bytes().into_iter();
    for group in [0..8, 9..13, 14..18, 19..23, 24..36] {
        for (pair, byte) in text[group].chunks_exact_mut(2).zip(&mut bytes) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 0xf)];
        }
    }
    text
}

impl HttpWorker {
    /// A worker with its share of what the agent takes on.
    pub fn new(settings: ProxySettings, share: Share, random: Rc<Random>) -> Self {
        Self {
            inbound: Rc::new(settings.captured.clone().for_strangers(&settings.gateway)),
            captured: Rc::new(settings.captured),
            gateway: Rc::new(settings.gateway),
            pool: Pool::new(settings.pool),
            http2: Http2Pool::new(settings.pool),
            loads: Load::new(&settings.admission, share.workers),
            admission: share.admission,
            random,
            spare: RefCell::new(Vec::new()),
            date: RefCell::new((0, String::new())),
        }
    }

    /// The worker's idle upstream connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The worker's HTTP/2 connections to upstreams.
    pub fn http2(&self) -> &Http2Pool {
        &self.http2
    }

    /// Counts the agent's connections.
    pub(in crate::proxy) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// How many connections one source may have.
    pub(in crate::proxy) fn per_source(&self, origin: &Origin) -> Option<u32> {
        self.of(origin).connections_per_source
    }

    /// Takes a request on.
    pub(in crate::proxy) fn admit(&self, origin: &Origin) -> Result<Slot, Problem> {
        self.load(origin).admit().map_err(Problem::Overload)
    }

    /// What the worker is busy with for connections of one kind.
    pub(in crate::proxy) fn load(&self, origin: &Origin) -> &Rc<Load> {
        match origin {
            Origin::Outbound => &self.loads.0,
            Origin::Inbound | Origin::Tunnel(_) | Origin::Gateway(_) => &self.loads.1,
        }
    }

    /// Closes the idle upstream connections to these endpoints, by uid. Those in use end with what uses them, or by the
    /// pool's idle timeout.
    pub fn forget(&self, gone: &HashSet<Arc<str>>) {
        if gone.is_empty() || (self.pool.is_empty() && self.http2.is_empty()) {
            return;
        }
        let keep = |key: &PoolKey| key.uid.as_ref().is_none_or(|uid| !gone.contains(uid));
        self.pool.retain(keep);
        self.http2.retain(keep);
    }

    pub(in crate::proxy) fn settings(&self, origin: &Origin) -> Rc<HttpSettings> {
        Rc::clone(self.of(origin))
    }

    fn of(&self, origin: &Origin) -> &Rc<HttpSettings> {
        match origin {
            Origin::Outbound => &self.captured,
            Origin::Inbound | Origin::Tunnel(_) => &self.inbound,
            Origin::Gateway(_) => &self.gateway,
        }
    }

    /// A timeout made longer by up to an eighth: thousands of connections that came at once shall not be cut at once, as
    /// everybody else would wait for that.
    pub(in crate::proxy) fn spread(&self, timeout: Duration) -> Duration {
        let steps = u32::try_from(self.random.next() % u64::from(SPREAD_STEPS)).unwrap_or_default();
        timeout + timeout / 8 / SPREAD_STEPS * steps
    }

    /// Writes a random UUID (version 4).
    pub(in crate::proxy) fn write_request_id(&self, out: &mut String) {
        let random = u128::from(self.random.next()) << 64 | u128::from(self.random.next());
        let version_and_variant = 4 << 76 | 0b10 << 62;
        let text = uuid_text(random & !(0xf << 76 | 0b11 << 62) | version_and_variant);
        out.push_str(std::str::from_utf8(&text).expect("hexadecimal digits and dashes"));
    }

    /// Hands over `now` as an HTTP date; formatted once a second.
    pub(in crate::proxy) fn with_date(&self, now: SystemTime, write: impl FnOnce(&str)) {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            *date = (second, httpdate::fmt_http_date(now));
        }
        write(&date.1);
    }

    pub(in crate::proxy) fn take_buffers(&self) -> Held {
        Held(Some(self.spare.borrow_mut().pop().unwrap_or_default()))
    }

    pub(in crate::proxy) fn keep_buffers(&self, held: Held) {
        let Some(mut buffers) = held.0 else { return };
        let mut spare = self.spare.borrow_mut();
        if spare.len() < MAX_SPARE && buffers.is_modest() {
            buffers.next_request();
            buffers.client_in.clear();
            spare.push(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_random_uuids() {
        let worker = HttpWorker::new(ProxySettings::default(), Share::default(), Rc::new(Random::new(1)));
        let ids: Vec<String> = std::iter::repeat_with(|| {
            let mut id = String::new();
            worker.write_request_id(&mut id);
            id
        })
        .take(100)
        .collect();
        for id in &ids {
            let lengths: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
            assert_eq!(id.as_bytes()[14], b'4', "{id}");
            assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
        }
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn timeouts_are_spread_and_never_shorter() {
        let worker = HttpWorker::new(ProxySettings::default(), Share::default(), Rc::new(Random::new(1)));
        let timeout = Duration::from_secs(8);
        let spread: std::collections::HashSet<Duration> =
            std::iter::repeat_with(|| worker.spread(timeout)).take(100).collect();
        assert!(spread.len() > 50, "{spread:?}");
        assert!(spread.iter().all(|spread| (timeout..Duration::from_secs(9)).contains(spread)), "{spread:?}");
    }

    #[test]
    fn dates_follow_the_clock() {
        let worker = HttpWorker::new(ProxySettings::default(), Share::default(), Rc::new(Random::new(1)));
        let check = |second, expected: &str| {
            worker.with_date(UNIX_EPOCH + std::time::Duration::from_secs(second), |date| {
                assert_eq!(date, expected);
            });
        };
        check(0, "Thu, 01 Jan 1970 00:00:00 GMT");
        check(1, "Thu, 01 Jan 1970 00:00:01 GMT");
        check(1, "Thu, 01 Jan 1970 00:00:01 GMT");
    }
}
