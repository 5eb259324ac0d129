//! Spans with the attribute names of the OpenTelemetry conventions.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, Once},
};

use tower_llm_core::{Refusal, RefusalKind};
use tower_llm_monitor::{Measure, MonitorLayer, Threshold};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::{DefaultGuard, set_default, set_global_default},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
};

use crate::support::{SECOND, answer, call, call_after, request};

type Fields = BTreeMap<String, String>;

/// What was told: open spans, closed ones and events.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    open: BTreeMap<u64, Fields>,
    closed: Vec<Fields>,
    events: Vec<Fields>,
}

struct Into<'a>(&'a mut Fields);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}").trim_matches('"').to_owned();
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Told {
    /// Listens to this thread.
    fn listen(&self) -> DefaultGuard {
        // While no thread listens, spans are switched off for all, and the tests of other modules run beside these.
        static GLOBAL: Once = Once::new();
        GLOBAL.call_once(|| set_global_default(Registry::default()).unwrap());
        set_default(Registry::default().with(self.clone()))
    }
}

impl<S: Subscriber> Layer<S> for Told {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::from([("name".into(), attributes.metadata().name().into())]);
        attributes.record(&mut Into(&mut fields));
        self.0.lock().unwrap().open.insert(id.into_u64(), fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut state = self.0.lock().unwrap();
        values.record(&mut Into(state.open.get_mut(&id.into_u64()).unwrap()));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Into(&mut fields));
        self.0.lock().unwrap().events.push(fields);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let mut state = self.0.lock().unwrap();
        let closed = state.open.remove(&id.into_u64()).unwrap();
        state.closed.push(closed);
    }
}

#[tokio::test(start_paused = true)]
async fn each_call_is_a_span_with_the_names_of_the_conventions() {
    let told = Told::default();
    let _default = told.listen();
    let monitor = MonitorLayer::new();
    call_after(&monitor, request(), SECOND, Ok(answer())).await;
    let refusal = Refusal::new(RefusalKind::Unavailable, "breaker");
    call(&monitor, request(), Err(refusal.into())).await;

    let state = told.0.lock().unwrap();
    assert!(state.open.is_empty());
    let [answered, refused] = &state.closed[..] else {
        panic!("{:?}", state.closed);
    };
    let fields = |pairs: &[(&str, &str)]| -> Fields {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    };
    let both = [
        ("name", "llm_call"),
        ("otel.kind", "client"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-5-mini"),
        ("gen_ai.usage.cache_read.input_tokens", "0"),
    ];
    let of_answered = [
        ("gen_ai.response.finish_reasons", "stop"),
        ("gen_ai.usage.input_tokens", "9"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.response.status_code", "200"),
        ("llm.outcome", "success"),
        ("llm.cost_usd", "8.25e-6"),
    ];
    assert_eq!(*answered, fields(&[&both[..], &of_answered].concat()));
    let of_refused = [
        ("gen_ai.usage.input_tokens", "0"),
        ("gen_ai.usage.output_tokens", "0"),
        ("error.type", "refused"),
        ("llm.outcome", "refused"),
        ("llm.refused_by", "breaker"),
        ("llm.cost_usd", "0.0"),
    ];
    assert_eq!(*refused, fields(&[&both[..], &of_refused].concat()));
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_an_event() {
    let told = Told::default();
    let _default = told.listen();
    let load = Threshold::above(Measure::Gauge("load"), 0.5).lasting(std::time::Duration::ZERO);
    let monitor = MonitorLayer::builder().alerts([load]).build().unwrap();
    for load in [0.6, 0.7, 0.1] {
        monitor.handle().set_gauge("load", load);
        let _ = monitor.handle().check();
    }
    let state = told.0.lock().unwrap();
    let told: Vec<_> = state
        .events
        .iter()
        .map(|event| (&*event["message"], &*event["value"]))
        .collect();
    assert_eq!(told, [("alert raised", "0.6"), ("alert resolved", "0.1")]);
}
