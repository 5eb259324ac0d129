use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, Oneshot, RequestBody, Unsent};
use tower_service::Service;

use super::{
    Account, Tokens,
    tokens::{Access, HeldToken, Refresh},
};

pin_project! {
    /// The future of [`AccountService`](super::AccountService).
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
    {
        #[pin]
        state: State<S, S::Future, Request<RequestBody<B>>, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, Req, B>
    where
        S: Service<Req>,
    {
        Sent { #[pin] inner: F },
        Waiting { #[pin] refresh: Refresh, waiting: Option<Waiting<S, B>>, unsent: Unsent },
        // The token that the request was sent with.
        Authorized { #[pin] inner: Oneshot<S, Req>, tokens: Tokens, token: HeldToken },
        Refused { error: Option<BoxError> },
    }
}

/// A request without its token.
pub(super) struct Waiting<S, B> {
    pub(super) account: Account,
    pub(super) tokens: Tokens,
    pub(super) service: S,
    pub(super) request: Request<RequestBody<B>>,
}

impl<S, B> Waiting<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    pub(super) fn access(self, access: Access) -> ResponseFuture<S, B> {
        let state = match access {
            Access::Token(token) => self.authorized(token),
            Access::Wait(refresh) => State::Waiting {
                refresh,
                waiting: Some(self),
                unsent: Unsent::new(),
            },
            Access::Refused(denied) => State::Refused {
                error: Some(denied.of(&self.account).into()),
            },
        };
        ResponseFuture { state }
    }

    fn authorized(self, token: HeldToken) -> State<S, S::Future, Request<RequestBody<B>>, B> {
        let mut request = self.request;
        request
            .headers_mut()
            .insert(AUTHORIZATION, token.header().clone());
        State::Authorized {
            inner: Oneshot::new(self.service, request),
            tokens: self.tokens,
            token,
        }
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    pub(super) fn sent(inner: S::Future) -> Self {
        Self {
            state: State::Sent { inner },
        }
    }

    pub(super) fn refused(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            state: State::Refused { error },
        }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Sent { inner } => return inner.poll(cx).map_err(Into::into),
                StateProj::Waiting {
                    refresh, waiting, ..
                } => {
                    let result = ready!(refresh.poll(cx));
                    let waiting = waiting.take().expect("polled after completion");
                    match result {
                        Ok(token) => waiting.authorized(token),
                        Err(denied) => return Poll::Ready(Err(denied.of(&waiting.account).into())),
                    }
                }
                StateProj::Authorized {
                    inner,
                    tokens,
                    token,
                } => {
                    let response = ready!(inner.poll(cx)).map_err(Into::into)?;
                    if response.status() == StatusCode::UNAUTHORIZED {
                        tokens.refuse(token);
                    }
                    return Poll::Ready(Ok(response));
                }
                StateProj::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
            };
            this.state.set(next);
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
