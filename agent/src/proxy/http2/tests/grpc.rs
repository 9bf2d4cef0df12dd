//! gRPC: streaming in both directions, statuses of our own answers, deadlines.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::peers::{Client, request, text, upstream, whole};
use crate::model::{AppProtocol, DirectResponse, RouteAction};
use crate::proxy::http::tests::harness::{Setup, nobody, rule, rule_with, run};

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[test]
fn messages_go_back_and_forth_before_either_side_ends() {
    run(async {
        let upstream = upstream(|mut call| async move {
            let mut answer = call.answer(&[GRPC], false);
            let mut body = call.request.into_body();
            while let Some(Ok(message)) = body.data().await {
                let _ = body.flow_control().release_capacity(message.len());
                if message.is_empty() {
                    continue;
                }
                answer.send_data([&b"re:"[..], &message].concat().into(), false).expect("the peer waits");
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().expect("a value"));
            trailers.insert("x-request-id", "metadata".parse().expect("a value"));
            answer.send_trailers(trailers).expect("the peer waits");
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Grpc).start().await;
        let client = Client::connect(&proxy).await;
        let (response, mut send) =
            client.start(request("POST", "/a.B/C", &[GRPC, ("te", "trailers")]), false).await;
        let mut body = response.await.expect("an answer before the request's end").into_body();
        for message in ["one", "two"] {
            send.send_data(message.into(), false).expect("sent");
            let reply = body.data().await.expect("a reply").expect("a reply");
            assert_eq!(reply, format!("re:{message}"));
        }
        send.send_data(Bytes::new(), true).expect("sent");
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.expect("trailers").expect("trailers");
        assert_eq!((text(&trailers, "grpc-status"), text(&trailers, "x-request-id")), ("5", "metadata"));
        let seen = &proxy.records(1).await[0];
        assert_eq!((seen.status, seen.grpc_status), (200, Some(5)));
        assert_eq!((seen.request_bytes, seen.response_bytes), (6, 12));
    });
}

#[test]
fn our_own_answers_have_a_grpc_status() {
    run(async {
        let nobody = nobody();
        let page = DirectResponse { status: 429, body: (*b"slow down: 100%").into() };
        let service = || Setup::service(&[nobody]).speaking(AppProtocol::Grpc);
        let mut elsewhere = rule();
        elsewhere.matches = vec![crate::model::RequestMatch {
            path: Some(crate::model::MatchPath::Exact("/elsewhere".into())),
            ..Default::default()
        }];
        let mut refused = service();
        refused.captured.request.underscores = false;
        for (setup, status, message, flags) in [
            (service(), "14", "Service Unavailable: connect_refused", "UF"),
            (
                Setup::with_rule(&[], rule()).speaking(AppProtocol::Grpc),
                "14",
                "Service Unavailable: no_ready_endpoint",
                "UH",
            ),
            (service().and_rule(elsewhere), "12", "Not Found: route_not_found", "NR"),
            (service().and_rule(rule_with(RouteAction::Respond(page))), "14", "slow down: 100%25", "-"),
        ] {
            let proxy = setup.start().await;
            let client = Client::connect(&proxy).await;
            let answer = client.get(request("POST", "/a.B/C", &[GRPC])).await;
            assert_eq!((answer.status, answer.field("grpc-status")), (200, status), "{answer:?}");
            assert_eq!((answer.field("grpc-message"), answer.field("content-type")), (message, GRPC.1));
            assert!(answer.trailers.is_none() && answer.body.is_empty(), "a head alone");
            let seen = &proxy.records(1).await[0];
            assert_eq!(
                (&*seen.flags, seen.grpc_status.map(|code| code.to_string()).as_deref()),
                (flags, Some(status))
            );
        }
    });
}

#[test]
fn deadlines_are_the_clients_or_the_routes_whichever_is_sooner() {
    run(async {
        let upstream = upstream(|call| async move {
            assert!(call.request.headers().contains_key("grpc-timeout"), "passed on");
            std::future::pending::<()>().await;
            drop(call);
        })
        .await;
        for (timeout, route) in [("20m", None), ("20m", Some(60)), ("60S", Some(0))] {
            let mut rule = rule();
            rule.timeout = route.map(|seconds| Duration::from_secs(seconds) + Duration::from_millis(20));
            let proxy = Setup::with_rule(&[upstream], rule).speaking(AppProtocol::Grpc).start().await;
            let client = Client::connect(&proxy).await;
            let (response, _send) =
                client.start(request("POST", "/a.B/C", &[GRPC, ("grpc-timeout", timeout)]), false).await;
            let answer = whole(response).await;
            assert_eq!((answer.status, answer.field("grpc-status")), (200, "4"), "{timeout} {route:?}");
            assert_eq!(&*proxy.records(1).await[0].flags, "UT");
        }
    });
}
