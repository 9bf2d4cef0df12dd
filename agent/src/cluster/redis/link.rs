//! Keeps a store connected: dials until it gets through, tells what went wrong once, and tells of every new connection.
//!
//! ```text
//! Connecting --dialled--> Up --lost--> Connecting
//!     |  ^
//!  failed |dialled: Up
//!     v  |
//!    Down --failed--> Down
//! ```

use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::{PushInfo, PushKind, Value};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::RedisOptions;
use super::dial::{BULK_LIMIT, Connection, OnPush, Stage, dial};
use super::failure::Failure;
use super::keys::Keys;
use super::scripts::{Lane, Script};
use super::target::Target;
use crate::cluster::store::EVENTS_KEPT;
use crate::cluster::{Event, StoreError};

/// The shortest time before a connection is tried again.
const WAIT_MIN: Duration = Duration::from_millis(50);
/// The first time before a connection is tried again is at most this: all nodes lose a server in the same moment, and
/// shall not come back in one. Two hundred come at fewer than 400 a second.
const WAIT_FIRST: Duration = Duration::from_millis(600);
/// No time is longer.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A connection that is there, or is being made.
#[derive(Clone)]
enum State {
    Connecting,
    Up(Connection, u64),
    Down(StoreError),
}

/// The connection of a store. Dropping it ends it.
pub(super) struct Link {
    inner: Arc<Inner>,
    keeper: JoinHandle<()>,
}

struct Inner {
    options: RedisOptions,
    target: Target,
    keys: Keys,
    state: watch::Sender<State>,
    /// What is waited for while there is no connection.
    stage: Stage,
    events: broadcast::Sender<Event>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Link {
    /// Begins to connect, within a tokio runtime.
    pub fn new(options: RedisOptions, target: Target, keys: Keys) -> Self {
        let (state, events) = (watch::Sender::new(State::Connecting), broadcast::channel(EVENTS_KEPT).0);
        let inner = Arc::new(Inner { options, target, keys, state, stage: Stage::default(), events });
        let keeper = tokio::spawn(keep(Arc::clone(&inner)));
        Self { inner, keeper }
    }

    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Runs a script: a prompt one within the limit, another one for as long as the server answers otherwise.
    pub async fn run(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<Value, StoreError> {
        let limit = self.inner.options.limit;
        let mut used = None;
        let whole = if script.lane == Lane::Prompt { limit } else { limit + BULK_LIMIT };
        let asked = within(whole, async {
            let (mut connection, number) = timeout(limit, self.connection()).await.unwrap_or_else(|_| {
                let stage = &self.inner.stage;
                Err(StoreError::Unreachable(format!("no answer within {limit:?}, while {stage}")).into())
            })?;
            used = Some(number);
            let probe = self.probe(connection.clone(), number);
            let answer = connection.run(script, keys, arguments);
            tokio::select! {
                answer = answer => answer.map_err(Failure::from),
                failure = probe, if script.lane == Lane::Bulk => Err(failure),
            }
        });
        let failure = match asked.await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        // A master that takes no writes is none any more: whoever knows the new one has to be asked.
        let demoted = self.inner.target.is_watched()
            && matches!(&failure.error, StoreError::ReadOnly(why) if why.contains("READONLY"));
        if let Some(number) = used.filter(|_| failure.fatal || demoted) {
            self.inner.lose(number);
        }
        Err(failure.error)
    }

    /// Ends when the connection is of no use any more: given up, or without an answer to what is answered at once.
    async fn probe(&self, mut connection: Connection, number: u64) -> Failure {
        let limit = self.inner.options.limit;
        let mut state = self.inner.state.subscribe();
        let lost = state.wait_for(|state| !matches!(state, State::Up(_, current) if *current == number));
        let silent = async {
            loop {
                sleep(limit).await;
                let probe = async { connection.probe(&self.inner.keys.leader).await.map_err(Failure::from) };
                // What else it says has nothing to do with the call.
                if let Err(failure) = within(limit, probe).await
                    && failure.fatal
                {
                    return failure;
                }
            }
        };
        tokio::select! {
            _ = lost => StoreError::Unreachable("the connection is lost".to_owned()).into(),
            failure = silent => failure,
        }
    }

    /// The connection as soon as there is one; at once an error if the last try to get one failed.
    async fn connection(&self) -> Result<(Connection, u64), Failure> {
        let mut state = self.inner.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        match settled.as_deref() {
            Ok(State::Up(connection, number)) => Ok((connection.clone(), *number)),
            Ok(State::Down(error)) => Err(error.clone().into()),
            // The sender lives as long as this does.
            Ok(State::Connecting) | Err(_) => Err(StoreError::Unreachable("it is closed".to_owned()).into()),
        }
    }
}

impl Inner {
    /// A connection is of no use any more, if it is still this one.
    fn lose(&self, number: u64) {
        self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(_, current) if *current == number);
            if current {
                *state = State::Connecting;
            }
            current
        });
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// What is done in time, or an error.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unreachable(format!("no answer within {limit:?}")).into()),
    }
}

async fn keep(inner: Arc<Inner>) {
    let mut told = None;
    for number in 0.. {
        let mut most = WAIT_FIRST;
        let (connection, gone) = loop {
            let (on_push, gone) = listener(Arc::downgrade(&inner), number);
            match dialled(&inner, on_push).await {
                Ok(connection) => break (connection, gone),
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(%error, "no connection to Redis");
                    }
                    told = Some(error.clone());
                    inner.state.send_replace(State::Down(error));
                }
            }
            sleep(spread(most)).await;
            most = (most * 2).min(WAIT_MAX);
        };
        tracing::info!("connected to Redis");
        told = None;
        inner.state.send_replace(State::Up(connection, number));
        // It may have broken before it was in place, when nobody could lose it yet.
        if *gone.borrow() {
            inner.lose(number);
        }
        inner.tell(Event::Connected);
        let mut state = inner.state.subscribe();
        // The sender lives as long as this does.
        let _ = state.wait_for(|state| !matches!(state, State::Up(..))).await;
        tracing::warn!("the connection to Redis is lost");
        sleep(spread(WAIT_FIRST)).await;
    }
}

async fn dialled(inner: &Inner, on_push: OnPush) -> Result<Connection, StoreError> {
    let dialled = dial(&inner.options, &inner.target, &inner.keys, on_push, &inner.stage);
    // Some hops, each with the limit: Sentinels, their master, what it says, the subscription.
    let limit = inner.options.limit * 4;
    match timeout(limit, dialled).await {
        Ok(dialled) => dialled.map_err(|failure| match failure.error {
            StoreError::Unreachable(why) => StoreError::Unreachable(format!("{why}, while {}", inner.stage)),
            error => error,
        }),
        Err(_) => {
            Err(StoreError::Unreachable(format!("no connection within {limit:?}, while {}", inner.stage)))
        }
    }
}

/// What listens to a connection, and whether that connection is gone.
fn listener(inner: Weak<Inner>, number: u64) -> (OnPush, watch::Receiver<bool>) {
    let (gone, is_gone) = watch::channel(false);
    let on_push = move |info: PushInfo| {
        let Some(inner) = inner.upgrade() else { return };
        match info.kind {
            PushKind::Message => {
                if let Some(event) = info.data.last().and_then(named) {
                    inner.tell(event);
                }
            }
            PushKind::Disconnection => {
                gone.send_replace(true);
                inner.lose(number);
            }
            _ => {}
        }
    };
    (Arc::new(on_push), is_gone)
}

/// The event of a message on our channel.
fn named(payload: &Value) -> Option<Event> {
    match payload {
        Value::BulkString(bytes) => match bytes.as_slice() {
            b"leader" => Some(Event::Leader),
            b"table" => Some(Event::Table),
            b"documents" => Some(Event::Documents),
            b"nodes" => Some(Event::Nodes),
            _ => None,
        },
        _ => None,
    }
}

/// A time between the shortest and this one.
fn spread(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness nothing is spread, which is still right.
    let _ = SystemRandom::new().fill(&mut bytes);
    let share = f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX);
    WAIT_MIN + most.saturating_sub(WAIT_MIN).mul_f64(share)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::Level;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Counts warnings.
    struct Warnings(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Warnings {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if *event.metadata().level() == Level::WARN {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[tokio::test]
    async fn an_error_that_lasts_is_told_once() {
        let warnings = Arc::new(AtomicUsize::new(0));
        let layer = Warnings(Arc::clone(&warnings));
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("redis://{}", free.local_addr().expect("an address"));
        drop(free);
        let options = RedisOptions::new(&url, "x");
        let (target, keys) = (Target::parse(&url).expect("a URL"), Keys::new("x").expect("a name"));
        let link = Link::new(options, target, keys);
        let mut state = link.inner.state.subscribe();
        for _ in 0..3 {
            state.changed().await.expect("the link is there");
            assert!(matches!(*state.borrow(), State::Down(StoreError::Unreachable(_))), "it found a server");
        }
        assert_eq!(warnings.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn nodes_come_back_one_after_the_other() {
        let times: Vec<_> = (0..1000).map(|_| spread(WAIT_FIRST)).collect();
        assert!(times.iter().all(|time| (WAIT_MIN..=WAIT_FIRST).contains(time)), "{times:?}");
        let quarter = WAIT_FIRST.saturating_sub(WAIT_MIN) / 4;
        for number in 0..4 {
            let from = WAIT_MIN + quarter * number;
            let to = from + quarter;
            let within = times.iter().filter(|time| (from..=to).contains(*time)).count();
            assert!((150..350).contains(&within), "{within} of 1000 between {from:?} and {to:?}");
        }
    }
}
