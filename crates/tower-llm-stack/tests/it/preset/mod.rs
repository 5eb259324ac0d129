//! Presets: each switch of the table in their docs has the effect that it says.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod branches;
mod cache;
mod full;
mod limits;
mod misuse;
mod timeouts;

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_llm_stack::{
    BoxError, BreakerLayer, BulkheadLayer, CacheLayer, FanoutLayer, Preset, RateLimitLayer,
    RequestBody, Stack, TimeoutLayer,
};
use tower_llm_testkit::{Behavior, Fault};

use crate::contract::layers::{Attempts, Body, Client, Model, boxed};

/// The table of the docs.
const TABLE: &str = include_str!("../../../src/preset/switches.md");

/// In the order of the table's columns.
const PRESETS: [Preset; 5] = [
    Preset::Chat,
    Preset::Code,
    Preset::Realtime,
    Preset::Documents,
    Preset::Cost,
];

const SECOND: Duration = Duration::from_secs(1);

/// The rows of the table: a switch, and its value in each preset.
fn rows() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| "));
    rows.skip(1).map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        (cells.next().unwrap(), cells.collect())
    })
}

/// What each preset sets a switch to.
fn switch(name: &str) -> impl Iterator<Item = (Preset, Option<&'static str>)> {
    let (_, values) = rows().find(|(switch, _)| *switch == name).unwrap();
    let values = values.into_iter().map(|value| value.trim_matches('*'));
    PRESETS
        .into_iter()
        .zip(values.map(|value| (value != "-").then_some(value)))
}

/// The presets that set a number.
fn numbers(name: &str) -> impl Iterator<Item = (Preset, usize)> {
    switch(name).filter_map(|(preset, value)| Some((preset, value?.parse().unwrap())))
}

/// The presets that set a time.
fn times(name: &str) -> impl Iterator<Item = (Preset, Duration)> {
    switch(name).filter_map(|(preset, value)| Some((preset, time(value?))))
}

fn time(value: &str) -> Duration {
    let (number, unit) = value.split_once(' ').unwrap();
    let unit = match unit {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => panic!("no unit: {unit}"),
    };
    Duration::from_secs_f64(number.parse::<f64>().unwrap() * unit)
}

#[test]
fn every_switch_of_the_table_has_a_test() {
    let tests = [
        include_str!("branches.rs"),
        include_str!("cache.rs"),
        include_str!("limits.rs"),
        include_str!("timeouts.rs"),
    ];
    for (switch, values) in rows() {
        let quoted = format!("\"{switch}\"");
        assert!(tests.iter().any(|test| test.contains(&quoted)), "{switch}");
        assert_eq!(values.len(), PRESETS.len(), "{switch}");
    }
}

/// The layers of a preset; those that a test is not about are left out.
#[derive(Clone, Default)]
struct Only {
    cache: Option<CacheLayer>,
    fanout: Option<FanoutLayer>,
    breaker: Option<BreakerLayer>,
    providers: Option<RateLimitLayer>,
    bulkhead: Option<BulkheadLayer>,
    timeout: Option<TimeoutLayer>,
}

impl Only {
    fn around(self, preset: Preset, upstream: &Upstream) -> Client {
        let stack = Stack::preset(preset)
            .cache(self.cache)
            .fanout(self.fanout)
            .breaker(self.breaker)
            .provider_rate_limit(self.providers)
            .bulkhead(self.bulkhead)
            .timeout(self.timeout)
            .build();
        boxed(stack.layer(upstream.service()))
    }
}

/// A provider that notes when calls arrive, and answers each by its number.
#[derive(Clone)]
struct Upstream {
    arrived: Arc<Mutex<Vec<Instant>>>,
    answer: Arc<dyn Fn(usize) -> Behavior + Send + Sync>,
}

impl Upstream {
    fn new(answer: impl Fn(usize) -> Behavior + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let arrived = Arc::default();
        Self { arrived, answer }
    }

    fn always(behavior: impl Into<Behavior>) -> Self {
        let behavior = behavior.into();
        Self::new(move |_| behavior.clone())
    }

    /// Fails as `first` says, and then answers.
    fn once(first: Fault) -> Self {
        Self::new(move |number| match number {
            0 => first.into(),
            _ => Behavior::new(),
        })
    }

    fn service(&self) -> Attempts {
        let this = self.clone();
        Attempts::new(service_fn(move |request: Request<RequestBody>| {
            let mut arrived = this.arrived.lock().unwrap();
            let behavior = (this.answer)(arrived.len());
            arrived.push(Instant::now());
            Model::new([behavior]).service().oneshot(request)
        }))
    }

    fn calls(&self) -> usize {
        self.arrived.lock().unwrap().len()
    }

    /// The times between the calls.
    fn gaps(&self) -> Vec<Duration> {
        let arrived = self.arrived.lock().unwrap();
        arrived.windows(2).map(|two| two[1] - two[0]).collect()
    }
}

fn post(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("authorization", "Bearer a");
    request.body(body.into()).unwrap()
}

fn plain() -> Request<Full<Bytes>> {
    post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)
}

fn streamed() -> Request<Full<Bytes>> {
    let body = r#"{"model":"m","messages":[],"stream":true}"#;
    post("/v1/chat/completions", body)
}

/// Calls; a call without an end fails after a week.
async fn ended(call: impl Future<Output = Answer>) -> Answer {
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    tokio::time::timeout(week, call).await.unwrap()
}

fn call<S>(client: &S, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + use<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<Body>, Error = BoxError> + Clone,
{
    ended(client.clone().oneshot(request))
}

type Answer = Result<Response<Body>, BoxError>;

/// The body, as far as it came.
async fn read(answer: Answer) -> Result<Bytes, BoxError> {
    let mut body = answer?.into_body();
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        read.extend_from_slice(&frame?.into_data().unwrap_or_default());
    }
    Ok(read.into())
}

/// How long it takes.
async fn timed<T>(future: impl Future<Output = T>) -> (Duration, T) {
    let started = Instant::now();
    let output = future.await;
    (started.elapsed(), output)
}
