//! Administration: a listener of its own, whose requests need a token.

mod answer;
mod cache;
mod snapshot;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tower_llm_stack::CacheHandle;

pub(crate) use self::snapshot::{Sources, unit};
use self::{answer::Problem, cache::Endpoint};
use crate::{
    Secret, Settings, StartError,
    access::{Access, Keys},
    caller::PatientSocket,
    error::Reason,
    settings::Names,
    warm::Warmer,
};

/// Where everything that is counted is read.
const SNAPSHOT: &str = "/admin/snapshot";

const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081));

const MIN_TOKEN_BYTES: usize = 16;
const MAX_TOKEN_BYTES: usize = 1024;

/// Few: an administrator needs one.
const MAX_CONNECTIONS: usize = 16;

/// The listener.
pub(crate) struct Admin {
    listener: TcpListener,
    addr: SocketAddr,
    service: Arc<Service>,
}

/// What its connections share.
struct Service {
    token: Keys,
    sources: Sources,
    /// `None` if the cache is off.
    cache: Option<(CacheHandle, Arc<Warmer>)>,
    timeout: Duration,
}

impl Admin {
    /// Listens if there is a token. Adds to `notices` what the operator should know.
    pub(crate) async fn bind(
        settings: &Settings,
        access: &Access,
        sources: Sources,
        warmer: Option<Arc<Warmer>>,
        notices: &mut Vec<String>,
    ) -> Result<Option<Self>, StartError> {
        let (admin, names) = (&settings.admin, &settings.names);
        let Some(token) = &admin.token else {
            return match admin.listen {
                Some(_) => Err(missing_token(names)),
                None => Ok(None),
            };
        };
        let wrong = |what| StartError::setting(names.of("--admin-token"), what);
        let token = check(token, access).map_err(wrong)?;
        let addr = admin.listen.unwrap_or(DEFAULT_LISTEN);
        let listen = |error| Reason::Listen {
            addr,
            flag: "--admin-listen",
            error,
        };
        let listener = TcpListener::bind(addr).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        if !addr.ip().is_loopback() {
            notices.push(format!(
                "{}: {addr} may be reachable from other machines, and the token is sent in plain text.",
                names.of("--admin-listen")
            ));
        }
        let service = Service {
            token: Keys::new(&[token], None)?,
            cache: sources.cache.clone().zip(warmer),
            sources,
            timeout: settings.caller_timeout,
        };
        Ok(Some(Self {
            listener,
            addr,
            service: Arc::new(service),
        }))
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the gateway closes, then lets requests end.
    pub(crate) async fn serve(self, closing: watch::Receiver<bool>) {
        let Self {
            listener, service, ..
        } = self;
        let mut connections = JoinSet::new();
        let mut closes = closing.clone();
        loop {
            let has_room = connections.len() < MAX_CONNECTIONS;
            tokio::select! {
                () = closed(&mut closes) => break,
                accepted = listener.accept(), if has_room => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(stream, Arc::clone(&service), closing.clone()));
                    }
                    Err(error) => crate::server::refused_by_system(&error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

fn missing_token(names: &Names) -> StartError {
    // Named like the one that is set.
    let name = match names.is_variable("--admin-listen") {
        true => "GATEWAY_ADMIN_TOKEN",
        false => "--admin-token",
    };
    let what = format_args!("must be set, because {} is", names.of("--admin-listen"));
    StartError::setting(name, what)
}

/// The token, if it is one that cannot be guessed, can be sent, and is not a caller's.
fn check<'a>(token: &'a Secret, access: &Access) -> Result<&'a str, String> {
    let token = token.expose();
    if token.len() < MIN_TOKEN_BYTES {
        return Err(format!(
            "has fewer than {MIN_TOKEN_BYTES} characters; `openssl rand -hex 32` makes a good one (the value is not shown)"
        ));
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(format!(
            "is longer than {MAX_TOKEN_BYTES} bytes (the value is not shown)"
        ));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "has characters that a header must not have (the value is not shown)".to_owned(),
        );
    }
    if let Access::Keys(keys) = access
        && keys.find(token.as_bytes()).is_some()
    {
        return Err("is one of the callers' keys (the value is not shown)".to_owned());
    }
    Ok(token)
}

async fn connection(stream: TcpStream, service: Arc<Service>, mut closing: watch::Receiver<bool>) {
    let limit = service.timeout;
    let io = TokioIo::new(PatientSocket::new(stream, limit));
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    let http = http.timer(TokioTimer::new()).header_read_timeout(limit);
    let mut serving = pin!(http.serve_connection(io, answer));
    tokio::select! {
        _ = serving.as_mut() => return,
        () = closed(&mut closing) => serving.as_mut().graceful_shutdown(),
    }
    // A broken connection has dropped its request; there is nothing more to do.
    let _ = serving.await;
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.act(request).await;
        let status = match &answer {
            Ok((status, _)) => *status,
            Err(problem) => problem.status(),
        };
        // The body of an action says how much it has removed.
        match &answer {
            Ok(_) if method == Method::GET => {
                tracing::debug!(%method, path, status = status.as_u16(), "administration");
            }
            Ok((_, body)) => {
                tracing::info!(%method, path, status = status.as_u16(), %body, "administration");
            }
            Err(problem) => {
                let reason = problem.detail();
                tracing::warn!(%method, path, status = status.as_u16(), reason, "administration refused");
            }
        }
        match answer {
            Ok((status, body)) => answer::json(status, "application/json", &body),
            Err(problem) => problem.response(),
        }
    }

    async fn act(
        &self,
        request: Request<Incoming>,
    ) -> Result<(StatusCode, serde_json::Value), Problem> {
        let authorization = request.headers().get(AUTHORIZATION);
        let is_allowed = authorization.is_some_and(|value| self.token.find_in(value).is_some());
        if !is_allowed {
            return Err(Problem::unauthorized());
        }
        let (path, method) = (request.uri().path(), request.method().clone());
        if path == SNAPSHOT {
            return match method {
                Method::GET => Ok((StatusCode::OK, self.sources.snapshot())),
                _ => Err(Problem::wrong_method(&[Method::GET])),
            };
        }
        let endpoint = Endpoint::at(path).ok_or_else(Problem::not_found)?;
        if !endpoint.methods().contains(&method) {
            return Err(Problem::wrong_method(endpoint.methods()));
        }
        let body = read(request.into_body(), endpoint.max_body_bytes());
        let body = timeout(self.timeout, body).await;
        let body = body.map_err(|_| Problem::stalled())??;
        let (cache, warmer) = self.cache.as_ref().ok_or_else(Problem::cache_is_off)?;
        let done = endpoint.act(&method, cache, warmer, &body).await?;
        Ok((endpoint.success(&method), done))
    }
}

async fn read(body: Incoming, max_bytes: usize) -> Result<Bytes, Problem> {
    match Limited::new(body, max_bytes).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(max_bytes)),
        Err(_) => Err(Problem::bad_request("the request body was not received")),
    }
}
