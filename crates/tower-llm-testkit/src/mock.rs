//! Calls to a `tower_test` mock, step by step, and response bodies for it.

mod body;

use std::{fmt, task::Poll};

use tokio_test::{assert_ready, assert_ready_ok, task};
use tower_service::Service;
use tower_test::mock::{Handle, SendResponse};

pub use self::body::{Sender, Upstream, poll_frame, stream};

/// Readies a clone of `service`, which must not wait, and calls it.
///
/// # Panics
///
/// If it waits or fails.
#[track_caller]
pub fn start<S, Req>(service: &S, request: Req) -> task::Spawn<S::Future>
where
    S: Service<Req> + Clone,
    S::Error: fmt::Debug,
{
    let mut service = service.clone();
    assert_ready_ok!(poll_ready(&mut service));
    task::spawn(service.call(request))
}

/// Polls a service for readiness, once.
pub fn poll_ready<S: Service<Req>, Req>(service: &mut S) -> Poll<Result<(), S::Error>> {
    task::spawn(()).enter(|cx, _| service.poll_ready(cx))
}

/// The request that has arrived upstream.
///
/// # Panics
///
/// If none has, or the service is gone.
#[track_caller]
pub fn arrived<Req, Res>(upstream: &mut Handle<Req, Res>) -> (Req, SendResponse<Res>) {
    assert_ready!(upstream.poll_request()).expect("the service is alive")
}

/// Asserts that nothing has arrived upstream.
///
/// # Panics
///
/// If something has.
#[track_caller]
pub fn nothing_arrived<Req, Res>(upstream: &mut Handle<Req, Res>) {
    assert!(upstream.poll_request().is_pending(), "a request arrived");
}
