//! A closure that runs at the end of every call.

use std::{
    borrow::Cow,
    fmt,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{Armed, BoxError, Call, Completion, Described, Guard, Guarded, HttpBody, Watch};

/// Runs a closure at the end of every call: to print the usage, to log, to count.
///
/// The closure gets the [`Call`], if the request has one, and its [`Completion`]. It runs when the body of the response has
/// ended or is dropped, and for every call that fails. Like every [`Guard`], it runs on the caller's task and must neither
/// block nor panic.
///
/// ```
/// use std::convert::Infallible;
///
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_llm_core::OnEndLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_llm_core::BoxError> {
/// let (used, report) = std::sync::mpsc::channel();
/// let service = ServiceBuilder::new()
///     .layer(OnEndLayer::new(move |_, completion| {
///         let _ = used.send(completion.usage);
///     }))
///     .service(service_fn(async |_: Request<Full<Bytes>>| {
///         let body = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#;
///         let response = Response::builder().header("content-type", "application/json");
///         Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
///     }));
///
/// let request = Request::post("/v1/chat/completions").body(Full::default())?;
/// service.oneshot(request).await?.into_body().collect().await?;
/// assert_eq!(report.recv()?.unwrap().total(), 12);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct OnEndLayer<F, W = HttpBody> {
    on_end: F,
    watch: W,
}

impl<F> OnEndLayer<F> {
    /// Creates a layer that runs `on_end` at the end of every call.
    pub const fn new(on_end: F) -> Self
    where
        F: Fn(Option<&Call>, &Completion) + Clone,
    {
        Self {
            on_end,
            watch: HttpBody,
        }
    }
}

impl<F, W> OnEndLayer<F, W> {
    /// Sets how the end of a response is detected; [`HttpBody`] unless set.
    #[must_use]
    pub fn watch<V>(self, watch: V) -> OnEndLayer<F, V> {
        OnEndLayer {
            on_end: self.on_end,
            watch,
        }
    }
}

impl<S, F: Clone, W: Clone> Layer<S> for OnEndLayer<F, W> {
    type Service = OnEnd<S, F, W>;

    fn layer(&self, inner: S) -> Self::Service {
        OnEnd {
            inner,
            on_end: self.on_end.clone(),
            watch: self.watch.clone(),
        }
    }
}

impl<F, W> fmt::Debug for OnEndLayer<F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnEndLayer").finish_non_exhaustive()
    }
}

/// Runs a closure at the end of every call; see [`OnEndLayer`].
#[derive(Clone, Copy)]
pub struct OnEnd<S, F, W> {
    inner: S,
    on_end: F,
    watch: W,
}

impl<S, F, W, Req> Service<Req> for OnEnd<S, F, W>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    F: Fn(Option<&Call>, &Completion) + Clone,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<OnEndGuard<F>>;
    type Error = BoxError;
    type Future = Guarded<S::Future, W, OnEndGuard<F>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let call = request.call().map(Cow::into_owned);
        let mut armed = Armed::new(OnEndGuard {
            call: call.clone(),
            on_end: self.on_end.clone(),
        });
        let inner = armed.enter(|| self.inner.call(request));
        Guarded::new(inner, self.watch.clone(), call, armed)
    }
}

impl<S: fmt::Debug, F, W> fmt::Debug for OnEnd<S, F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnEnd")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// The guard of [`OnEndLayer`].
pub struct OnEndGuard<F> {
    call: Option<Call>,
    on_end: F,
}

impl<F: Fn(Option<&Call>, &Completion)> Guard for OnEndGuard<F> {
    fn end(&mut self, completion: &Completion) {
        (self.on_end)(self.call.as_ref(), completion);
    }
}

impl<F> fmt::Debug for OnEndGuard<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnEndGuard")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
