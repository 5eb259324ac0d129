//! How a request is sent to a target of the configuration file.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH},
};
use hyper::body::Incoming;
use tower::Service;
use tower_llm_stack::{
    BoxError, Described, RequestBody,
    accounts::{AccountService, Client},
    adapters::ResponseBody,
};

use crate::{caller::PatientBody, client::ResponseFuture, resend::Resend, upstream::Upstream};

type Account = AccountService<Client<PatientBody>>;

type Sent = <Resend<Account> as Service<Request<RequestBody<PatientBody>>>>::Future;

/// The innermost service of a target: its account, around the client for its proxy.
#[derive(Clone, Debug)]
pub(crate) struct Sender(Resend<Account>);

impl Sender {
    pub(crate) fn new(account: Account) -> Self {
        Self(Resend::new(account))
    }
}

impl Service<Request<RequestBody<PatientBody>>> for Sender {
    type Response = Response<ResponseBody<Incoming>>;
    type Error = BoxError;
    type Future = ResponseFuture<Sent>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<RequestBody<PatientBody>>) -> Self::Future {
        let streamed = request.call().is_some_and(|call| call.streamed());
        let headers = request.headers_mut();
        // The HTTP client sets the length.
        headers.remove(CONTENT_LENGTH);
        // What is compressed can't be read for its usage.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        // It admitted the request, and may be another one than this target.
        request.extensions_mut().remove::<Arc<Upstream>>();
        ResponseFuture::new(self.0.call(request), streamed)
    }
}
