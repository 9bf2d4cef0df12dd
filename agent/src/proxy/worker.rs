//! A worker: one thread, one single-threaded runtime, its own listeners, pool and random numbers.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use super::admission::{Crowded, Source, Whose};
use super::http::{HttpWorker, Share};
use super::tls::Begun;
use super::{
    Context, Downstream, OpenConnections, ProxySettings, Random, SharedBridges, captured, crowded, http,
    passthrough, tls, tunnels,
};
use crate::compile::RoutingTable;
use crate::hbone::Mesh;
use crate::limit::counters::Counters;
use crate::net::{Connector, Stream, keepalive};
use crate::telemetry::{Origin, Recorder};

/// A pause after `accept` fails for want of file descriptors or memory; accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker is made from; crosses to its thread.
pub struct WorkerSettings {
    /// Its number, from zero.
    pub index: usize,
    /// The table in force.
    pub tables: Arc<ArcSwap<RoutingTable>>,
    /// True once the agent drains.
    pub drain: watch::Receiver<bool>,
    /// Limits and timeouts.
    pub proxy: ProxySettings,
    /// Its share of what the agent takes on.
    pub share: Share,
    /// Counts the worker's open client connections.
    pub open: Arc<OpenConnections>,
    /// Makes the worker's connector, on its thread.
    pub connector: Box<dyn FnOnce() -> Rc<dyn Connector> + Send>,
    /// Makes the worker's recorder, on its thread.
    pub recorder: Box<dyn FnOnce() -> Rc<dyn Recorder> + Send>,
    /// Lets bytes of opaque connections go past the agent.
    pub bridges: SharedBridges,
    /// What limits of the cluster are counted by; `None`: this agent is alone.
    pub counters: Option<Arc<dyn Counters>>,
    /// Seeds its random numbers.
    pub seed: u64,
}

/// What a worker is told while it runs.
#[derive(Debug)]
pub enum Command {
    /// Serve captured connections from this listener.
    Capture(StdListener, Captured),
    /// Serve tunnels that come in by this listener.
    Tunnels(StdListener, Arc<Mesh>),
    /// Serve a Gateway's listener until the receiver's sender is gone; records call it what the receiver says when a
    /// connection comes.
    Gateway(StdListener, watch::Receiver<Arc<str>>),
    /// A new table is in force: let go of the endpoints that it no longer has, by uid.
    Table(Arc<HashSet<Arc<str>>>),
}

impl Command {
    /// The listener that it is about, for the log.
    fn listener(&self) -> Option<String> {
        match self {
            Self::Capture(listener, _) | Self::Tunnels(listener, _) | Self::Gateway(listener, _) => {
                listener.local_addr().ok().map(|address| address.to_string())
            }
            Self::Table(_) => None,
        }
    }
}

/// A running worker. It ends with the process: connections go on without a handle.
pub struct WorkerHandle {
    /// Gives it commands.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Its thread.
    pub thread: JoinHandle<io::Result<()>>,
}

/// Starts a worker's thread.
pub fn start_worker(settings: WorkerSettings) -> io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let name = format!("worker-{}", settings.index);
    let thread = std::thread::Builder::new().name(name).spawn(move || run(settings, receiver))?;
    Ok(WorkerHandle { commands, thread })
}

fn run(settings: WorkerSettings, mut commands: mpsc::UnboundedReceiver<Command>) -> io::Result<()> {
    let options = tokio::runtime::LocalOptions::default();
    // A `LocalSet` would queue every wake-up a second time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(options)?;
    let context = Context::new(settings);
    runtime.block_on(async move {
        while let Some(command) = commands.recv().await {
            let listener = command.listener();
            if let Err(error) = obey(&context, command) {
                tracing::error!(listener, %error, "a worker could not take a listener");
            }
        }
        // Connections go on after the last command.
        std::future::pending().await
    })
}

fn obey(context: &Context, command: Command) -> io::Result<()> {
    match command {
        Command::Capture(listener, direction) => {
            let address = listener.local_addr()?;
            let serve =
                move |context, io, peer, origin| captured::serve(context, (io, peer), address, origin);
            accept_on(context, listener, Entrance::Captured(direction), serve)
        }
        Command::Tunnels(listener, mesh) => {
            let address = listener.local_addr()?;
            let serve =
                move |context, io, peer, _| tunnels::serve(context, (io, peer), address, Arc::clone(&mesh));
            accept_on(context, listener, Entrance::Captured(Captured::Inbound), serve)
        }
        Command::Table(gone) => {
            context.http.forget(&gone);
            context.table_changed.notify_waiters();
            Ok(())
        }
        Command::Gateway(listener, name) => accept_on(context, listener, Entrance::Gateway(name), gateway),
    }
}

/// Which way captured connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captured {
    /// From a pod to what it dials.
    Outbound,
    /// To a pod, whoever dials it.
    Inbound,
}

/// Where a listener's connections come from.
enum Entrance {
    Captured(Captured),
    /// A Gateway's listener: its name, until the sender is gone.
    Gateway(watch::Receiver<Arc<str>>),
}

impl Entrance {
    /// The origin of a connection that comes now.
    fn origin(&self) -> Origin {
        match self {
            Self::Captured(Captured::Outbound) => Origin::Outbound,
            Self::Captured(Captured::Inbound) => Origin::Inbound,
            Self::Gateway(name) => Origin::Gateway(Arc::clone(&name.borrow())),
        }
    }

    /// Waits until the listener shall close: a Gateway's is removed, or the agent drains. A capture listener never does;
    /// the kernel stops handing it connections instead, and those under way are still accepted.
    fn closed(&self, mut drain: watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
        let name = if let Self::Gateway(name) = self { Some(name.clone()) } else { None };
        async move {
            let Some(mut name) = name else { return std::future::pending().await };
            let removed = async { while name.changed().await.is_ok() {} };
            tokio::select! {
                () = removed => {}
                _ = drain.wait_for(|draining| *draining) => {}
            }
        }
    }
}

async fn gateway(context: Context, io: TcpStream, peer: SocketAddr, origin: Origin) {
    let Ok(original_destination) = io.local_addr() else { return };
    let shown = context.open.show(peer, original_destination, (&origin, SystemTime::now()));
    let (io, tls) = match tls::wanted(&context, &origin, original_destination) {
        None => (Stream::Plain(io), None),
        Some(port) => {
            let ends = (peer, original_destination);
            match Box::pin(tls::accept(&context, io, ends, &origin, &port)).await {
                Some(Begun::Ended(io, told)) => (io, Some(told)),
                Some(Begun::PassedOn(io, read, server_name)) => {
                    let (early, tls) = (None, None);
                    let downstream =
                        Downstream { io, read, peer, original_destination, origin, early, shown, tls };
                    let served = passthrough::serve(&context, downstream, server_name.as_deref());
                    return Box::pin(served).await;
                }
                None => return,
            }
        }
    };
    let read = BytesMut::new();
    let server_name = tls.as_ref().filter(|told| told.is_opaque).map(|told| told.server_name.clone());
    let downstream = Downstream { io, read, peer, original_destination, origin, early: None, shown, tls };
    match server_name {
        Some(name) => Box::pin(passthrough::serve(&context, downstream, name.as_deref())).await,
        None => http::serve(context, downstream).await,
    }
}

fn accept_on<Serve, Served>(
    context: &Context,
    listener: StdListener,
    entrance: Entrance,
    serve: Serve,
) -> io::Result<()>
where
    Serve: Fn(Context, TcpStream, SocketAddr, Origin) -> Served + 'static,
    Served: Future<Output = ()> + 'static,
{
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    prepare(&listener);
    let listener = TcpListener::from_std(listener)?;
    let context = context.clone();
    let serve = Rc::new(serve);
    spawn_local(async move {
        let (listener, captured) = (listener, matches!(entrance, Entrance::Captured(_)));
        let _watched = captured.then(|| context.open.watch(&listener));
        let mut end = std::pin::pin!(entrance.closed(context.drain.clone()));
        let mut ending = false;
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                // What is in the queue already is still served.
                () = std::future::ready(()), if ending => break,
                () = &mut end, if !ending => {
                    ending = true;
                    continue;
                }
            };
            match accepted {
                Ok((io, peer)) => {
                    let counted = match Counted::enter(&context, entrance.origin(), peer) {
                        Ok(counted) => counted,
                        Err((origin, why)) => {
                            crowded::refuse(&context, &io, peer, (origin, why));
                            continue;
                        }
                    };
                    let serve = Rc::clone(&serve);
                    // Called within, as a future that is handed over would be held twice.
                    spawn_local(async move {
                        serve(counted.context.clone(), io, peer, counted.origin.clone()).await;
                    });
                }
                // The client is gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(listener = %address, %error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Socket options of connections, which Linux gives them from their listener: set once, they cost no system call for
/// each. They only improve matters: failing to set one is no reason to refuse clients.
fn prepare(listener: &StdListener) {
    let socket = socket2::SockRef::from(listener);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
}

/// Counts a client connection for as long as it lives.
struct Counted {
    context: Context,
    origin: Origin,
    source: Source,
}

impl Counted {
    /// Counts it, unless there are too many.
    fn enter(context: &Context, origin: Origin, peer: SocketAddr) -> Result<Self, (Origin, Crowded)> {
        let source = Source::from(peer.ip());
        let per_source = context.http.per_source(&origin);
        match context.http.admission().enter(Whose::from(&origin), source, per_source) {
            Ok(()) => {}
            Err(why) => {
                // Pods are never kept out: the guard stands where strangers come in.
                if why == Crowded::Source && matches!(origin, Origin::Gateway(_)) {
                    context.http.admission().refusals().refused(peer.ip(), Instant::now());
                }
                return Err((origin, why));
            }
        }
        context.open.enter();
        context.recorder.downstream(&origin, true);
        Ok(Self { context: context.clone(), origin, source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.context.recorder.downstream(&self.origin, false);
        self.context.open.leave();
        let http = &self.context.http;
        http.admission().leave(Whose::from(&self.origin), self.source, http.per_source(&self.origin));
    }
}

impl Context {
    fn new(settings: WorkerSettings) -> Self {
        let random = Rc::new(Random::new(settings.seed));
        let http = HttpWorker::new(settings.proxy, settings.share, Rc::clone(&random));
        Self {
            tables: settings.tables,
            table_changed: Rc::default(),
            connector: (settings.connector)(),
            recorder: (settings.recorder)(),
            drain: settings.drain,
            open: settings.open,
            bridges: settings.bridges,
            counters: settings.counters,
            http: Rc::new(http),
            random,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that an async function of four parameters returns.
    fn size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        for (what, bytes, most) in
            [("gateway", size(gateway), 2304), ("captured", size(captured::serve), 2824)]
        {
            assert!(bytes <= most, "the future of a {what} connection has {bytes} bytes, not {most}");
        }
    }

    #[test]
    fn connections_get_the_listeners_options() {
        let listener = StdListener::bind("127.0.0.1:0").expect("loopback");
        prepare(&listener);
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (accepted, _) = listener.accept().expect("it is in the queue");
        let socket = socket2::SockRef::from(&accepted);
        assert!(accepted.nodelay().expect("a socket") && socket.keepalive().expect("a socket"));
        assert_eq!(socket.tcp_keepalive_retries().expect("a socket"), 9);
        drop(client);
    }
}
