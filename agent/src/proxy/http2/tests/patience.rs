//! Slow peers: who is waited for, who is cut, and what becomes of the others.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, client, server};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use super::peers::{Client, request, rest, upstream, upstream_with, whole};
use crate::model::{AppProtocol, HostPattern};
use crate::proxy::http::tests::harness::{Setup, rule, run, upstream as http1_upstream};

/// An upstream whose answers are so long.
async fn sends(bytes: usize) -> SocketAddr {
    upstream(move |mut call| async move {
        let mut answer = call.answer(&[], false);
        answer.send_data(vec![b'x'; bytes].into(), true).expect("open");
        let _ = poll_fn(|cx| answer.poll_reset(cx)).await;
    })
    .await
}

fn gateway(upstream: SocketAddr) -> Setup {
    Setup::gateway(HostPattern::Any, rule(), &[upstream]).speaking(AppProtocol::Http2)
}

/// Lets other tasks run until `count` stands still.
async fn settled(count: &Cell<usize>) {
    let mut before = 0;
    while count.get() != before || before == 0 {
        before = count.get();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_grpc_client_may_take_its_time() {
    run(async {
        const BYTES: usize = 1024 * 1024;
        let mut setup = gateway(sends(BYTES).await);
        setup.gateway.body_timeout = Some(Duration::from_millis(20));
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let (response, _send) = client.start(request("POST", "/a.B/C", &grpc), true).await;
        let body = response.await.expect("a head").into_body();
        // An answer that is no call's, and was asked for later, is cut meanwhile.
        let (witness, _open) = client.start(request("GET", "/", &[]), true).await;
        let _untaken = witness.await.expect("a head").into_body();
        assert_eq!(proxy.records(1).await[0].details, "body_timeout");
        assert_eq!(rest(body).await.expect("a whole answer").0.len(), BYTES);
    });
}

#[test]
fn a_reader_that_trickles_is_no_silent_upstream() {
    run(async {
        const BYTES: usize = 16 * 1024;
        let mut setup = gateway(sends(BYTES).await);
        setup.gateway.upstream_timeout = Some(Duration::from_millis(60));
        let proxy = setup.start().await;
        let mut builder = client::Builder::new();
        builder.initial_window_size(256);
        let client = Client::with(&proxy, &builder).await;
        let (response, _) = client.start(request("GET", "/", &[]), true).await;
        let mut body = response.await.expect("a head").into_body();
        let mut read = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("no cut");
            read += data.len();
            // The reader's pace is what is tested; nothing is waited for.
            tokio::time::sleep(Duration::from_millis(4)).await;
            body.flow_control().release_capacity(data.len()).expect("open");
        }
        assert_eq!(read, BYTES);
    });
}

#[test]
fn uploads_that_nobody_takes_leave_room_for_others() {
    run(async {
        let mut builder = server::Builder::new();
        builder.initial_connection_window_size(16 * 1024 * 1024);
        let upstream = upstream_with(builder, |mut call| async move {
            if call.request.uri().path() == "/stuck" {
                return std::future::pending().await;
            }
            let (body, _) = rest(call.request.body_mut()).await.expect("a body");
            call.answer(&[], false).send_data(body.into(), true).expect("open");
        })
        .await;
        let mut setup = gateway(upstream);
        setup.gateway.body_timeout = Some(Duration::from_millis(500));
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let (passed, mut held) = (Rc::new(Cell::new(0)), Vec::new());
        for _ in 0..40 {
            let (response, mut send) = client.start(request("POST", "/stuck", &[]), false).await;
            held.push(response);
            let passed = Rc::clone(&passed);
            tokio::task::spawn_local(async move {
                loop {
                    send.reserve_capacity(16 * 1024);
                    let Some(Ok(granted)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                    passed.set(passed.get() + granted);
                    if send.send_data(vec![b'x'; granted].into(), false).is_err() {
                        return;
                    }
                }
            });
        }
        settled(&passed).await;
        let (response, mut send) = client.start(request("POST", "/", &[]), false).await;
        send.send_data(Bytes::from_static(b"healthy"), true).expect("open");
        assert_eq!(whole(response).await.body, "healthy");
    });
}

/// An address where connecting comes to no end: its queue is full.
async fn busy() -> (SocketAddr, impl Sized) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback");
    let listener = socket.listen(0).expect("listens");
    let address = listener.local_addr().expect("bound");
    let queued = TcpStream::connect(address).await.expect("the first in the queue");
    (address, (listener, queued))
}

#[test]
fn a_cancel_while_the_upstream_is_dialled_ends_the_request() {
    run(async {
        for protocol in [AppProtocol::Http, AppProtocol::Http2] {
            let (address, _queue) = busy().await;
            let proxy = Setup::service(&[address]).speaking(protocol).start().await;
            let client = Client::connect(&proxy).await;
            let (_response, mut send) = client.start(request("POST", "/", &[]), false).await;
            // Streams are begun in their order.
            assert_eq!(client.get(request("TRACE", "/", &[])).await.status, 405);
            send.send_reset(Reason::CANCEL);
            let seen = &proxy.records(2).await[1];
            assert_eq!((&*seen.method, &*seen.flags, seen.upstream), ("POST", "DC", None), "{protocol:?}");
        }
    });
}

fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    [&[0, 0, length, kind, u8::from(kind == 1) * 5, 0, 0, 0, stream], payload].concat()
}

#[test]
fn a_flood_of_a_client_that_reads_nothing_ends_its_connection() {
    run(async {
        let sent = Rc::new(Cell::new(0_usize));
        let counted = Rc::clone(&sent);
        let upstream = http1_upstream(move |mut peer, _| {
            let counted = Rc::clone(&counted);
            async move {
                peer.head().await;
                peer.send("HTTP/1.1 200 OK\r\n\r\n").await;
                while peer.io.write_all(&[b'x'; 16 * 1024]).await.is_ok() {
                    counted.set(counted.get() + 16 * 1024);
                }
            }
        })
        .await;
        let mut setup = Setup::service(&[upstream]);
        setup.captured.discard_time = Duration::from_millis(50);
        let proxy = setup.start().await;
        let mut io = proxy.connect().await;
        // Windows without bounds: only TCP's holds the answer back.
        let hello = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
            frame(8, 0, &[0x7f, 0xff, 0, 0]),
            // GET, http, /, and the authority.
            frame(1, 1, &[0x82, 0x86, 0x84, 0x41, 3, b'w', b'e', b'b']),
        ];
        io.write_all(&hello.concat()).await.expect("the proxy reads");
        settled(&sent).await;
        let flood = frame(2, 1, &[0, 0, 0, 0, 1]).repeat(20_000);
        while io.write_all(&flood).await.is_ok() {}
        let records = proxy.records(2).await;
        assert!(records.iter().any(|seen| seen.details == "h2_other_frame_flood"), "{records:?}");
    });
}
