use std::sync::Arc;

use tokio::time::Instant;
use tower_layer::Layer;
use tower_llm_core::{ConfigError, GateLayer, HttpBody, Operation, Provider};

use crate::{
    Alerts, AttemptLayer, Monitor, MonitorGate, MonitorHandle, PriceTable, Threshold,
    handle::Shared,
    record::Queue,
    rows::{Rows, Settings},
};

const MAX_RECORDS: usize = 1_000_000;
const MAX_MODELS: usize = 1_000;
/// Providers or operations besides those that core names.
const MAX_OTHERS: usize = 50;

/// Counts calls, to the end of their responses.
///
/// Put it outside of all layers whose refusals, answers and branches it is to count, and inside of what describes requests. What it
/// has counted is in its [`handle`](Self::handle).
#[derive(Clone, Debug)]
pub struct MonitorLayer<W = HttpBody> {
    shared: Arc<Shared>,
    watch: W,
}

/// Builds a [`MonitorLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct MonitorBuilder<W = HttpBody> {
    rows: Settings,
    alerts: Vec<Threshold>,
    records: Option<usize>,
    id_header: Option<&'static str>,
    watch: W,
}

impl MonitorLayer {
    /// Creates a layer that knows the providers and operations of core, and the models of the default price table.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().make(Alerts::default())
    }

    /// Starts a layer with the defaults of [`new`](Self::new).
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder {
            rows: Settings {
                providers: Vec::new(),
                operations: Vec::new(),
                models: Vec::new(),
                prices: PriceTable::default(),
                max_rows: 100,
            },
            alerts: Vec::new(),
            records: None,
            id_header: None,
            watch: HttpBody,
        }
    }
}

impl<W> MonitorLayer<W> {
    /// Returns the layer that counts attempts: put it just inside of a fan-out, or of what else sends a call more than once.
    #[must_use]
    pub fn attempts(&self) -> AttemptLayer<W>
    where
        W: Clone,
    {
        AttemptLayer::new(Arc::clone(&self.shared), self.watch.clone())
    }

    /// Returns a handle to what is counted.
    #[must_use]
    pub fn handle(&self) -> MonitorHandle {
        MonitorHandle::new(Arc::clone(&self.shared))
    }
}

impl Default for MonitorLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, W: Clone> Layer<S> for MonitorLayer<W> {
    type Service = Monitor<S, W>;

    fn layer(&self, inner: S) -> Monitor<S, W> {
        Monitor::new(inner, self.gate(), self.watch.clone())
    }
}

impl<W: Clone> GateLayer for MonitorLayer<W> {
    type Gate = MonitorGate;
    type Watch = W;

    fn gate(&self) -> MonitorGate {
        MonitorGate::new(Arc::clone(&self.shared))
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl<W> MonitorBuilder<W> {
    /// Adds models that are counted by name. Those that have a price are known already; all others are counted together, as
    /// `other`.
    ///
    /// A version with a date, such as `gpt-5-2025-08-07`, is counted as its model unless it has a name here or a price of its own.
    pub fn models<M: Into<Box<str>>>(mut self, models: impl IntoIterator<Item = M>) -> Self {
        self.rows.models.extend(models.into_iter().map(Into::into));
        self
    }

    /// Adds a provider that is counted by name, besides those that [`Provider`] names; all others are counted as `other`.
    pub fn provider(mut self, provider: &Provider) -> Self {
        self.rows.providers.push(provider.as_str().into());
        self
    }

    /// Adds an operation that is counted by name, besides those that [`Operation`] names; all others are counted as `other`.
    pub fn operation(mut self, operation: &Operation) -> Self {
        self.rows.operations.push(operation.as_str().into());
        self
    }

    /// Sets the prices; list prices unless set. See [`PriceTable`].
    pub fn prices(mut self, prices: PriceTable) -> Self {
        self.rows.prices = prices;
        self
    }

    /// Adds thresholds whose alerts [`MonitorHandle::check`] raises and resolves, such as the [usual](Alerts::usual) ones; none unless
    /// set.
    pub fn alerts(mut self, thresholds: impl IntoIterator<Item = Threshold>) -> Self {
        self.alerts.extend(thresholds);
        self
    }

    /// Has a [record](crate::Record) made of each call, for a [recorder](MonitorHandle::recorder) to write; none unless set.
    ///
    /// At most `capacity` of them wait to be written, in half a kilobyte each, which is taken at once; when there is no room, they
    /// are dropped and counted.
    pub fn records(mut self, capacity: usize) -> Self {
        self.records = Some(capacity);
        self
    }

    /// Sets the request header with the id of a request, such as `x-request-id`, for its record. A request without one, or with
    /// over 128 bytes in it, gets a number.
    pub fn record_id_header(mut self, name: &'static str) -> Self {
        self.id_header = Some(name);
        self
    }

    /// Sets how many rows there may be; 100 unless set. Calls that would need another one are counted as `other`.
    ///
    /// A row takes 24 to 72 KB, and 12 to 36 KB for each thread that has counted in it, up to eight: the lower figures if it had
    /// no streams.
    pub fn max_rows(mut self, rows: usize) -> Self {
        self.rows.max_rows = rows;
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP; their tokens are
    /// not known.
    pub fn watch<V>(self, watch: V) -> MonitorBuilder<V> {
        MonitorBuilder {
            rows: self.rows,
            alerts: self.alerts,
            records: self.records,
            id_header: self.id_header,
            watch,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a threshold is [invalid](Alerts::new), if `max_rows` or `records` is zero, if `records` is over a million, or if there are over 1,000 models, 50 providers or 50
    /// operations.
    pub fn build(self) -> Result<MonitorLayer<W>, ConfigError> {
        let Settings {
            providers,
            operations,
            models,
            prices,
            max_rows,
        } = &self.rows;
        ConfigError::check_nonzero("max_rows", *max_rows)?;
        if let Some(capacity) = self.records {
            ConfigError::check_nonzero("records", capacity)?;
            if capacity > MAX_RECORDS {
                return Err(ConfigError::new(
                    "records",
                    capacity,
                    "it must be at most a million",
                ));
            }
        }
        for (field, names, most) in [
            ("models", models.len() + prices.models().count(), MAX_MODELS),
            ("provider", providers.len(), MAX_OTHERS),
            ("operation", operations.len(), MAX_OTHERS),
        ] {
            if names > most {
                return Err(ConfigError::new(field, names, "there are too many names"));
            }
        }
        let alerts = Alerts::new(self.alerts.iter().cloned())?;
        Ok(self.make(alerts))
    }

    fn make(self, alerts: Alerts) -> MonitorLayer<W> {
        let rows = Rows::new(self.rows);
        let records = self
            .records
            .map(|capacity| Queue::new(capacity, self.id_header));
        let shared = Shared::new(rows, alerts, records, Instant::now());
        MonitorLayer {
            shared: Arc::new(shared),
            watch: self.watch,
        }
    }
}
