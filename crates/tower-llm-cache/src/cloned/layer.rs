use std::{fmt, sync::Arc};

use tower_layer::Layer;
use tower_llm_core::{Described, Operation};

use super::Cloned;
use crate::{
    key::{Bypass, CacheKey, KeyContent},
    policy::Policy,
    shared::Shared,
};

/// What a response counts for that is not weighed.
const DEFAULT_BYTES: usize = 4 << 10;

/// Caches the responses of a typed service; made by [`CacheLayer::cloned`](crate::CacheLayer::cloned).
///
/// A response is an [`Answer`](tower_llm_core::Answer), which says whether it cost a call. Build the layers around the cache
/// with [`Cached`](tower_llm_core::Cached), so that they see it: with plain [`Unary`](tower_llm_core::Unary), a token limit
/// charges each hit and each follower its estimate, as if it had been sent. Each caller gets a clone, so let a large response be an
/// `Arc`. Identical requests at the same time share one call, which the first caller to get its response pays. It is dropped when the last of their callers leaves, unless the
/// policy [finishes](Policy::finish_abandoned) such calls; its caller is then charged what it had reserved, since no layer sees
/// the response. Its error reaches all callers, as a source of the error that they
/// get, and is not stored.
///
/// Responses are held in this process only. Of a [`Policy`], the settings `tool_calls`, `stale_while_revalidate` and
/// `stale_if_error` have no effect, nor has [`RefreshAhead`](crate::RefreshAhead). With `deterministic_only`, all operations but
/// embeddings bypass the cache. A [`Scope::header`](crate::Scope::header) and a [`key_header`](crate::CacheBuilder::key_header)
/// are read by [`Described::header`].
///
/// Clones, and all services that it makes, share what is stored and what is in flight, and so do two layers for the same types
/// of request and response, unless their [`CacheLayer`](crate::CacheLayer)s differ.
///
/// ```
/// use std::{borrow::Cow, convert::Infallible, sync::Arc};
///
/// use serde::Serialize;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_llm_cache::{CacheLayer, KeyContent, Scope};
/// use tower_llm_core::{BoxError, Call, Described, Operation, Provider, Served};
///
/// #[derive(Serialize)]
/// struct Prompt {
///     text: String,
/// }
///
/// impl Described for Prompt {
///     fn call(&self) -> Option<Cow<'_, Call>> {
///         let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("gpt-5-mini");
///         Some(call.build().into())
///     }
/// }
///
/// struct Completion {
///     text: String,
///     is_truncated: bool,
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let cache = CacheLayer::builder(Scope::shared()).build()?;
/// let layer = cache
///     .cloned(|prompt: &Prompt| KeyContent::json(prompt))
///     .store_if(|completion: &Arc<Completion>| !completion.is_truncated)
///     .weigh(|completion| completion.text.len());
/// let model = ServiceBuilder::new().layer(layer).service(service_fn(|prompt: Prompt| async move {
///     let text = format!("echo: {}", prompt.text);
///     Ok::<_, Infallible>(Arc::new(Completion { text, is_truncated: false }))
/// }));
///
/// let ask = || model.clone().oneshot(Prompt { text: "Hello".into() });
/// let sent = ask().await?;
/// assert_eq!((sent.text.as_str(), sent.served()), ("echo: Hello", None));
/// let hit = ask().await?;
/// assert_eq!((hit.text.as_str(), hit.served()), ("echo: Hello", Some(Served::Hit)));
/// assert_eq!(cache.handle().stats().hit_ratio(), 0.5);
/// # Ok(())
/// # }
/// ```
pub struct ClonedLayer<Req, R> {
    shared: Arc<Shared>,
    strategy: Strategy<Req, R>,
}

/// What the user says of requests and responses.
pub(super) struct Strategy<Req, R> {
    content: Arc<dyn Fn(&Req) -> KeyContent + Send + Sync>,
    pub(super) store_if: Arc<dyn Fn(&R) -> bool + Send + Sync>,
    pub(super) weigh: Arc<dyn Fn(&R) -> usize + Send + Sync>,
}

impl<Req, R> ClonedLayer<Req, R> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        content: impl Fn(&Req) -> KeyContent + Send + Sync + 'static,
    ) -> Self {
        let strategy = Strategy {
            content: Arc::new(content),
            store_if: Arc::new(|_| true),
            weigh: Arc::new(|_| DEFAULT_BYTES),
        };
        Self { shared, strategy }
    }

    /// Sets which responses are stored; all are unless set. Callers that wait for a response get it all the same.
    ///
    /// The layer does not know what a response holds: leave out those that are truncated, filtered, or call tools.
    #[must_use]
    pub fn store_if(mut self, store_if: impl Fn(&R) -> bool + Send + Sync + 'static) -> Self {
        self.strategy.store_if = Arc::new(store_if);
        self
    }

    /// Sets the size of a response, in bytes, for the memory's [`max_bytes`](crate::Memory::max_bytes) and the policy's
    /// [`max_answer_bytes`](Policy::max_answer_bytes); 4 KiB unless set.
    #[must_use]
    pub fn weigh(mut self, weigh: impl Fn(&R) -> usize + Send + Sync + 'static) -> Self {
        self.strategy.weigh = Arc::new(weigh);
        self
    }

    /// Returns the key of the answer to a request, to [invalidate](crate::CacheHandle::invalidate) it.
    ///
    /// # Errors
    ///
    /// [`Bypass`] if the request has none.
    pub fn key(&self, request: &Req) -> Result<CacheKey, Bypass>
    where
        Req: Described,
    {
        self.strategy
            .read(&self.shared, request)
            .map(|(key, _)| key)
    }
}

impl<Req: Described, R> Strategy<Req, R> {
    /// Reads what a request asks for; an error if it has nothing to do with the cache.
    pub(super) fn read(
        &self,
        shared: &Shared,
        request: &Req,
    ) -> Result<(CacheKey, Policy), Bypass> {
        let call = request.call().ok_or(Bypass::Operation)?;
        let policy = shared.policies.of(call.operation());
        let policy = policy.ok_or(Bypass::Operation)?;
        if policy.deterministic_only && *call.operation() != Operation::EMBEDDINGS {
            return Err(Bypass::NotDeterministic);
        }
        let content = (self.content)(request);
        let key = shared.keys.typed::<Req, R>(request, &call, content)?;
        Ok((key, *policy))
    }
}

impl<S, Req, R> Layer<S> for ClonedLayer<Req, R> {
    type Service = Cloned<S, Req, R>;

    fn layer(&self, inner: S) -> Cloned<S, Req, R> {
        Cloned::new(inner, Arc::clone(&self.shared), self.strategy.clone())
    }
}

// Derives would ask for requests and responses that are `Clone` and `Debug`.

impl<Req, R> Clone for ClonedLayer<Req, R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            strategy: self.strategy.clone(),
        }
    }
}

impl<Req, R> Clone for Strategy<Req, R> {
    fn clone(&self) -> Self {
        Self {
            content: Arc::clone(&self.content),
            store_if: Arc::clone(&self.store_if),
            weigh: Arc::clone(&self.weigh),
        }
    }
}

impl<Req, R> fmt::Debug for ClonedLayer<Req, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClonedLayer").finish_non_exhaustive()
    }
}
