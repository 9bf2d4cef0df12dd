//! HTTP/2 clients and upstreams that tests script.

use std::borrow::BorrowMut;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use h2::client::{self, ResponseFuture, SendRequest};
use h2::server::{self, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::proxy::http::tests::harness::Proxy;

/// A client's connection to the proxy, driven by a task.
pub struct Client {
    pub send: SendRequest<Bytes>,
    /// How the connection ended.
    pub ended: oneshot::Receiver<Result<(), h2::Error>>,
}

impl Client {
    pub async fn connect(proxy: &Proxy) -> Self {
        Self::with(proxy, &client::Builder::new()).await
    }

    pub async fn with(proxy: &Proxy, builder: &client::Builder) -> Self {
        let (send, connection) = builder.handshake(proxy.connect().await).await.expect("HTTP/2");
        let (end, ended) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let _ = end.send(connection.await);
        });
        Self { send, ended }
    }

    /// Starts a request.
    pub async fn start(&self, request: Request<()>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.expect("an open connection");
        send.send_request(request, ends).expect("a good request")
    }

    /// A request without a body and its whole answer.
    pub async fn get(&self, request: Request<()>) -> Whole {
        whole(self.start(request, true).await.0).await
    }
}

pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(format!("http://web{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// A message as it came.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Whole {
    pub fn field(&self, name: &str) -> &str {
        text(&self.fields, name)
    }

    pub fn trailer(&self, name: &str) -> &str {
        self.trailers.as_ref().map_or("", |trailers| text(trailers, name))
    }
}

/// A field's only value; empty where there is none.
pub fn text<'m>(fields: &'m HeaderMap, name: &str) -> &'m str {
    let mut values = fields.get_all(name).iter();
    let value = values.next().map_or("", |value| value.to_str().expect("text"));
    assert!(values.next().is_none(), "{name} is there twice: {fields:?}");
    value
}

pub async fn whole(response: ResponseFuture) -> Whole {
    let (parts, body) = response.await.expect("an answer").into_parts();
    let (body, trailers) = rest(body).await.expect("a whole body");
    Whole { status: parts.status.as_u16(), fields: parts.headers, body, trailers }
}

/// A body to its end.
pub async fn rest(mut body: impl BorrowMut<RecvStream>) -> Result<(String, Option<HeaderMap>), h2::Error> {
    let body = body.borrow_mut();
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?;
    Ok((String::from_utf8(read.to_vec()).expect("text"), trailers))
}

/// A request that arrived at an upstream.
pub struct Call {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    /// The connection's number.
    pub connection: usize,
    /// The request's number on its connection.
    pub number: usize,
}

impl Call {
    pub fn answer(&mut self, fields: &[(&str, &str)], ends: bool) -> SendStream<Bytes> {
        let mut response = Response::builder().status(200);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        self.respond.send_response(response.body(()).expect("a response"), ends).expect("the peer waits")
    }
}

/// An HTTP/2 upstream that serves each request with `script`.
pub async fn upstream<F: Future<Output = ()> + 'static>(script: impl Fn(Call) -> F + 'static) -> SocketAddr {
    upstream_with(server::Builder::new(), script).await
}

pub async fn upstream_with<F: Future<Output = ()> + 'static>(
    builder: server::Builder,
    script: impl Fn(Call) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let script = Rc::new(script);
    tokio::task::spawn_local(async move {
        let mut number = 0;
        while let Ok((io, _)) = listener.accept().await {
            let (builder, script) = (builder.clone(), Rc::clone(&script));
            tokio::task::spawn_local(async move {
                let mut connection = builder.handshake(io).await.expect("HTTP/2");
                let mut calls = 0;
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let call = Call { request, respond, connection: number, number: calls };
                    tokio::task::spawn_local(script(call));
                    calls += 1;
                }
            });
            number += 1;
        }
    });
    address
}

/// An upstream that answers every request with what it got: `connection method path`, then the fields line by line, then
/// the body; trailers come back as trailers.
pub async fn echo() -> SocketAddr {
    upstream(|mut call| async move {
        let uri = call.request.uri();
        let mut seen = format!("{} {} {uri}\n", call.connection, call.request.method());
        for (name, value) in call.request.headers() {
            seen.extend([name.as_str(), ": ", value.to_str().expect("text"), "\n"]);
        }
        let mut answer = call.answer(&[("x-upstream", "h2"), ("te", "trailers")], false);
        let (body, trailers) = rest(call.request.into_body()).await.expect("a whole request");
        seen.push_str(&body);
        answer.send_data(seen.into(), trailers.is_none()).expect("the peer waits");
        if let Some(trailers) = trailers {
            answer.send_trailers(trailers).expect("the peer waits");
        }
    })
    .await
}
