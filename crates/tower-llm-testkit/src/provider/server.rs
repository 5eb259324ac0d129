//! Accepting connections and answering requests.

use std::{convert::Infallible, future::pending, sync::Arc};

use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::sleep,
};

use super::{
    body::{ResetBy, SimulatedBody},
    call::Call,
    counts::Shared,
    io::{Reset, Socket},
    script::Recorded,
};
use crate::wire::{Asked, Dialect, End, Reply};

pub(super) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) {
    // Dropping the set drops the connections.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => {
                // What fails here is the one connection, or there are too many files open for a
                // moment.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Frames leave when they are due and not when there are enough of them.
    let _ = stream.set_nodelay(true);
    let reset = Reset::default();
    let io = TokioIo::new(Socket::new(stream, reset.clone()));
    let service = service_fn(|request| {
        let call = Call::begin(Arc::clone(&shared));
        answer(request, call, Arc::clone(&shared), reset.clone())
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(io, service);
    tokio::select! {
        // First, so that what was said before a reset is written.
        biased;
        // A broken connection is the caller's doing and has been counted.
        _ = serving => {}
        () = reset.requested() => {}
    }
}

async fn answer(
    request: Request<Incoming>,
    mut call: Call,
    shared: Arc<Shared>,
    reset: Reset,
) -> Result<Response<SimulatedBody>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        // The caller broke off in its request, so no answer is sent.
        drop(call);
        return pending().await;
    };
    let body = body.to_bytes();
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    let behavior = shared.script().next(Recorded {
        method: head.method.clone(),
        path: path.clone(),
        headers: head.headers.clone(),
        body: body.clone(),
    });
    let overridden = has_overrides(&head.headers).then(|| behavior.overridden_by(&head.headers));
    let behavior = overridden.as_ref().unwrap_or(&behavior);
    let asked = Asked {
        method: Some(&head.method),
        path: &path,
        client: Dialect::of_client(&head.headers),
        body: &body,
    };
    let reply = Reply::build(&asked, behavior);
    if behavior.fault.is_some() {
        call.fault();
    }
    if !reply.before_head.is_zero() {
        sleep(reply.before_head).await;
    }
    match reply.end {
        End::NoHead => return pending().await,
        End::ResetBeforeHead => {
            call.abort();
            reset.request();
            return pending().await;
        }
        _ => {}
    }
    let reset = if head.version == Version::HTTP_2 {
        ResetBy::Error
    } else {
        ResetBy::Socket(reset)
    };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    response.headers_mut().clone_from(&reply.headers);
    Ok(response.map(|()| SimulatedBody::new(reply, reset, call)))
}

fn has_overrides(headers: &http::HeaderMap) -> bool {
    headers
        .keys()
        .any(|name| name.as_str().starts_with("x-sim-"))
}
