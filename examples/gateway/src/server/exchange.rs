//! Answers one request.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header, request::Parts};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Incoming};
use tower::{
    Layer, ServiceExt,
    util::{BoxCloneService, MapErr},
};
use tower_llm_stack::{
    BoxError, Dialect, RefusalLayer,
    fanout::{AllFailed, Report},
};

use super::{Service, Shared};
use crate::{
    access::Access,
    caller::{PatientBody, Stalled},
    drain::{Drained, Rest},
    framing::Ambiguous,
    gate, many,
    paths::merge_slashes,
    problem::Problem,
    report,
    shutdown::CutBody,
    warm::{self, OwnBody, OwnCall, OwnCalls},
};

/// Answers a request, and reads what the caller still sends of it, so that the caller reads the answer.
pub(super) async fn exchange(
    shared: Arc<Shared>,
    ambiguous: Ambiguous,
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let rest = Rest::default();
    let (body, stalled) = PatientBody::new(body, shared.caller_timeout, rest.clone());
    if let Some(uri) = merge_slashes(&parts.uri) {
        parts.uri = uri;
    }
    let awaits_leave =
        parts.version < Version::HTTP_2 && parts.headers.contains_key(header::EXPECT);
    let mut response = answer(shared, ambiguous, parts, body, stalled).await?;
    // A client that still waits for `100 Continue` may or may not send the body, so what follows is unknown.
    if awaits_leave && rest.is_given_up() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response.map(|body| Drained::new(body, rest)))
}

async fn answer(
    shared: Arc<Shared>,
    ambiguous: Ambiguous,
    mut parts: Parts,
    body: PatientBody,
    stalled: Stalled,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, BoxError> {
    // Before the keys are removed, since a header that only one provider's clients send may identify the dialect.
    let dialect = shared.gate.dialect(&parts);
    if let Err(problem) = gate::check_form(&parts, &ambiguous) {
        return Ok(refuse(problem, dialect, &parts).map(Either::Right));
    }
    let own = matches!(parts.method, Method::GET | Method::HEAD)
        .then(|| shared.own(parts.uri.path()))
        .flatten();
    if let Some(response) = own {
        return Ok(response.map(Either::Right));
    }
    let endpoint = many::Endpoint::of(&parts.method, parts.uri.path());
    if let Some(endpoint) = endpoint {
        // Boxed: it is rare, and large.
        let answered: many::Answered = Box::pin(answer_many(shared, endpoint, parts, body));
        return Ok(answered.await.map(Either::Right));
    }
    let upstream = match shared.gate.admit(&mut parts) {
        Ok(upstream) => upstream,
        Err(problem) => return Ok(refuse(problem, dialect, &parts).map(Either::Right)),
    };
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let calling = call(service, Request::from_parts(parts, body));
    let response = tokio::select! {
        biased;
        response = calling => response?,
        () = shared.shutdown.until_cut() => {
            return Ok(Problem::SHUTTING_DOWN.response(dialect).map(Either::Right));
        }
    };
    if stalled.is_set() {
        return Ok(Problem::STALLED.response(dialect).map(Either::Right));
    }
    let shutdown = Arc::clone(&shared.shutdown);
    Ok(CutBody::response(response, dialect, shutdown).map(Either::Left))
}

/// Answers a request that is many calls.
async fn answer_many(
    shared: Arc<Shared>,
    endpoint: many::Endpoint,
    mut parts: Parts,
    body: PatientBody,
) -> Response<Full<Bytes>> {
    // As each of its calls would be.
    parts.uri = Uri::from_static(endpoint.path());
    let upstream = match shared.gate.admit(&mut parts) {
        Ok(upstream) => upstream,
        Err(problem) => return refuse(problem, Dialect::OpenAi, &parts),
    };
    let body = match Limited::new(body, shared.max_body_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return many::refused(&error.to_string()),
    };
    // What is not answered when the exchange has to end is told item by item.
    let deadline = shared.longest.saturating_sub(Duration::from_secs(60));
    let bounds = many::Bounds {
        max_body_bytes: shared.max_body_bytes,
        deadline,
    };
    let plan = match endpoint.plan(&body, bounds) {
        Ok(plan) => plan,
        Err(what) => return many::refused(&what),
    };
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let each = tower::service_fn(move |request: Request<PatientBody>| {
        let answered = call(service.clone(), request);
        async move {
            let Ok(response) = answered.await;
            Ok::<_, BoxError>(response.map(BodyExt::boxed_unsync))
        }
    });
    tokio::select! {
        biased;
        response = plan.run(BoxCloneService::new(each), &parts) => response,
        () = shared.shutdown.until_cut() => Problem::SHUTTING_DOWN.response(Dialect::OpenAi),
    }
}

/// Makes a call of the gateway's own, which is to be cached.
async fn own_call(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<OwnBody>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let admitted = gate::check_form(&parts, &Ambiguous::default())
        .and_then(|()| shared.gate.admit_own(&mut parts));
    let upstream = admitted.map_err(|problem| problem.message)?;
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let response = service
        .oneshot(Request::from_parts(parts, PatientBody::own(body)))
        .await?;
    // Dropping the response ends the call before all of it is paid for.
    match warm::not_cached(response.headers()) {
        Some(why) => Err(why.into()),
        None => Ok(response.map(BodyExt::boxed_unsync)),
    }
}

impl OwnCalls for Shared {
    fn access(&self) -> &Access {
        &self.gate.access
    }

    fn send(self: Arc<Self>, request: Request<Bytes>) -> OwnCall {
        Box::pin(own_call(self, request))
    }
}

/// Tells the caller not to retry what the gateway has retried: each of the caller's attempts would be several here.
fn say_if_retried<B>(response: &mut Response<B>, all_failed: bool) {
    let report = response.extensions().get::<Report>();
    let was_retried = report.is_some_and(|report| report.attempts().len() > 1);
    if (was_retried || all_failed) && !response.status().is_success() {
        let no = HeaderValue::from_static("false");
        response.headers_mut().insert("x-should-retry", no);
    }
}

/// Sends a request into the stack. An error becomes a response in the dialect of the request.
fn call(
    service: Service,
    request: Request<PatientBody>,
) -> impl Future<Output = Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, Infallible>>
+ Send {
    let method = request.method().clone();
    let path = request.uri().path_and_query().cloned();
    let was_retried = Arc::new(AtomicBool::new(false));
    let retried = Arc::clone(&was_retried);
    let service = MapErr::new(service, move |error: BoxError| {
        if AllFailed::find(&*error).is_some() {
            retried.store(true, Ordering::Relaxed);
        }
        if let Some(path) = &path {
            report::too_large(&*error, &method, path);
        }
        error
    });
    let stack = RefusalLayer::new().infallible().layer(service);
    let stack = stack.map_response(move |mut response| {
        say_if_retried(&mut response, was_retried.load(Ordering::Relaxed));
        response
    });
    stack.oneshot(request)
}

/// Answers with `problem`, and says so in the log: without the query, which may hold a credential.
fn refuse(problem: Problem, dialect: Dialect, request: &Parts) -> Response<Full<Bytes>> {
    let (method, path) = (&request.method, request.uri.path());
    let status = problem.status.as_u16();
    tracing::warn!(status, code = problem.code, %method, path, "request refused");
    problem.response(dialect)
}
