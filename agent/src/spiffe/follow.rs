//! Follows a Workload API for as long as the agent runs: two streams on one connection, and a new one after a while when it
//! breaks. What was handed out goes on meanwhile.

use std::sync::Arc;
use std::time::SystemTime;

use super::grpc::{self, CallError};
use super::source::WorkloadApi;
use super::wire::{BundlesResponse, SvidResponse};
use crate::identity::backoff;

const SVIDS: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

/// Follows it; the clock and chance (0 to 255) are passed in.
pub async fn follow(api: Arc<WorkloadApi>, now: impl Fn() -> SystemTime, mut draw: impl FnMut() -> u8) {
    let mut failures = 0;
    loop {
        let mut heard = false;
        let error = connection(&api, &now, &mut heard).await;
        failures = if heard { 0 } else { failures + 1 };
        api.tell(Some(error.to_string()));
        tokio::time::sleep(backoff(failures, draw())).await;
    }
}

/// One connection to its end. Says in `heard` whether the API has handed out anything.
async fn connection(api: &WorkloadApi, now: &impl Fn() -> SystemTime, heard: &mut bool) -> CallError {
    let (requests, driven) = match grpc::connect(api.socket()).await {
        Ok(connected) => connected,
        Err(error) => return error,
    };
    let svids = async {
        let mut messages = grpc::call(&requests, SVIDS).await?;
        loop {
            let response = SvidResponse::read(&messages.next().await?)?;
            let fault = api.take_svids(&response, now()).err();
            api.tell(fault.map(|fault| fault.to_string()));
            *heard = true;
        }
    };
    let bundles = async {
        let mut messages = match grpc::call(&requests, BUNDLES).await {
            // Each identity brings the bundle along; servers of before 2021 know no other way.
            Err(error) if error.is_unimplemented() => std::future::pending().await,
            called => called?,
        };
        loop {
            let message = match messages.next().await {
                Err(error) if error.is_unimplemented() => std::future::pending().await,
                message => message?,
            };
            if let Err(fault) = api.take_bundles(&BundlesResponse::read(&message)?) {
                api.tell(Some(fault.to_string()));
            }
        }
    };
    let ended: Result<std::convert::Infallible, CallError> = tokio::select! {
        ended = svids => ended,
        ended = bundles => ended,
        ended = driven => Err(ended.err().map_or(CallError::Ended, CallError::Http)),
    };
    match ended {
        Err(error) => error,
    }
}
