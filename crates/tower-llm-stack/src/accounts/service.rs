use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_llm_core::{BoxError, RequestBody};
use tower_service::Service;

use super::{Account, ResponseFuture, credential::Kind, future::Waiting};

/// The service of [`AccountLayer`](super::AccountLayer).
///
/// A request waits only for an access token, and only if there is no valid one.
#[derive(Clone)]
pub struct AccountService<S> {
    account: Account,
    inner: S,
}

impl<S> AccountService<S> {
    pub(super) fn new(account: Account, inner: S) -> Self {
        Self { account, inner }
    }

    /// Returns the account.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl<S, B, R> Service<Request<RequestBody<B>>> for AccountService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.account.kind() {
            Kind::Caller | Kind::Header(..) => self.inner.poll_ready(cx).map_err(Into::into),
            // A call that waits for a token must not hold the readied service.
            Kind::Tokens(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, mut request: Request<RequestBody<B>>) -> Self::Future {
        if let Err(error) = self.account.prepare(&mut request) {
            return ResponseFuture::refused(error);
        }
        match self.account.kind() {
            Kind::Caller => ResponseFuture::sent(self.inner.call(request)),
            Kind::Header(name, value) => {
                request.headers_mut().insert(name, value.clone());
                ResponseFuture::sent(self.inner.call(request))
            }
            Kind::Tokens(tokens) => {
                let waiting = Waiting {
                    account: self.account.clone(),
                    tokens: tokens.clone(),
                    service: self.inner.clone(),
                    request,
                };
                waiting.access(tokens.access())
            }
        }
    }
}

impl<S> fmt::Debug for AccountService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountService")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}
