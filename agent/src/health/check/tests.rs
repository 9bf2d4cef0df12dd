//! Questions to servers in this process, and what comes of them.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::*;
use crate::health::ProbeId;
use crate::model::{Probe, Workload};

/// An id as a roster gives it out.
fn id() -> ProbeId {
    let probes = vec![Probe::new(ProbeCheck::Tcp { port: 1 })];
    let pod = Workload {
        name: crate::model::ObjectName::new("default", "p"),
        uid: "u".into(),
        workload: "p".into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![[127, 0, 0, 1].into()],
        labels: Arc::default(),
        accelerated: true,
        ready: true,
        probes,
    };
    let mut roster = crate::health::Roster::new(|| 0);
    let now = std::time::Instant::now();
    roster.follow([Arc::new(pod)].iter(), now, std::time::SystemTime::UNIX_EPOCH);
    roster.take_due(now, 1).remove(0).id
}

fn job(address: SocketAddr, check: ProbeCheck) -> Job {
    Job { id: id(), address, check, timeout: Duration::from_secs(5) }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

fn http_check(port: u16, headers: &[(&str, &str)]) -> ProbeCheck {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    ProbeCheck::Http { port, path: "/ready?x=1".into(), headers }
}

/// Answers one request with these bytes; gives what was asked and what came of it.
async fn asked(answer: &'static str, headers: &[(&str, &str)]) -> (String, Option<String>) {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.expect("reads") > 0, "the request is cut");
        }
        stream.write_all(answer.as_bytes()).await.expect("writes");
        String::from_utf8(request).expect("text")
    });
    let came = probe(&job(address, http_check(address.port(), headers)), None).await;
    (server.await.expect("serves"), came.err().map(|failed| failed.to_string()))
}

#[tokio::test]
async fn http_passes_from_200_to_399() {
    let cases = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", None),
        ("HTTP/1.1 204 No Content\r\n\r\n", None),
        ("HTTP/1.0 399 Odd\r\n\r\n", None),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", None),
        ("HTTP/1.1 400 Bad\r\n\r\n", Some("HTTP 400")),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Some("HTTP 503")),
        ("", Some("it closes without an answer")),
        ("HTTP/1.1 200 OK\r\n", Some("it closes without an answer")),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", Some("version_malformed")),
        ("HTTP/1.1 200 OK\n\n", Some("bare_lf")),
    ];
    for (answer, expected) in cases {
        let (_, came) = asked(answer, &[]).await;
        assert_eq!(came.as_deref(), expected, "{answer:?}");
    }
}

#[tokio::test]
async fn the_request_is_what_the_document_says() {
    const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
    let (request, _) = asked(OK, &[]).await;
    assert!(request.starts_with("GET /ready?x=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
    assert!(request.contains("\r\nuser-agent: sluice-probe/"), "{request}");
    let (request, _) = asked(OK, &[("host", "shop"), ("accept", "text/plain"), ("x-a", "b")]).await;
    for (part, times) in [("host:", 1), ("host: shop\r\n", 1), ("accept:", 1), ("x-a: b\r\n", 1)] {
        assert_eq!(request.matches(part).count(), times, "{part}: {request}");
    }
}

#[tokio::test]
async fn tcp_passes_where_somebody_listens() {
    let (listener, address) = listen().await;
    let tcp = job(address, ProbeCheck::Tcp { port: address.port() });
    assert!(probe(&tcp, None).await.is_ok());
    drop(listener);
    let failed = probe(&tcp, None).await.expect_err("nobody listens");
    assert_eq!(failed.to_string(), "connection refused");
}

#[tokio::test]
async fn who_takes_too_long_fails() {
    let (_listener, address) = listen().await;
    let slow = Job { timeout: Duration::from_secs(1), ..job(address, http_check(address.port(), &[])) };
    let failed = probe(&slow, None).await.expect_err("nobody answers");
    assert_eq!(failed.to_string(), "no answer within 1 s");
}

/// A gRPC server that answers one call.
async fn called(body: &'static [u8], status: Option<&'static str>) -> (String, Vec<u8>, Option<String>) {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        let (request, mut respond) = connection.accept().await.expect("a call").expect("in order");
        let answering = async move {
            let path = request.uri().path().to_owned();
            let mut asked = Vec::new();
            let mut stream = request.into_body();
            while let Some(piece) = stream.data().await {
                asked.extend_from_slice(&piece.expect("in order"));
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut send = respond.send_response(head.body(()).expect("a head"), false).expect("sends");
            send.send_data(Bytes::from_static(body), status.is_none()).expect("sends");
            if let Some(status) = status {
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static(status),
                )]);
                send.send_trailers(trailers).expect("sends");
            }
            (path, asked)
        };
        let serving = async { while connection.accept().await.is_some() {} };
        tokio::join!(answering, serving).0
    });
    let check = ProbeCheck::Grpc { port: address.port(), service: "shop".into() };
    let came = probe(&job(address, check), None).await;
    let (path, asked) = server.await.expect("serves");
    (path, asked, came.err().map(|failed| failed.to_string()))
}

#[tokio::test]
async fn grpc_passes_where_it_says_that_it_serves() {
    let (path, asked, came) = called(&[0, 0, 0, 0, 2, 8, 1], Some("0")).await;
    assert_eq!((path.as_str(), came), ("/grpc.health.v1.Health/Check", None));
    assert_eq!(asked, [0, 0, 0, 0, 6, 0x0a, 4, b's', b'h', b'o', b'p']);
    let cases: [(&'static [u8], _, _); 5] = [
        (&[0, 0, 0, 0, 2, 8, 2], Some("0"), "gRPC health NOT_SERVING"),
        (&[], Some("12"), "gRPC status UNIMPLEMENTED"),
        (&[0, 0, 0, 0, 2, 8, 1], Some("14"), "gRPC status UNAVAILABLE"),
        (&[0, 0, 0, 0, 2, 8, 1], None, "the answer has no grpc-status"),
        (&[0; 4096], Some("0"), "the answer is too long"),
    ];
    for (body, status, expected) in cases {
        let (_, _, came) = called(body, status).await;
        assert_eq!(came.as_deref(), Some(expected));
    }
}
