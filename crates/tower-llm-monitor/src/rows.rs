//! The rows that calls are counted in: one for each provider, operation and model.
//!
//! Names are a closed set, so a row is found by three numbers, without a lock. A row is made by its first call. Each has a part
//! for each thread, up to a bound, so that threads that count at once do not meet.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
};

use foldhash::fast::RandomState;
use tower_llm_core::{Call, Operation, Provider};

use crate::{PriceTable, tally::Tally, used::Pricing};

/// Any name that is not known.
pub(crate) const OTHER: &str = "other";

const MAX_STRIPES: usize = 8;

static PROVIDERS: [Provider; 4] = [
    Provider::OPENAI,
    Provider::AZURE_OPENAI,
    Provider::ANTHROPIC,
    Provider::GEMINI,
];
static OPERATIONS: [Operation; 6] = [
    Operation::CHAT,
    Operation::EMBEDDINGS,
    Operation::GENERATE_CONTENT,
    Operation::TEXT_COMPLETION,
    Operation::COUNT_TOKENS,
    Operation::RETRIEVE,
];
/// Those of them that use no tokens.
static FREE: [Operation; 2] = [Operation::COUNT_TOKENS, Operation::RETRIEVE];

/// Which rows there may be.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Besides those that core names.
    pub(crate) providers: Vec<Box<str>>,
    /// Besides those that core names.
    pub(crate) operations: Vec<Box<str>>,
    /// Besides those that have a price.
    pub(crate) models: Vec<Box<str>>,
    pub(crate) prices: PriceTable,
    pub(crate) max_rows: usize,
}

/// Names, and `other` as the last one.
#[derive(Debug)]
struct Names(Vec<Arc<str>>);

/// The names of models, which may be many.
#[derive(Debug)]
struct Models {
    names: Names,
    by_name: HashMap<Arc<str>, usize, RandomState>,
}

/// All rows.
#[derive(Debug)]
pub(crate) struct Rows {
    providers: Names,
    operations: Names,
    models: Models,
    prices: PriceTable,
    slots: Box<[OnceLock<Arc<Row>>]>,
    /// In the order in which they were made; the first one is for calls that have no row of their own.
    made: RwLock<Vec<Arc<Row>>>,
    max_rows: usize,
    stripes: usize,
}

/// What calls of one provider, operation and model add up to.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) labels: Arc<Labels>,
    stripes: Box<[OnceLock<Arc<Stripe>>]>,
}

/// What tells a row from the others.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) provider: Arc<str>,
    pub(crate) operation: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) pricing: Pricing,
}

/// A part of a row.
// As large as two cache lines, which some processors fetch together: threads that write to two of them do not meet.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Stripe {
    pub(crate) labels: Arc<Labels>,
    begun: AtomicU64,
    tally: Mutex<Box<Tally>>,
}

// === impl Names ===

impl Names {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Vec::<Arc<str>>::new();
        for name in names {
            if name != OTHER && !all.iter().any(|known| **known == *name) {
                all.push(name.into());
            }
        }
        all.push(OTHER.into());
        Self(all)
    }

    fn other(&self) -> usize {
        self.0.len() - 1
    }

    /// For a few names.
    fn find(&self, name: &str) -> usize {
        let found = self.0.iter().position(|known| **known == *name);
        found.unwrap_or(self.other())
    }
}

// === impl Models ===

impl Models {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        // A set: there may be hundreds.
        let names: std::collections::BTreeSet<&str> = names.into_iter().collect();
        let mut names: Vec<Arc<str>> = names
            .into_iter()
            .filter(|name| *name != OTHER)
            .map(Arc::from)
            .collect();
        let by_name = names.iter().cloned().zip(0..).collect();
        names.push(OTHER.into());
        let names = Names(names);
        Self { names, by_name }
    }

    fn find(&self, model: Option<&str>) -> usize {
        let find = |model: &str| self.by_name.get(model).copied();
        let found = model.and_then(|model| find(model).or_else(|| find(undated(model)?)));
        found.unwrap_or(self.names.other())
    }
}

fn each(names: &[Box<str>]) -> impl Iterator<Item = &str> {
    names.iter().map(|name| &**name)
}

/// The name of a model without the date of its version: `-2025-08-07` or `-20250807`.
fn undated(model: &str) -> Option<&str> {
    let strip = |format: &str| {
        let (name, date) = model.split_at_checked(model.len().checked_sub(format.len())?)?;
        let is_date = date
            .bytes()
            .zip(format.bytes())
            .all(|(byte, format)| match format {
                b'0' => byte.is_ascii_digit(),
                _ => byte == format,
            });
        (is_date && !name.is_empty()).then_some(name)
    };
    strip("-0000-00-00").or_else(|| strip("-00000000"))
}

// === impl Rows ===

impl Rows {
    pub(crate) fn new(settings: Settings) -> Self {
        let Settings {
            providers,
            operations,
            models,
            prices,
            max_rows,
        } = settings;
        let known = PROVIDERS.iter().map(Provider::as_str);
        let providers = Names::new(known.chain(each(&providers)));
        let known = OPERATIONS.iter().map(Operation::as_str);
        let operations = Names::new(known.chain(each(&operations)));
        let models = Models::new(prices.models().chain(each(&models)));
        let slots = providers.0.len() * operations.0.len() * models.names.0.len();
        let stripes =
            thread::available_parallelism().map_or(1, |threads| threads.get().min(MAX_STRIPES));
        let rows = Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            made: RwLock::default(),
            providers,
            operations,
            models,
            prices,
            max_rows,
            stripes,
        };
        // There is always one.
        rows.row(None);
        rows
    }

    /// The part of the row of `call` that this thread counts in.
    pub(crate) fn stripe(&self, call: Option<&Call>) -> &Arc<Stripe> {
        self.row(call).stripe(self.stripes)
    }

    /// All rows, in the order in which they were made.
    pub(crate) fn made(&self) -> Vec<Arc<Row>> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        made.clone()
    }

    fn row(&self, call: Option<&Call>) -> &Arc<Row> {
        let (provider, operation, model) = match call {
            Some(call) => (
                self.providers.find(call.provider().as_str()),
                self.operations.find(call.operation().as_str()),
                self.models.find(call.model()),
            ),
            None => (
                self.providers.other(),
                self.operations.other(),
                self.models.names.other(),
            ),
        };
        let slot =
            (provider * self.operations.0.len() + operation) * self.models.names.0.len() + model;
        self.slots[slot].get_or_init(|| self.make(provider, operation, model))
    }

    #[cold]
    fn make(&self, provider: usize, operation: usize, model: usize) -> Arc<Row> {
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= self.max_rows
            && let Some(other) = made.first()
        {
            return Arc::clone(other);
        }
        let operation = &self.operations.0[operation];
        let model = &self.models.names.0[model];
        let is_free = FREE.iter().any(|free| *free.as_str() == **operation);
        let pricing = match self.prices.get(model) {
            _ if is_free => Pricing::Free,
            Some(price) => Pricing::Known(price),
            None => Pricing::Unknown,
        };
        let labels = Labels {
            provider: Arc::clone(&self.providers.0[provider]),
            operation: Arc::clone(operation),
            model: Arc::clone(model),
            pricing,
        };
        let row = Arc::new(Row {
            labels: Arc::new(labels),
            stripes: (0..self.stripes).map(|_| OnceLock::new()).collect(),
        });
        made.push(Arc::clone(&row));
        row
    }

    pub(crate) fn prices(&self) -> &PriceTable {
        &self.prices
    }
}

// === impl Row ===

impl Row {
    fn stripe(&self, stripes: usize) -> &Arc<Stripe> {
        self.stripes[of_this_thread() % stripes].get_or_init(|| Arc::new(Stripe::new(&self.labels)))
    }

    /// The parts that have counted something.
    pub(crate) fn stripes(&self) -> impl Iterator<Item = &Arc<Stripe>> {
        self.stripes.iter().filter_map(OnceLock::get)
    }
}

/// A number of this thread: threads that are started one after another have different ones.
fn of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.get().unwrap_or_else(|| {
        let own = NEXT.fetch_add(1, Relaxed);
        OWN.set(Some(own));
        own
    })
}

// === impl Stripe ===

impl Stripe {
    fn new(labels: &Arc<Labels>) -> Self {
        Self {
            labels: Arc::clone(labels),
            begun: AtomicU64::new(0),
            tally: Mutex::new(Box::new(Tally::new())),
        }
    }

    /// Counts a call that begins.
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Release);
    }

    /// Calls that have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Acquire)
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Box<Tally>> {
        // Sums are as good as they were, whatever panics.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(providers: &[&str], models: &[&str], prices: PriceTable, max_rows: usize) -> Rows {
        let boxed = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
        Rows::new(Settings {
            providers: boxed(providers),
            operations: Vec::new(),
            models: boxed(models),
            prices,
            max_rows,
        })
    }

    fn labels<'a>(rows: &'a Rows, provider: &'static str, model: &str) -> [&'a str; 3] {
        let call = Call::builder(Provider::new(provider), Operation::CHAT)
            .model(model)
            .build();
        let labels = &rows.row(Some(&call)).labels;
        [&labels.provider, &labels.operation, &labels.model]
    }

    #[test]
    fn names_that_are_not_known_are_other() {
        let prices =
            PriceTable::empty().set("priced", crate::Price::per_million(1.0, 1.0).unwrap());
        let rows = rows(&["mistral"], &["own", "own", OTHER], prices, 100);
        assert_eq!(labels(&rows, "openai", "own"), ["openai", "chat", "own"]);
        assert_eq!(
            labels(&rows, "mistral", "priced"),
            ["mistral", "chat", "priced"]
        );
        assert_eq!(labels(&rows, "unheard", "unheard"), [OTHER, "chat", OTHER]);
        assert_eq!(rows.models.names.0.len(), 3);
    }

    #[test]
    fn a_dated_version_is_counted_as_its_model_unless_it_has_a_name_of_its_own() {
        let rows = rows(&[], &["gpt", "gpt-2024-05-13"], PriceTable::empty(), 100);
        for (model, row) in [
            ("gpt-2024-05-14", "gpt"),
            ("gpt-20240514", "gpt"),
            ("gpt-2024-05-13", "gpt-2024-05-13"),
            ("gpt-2024-05", OTHER),
            ("gpt-2024x05-14", OTHER),
            ("-20240514", OTHER),
            ("é20240514", OTHER),
        ] {
            assert_eq!(labels(&rows, "openai", model)[2], row, "{model}");
        }
    }

    #[test]
    fn calls_beyond_the_last_row_share_the_first() {
        let rows = rows(&[], &["a", "b", "c"], PriceTable::empty(), 3);
        for (model, row) in [
            ("a", "a"),
            ("b", "b"),
            ("c", OTHER),
            ("a", "a"),
            ("c", OTHER),
        ] {
            assert_eq!(labels(&rows, "openai", model)[2], row);
        }
        assert_eq!(rows.made().len(), 3);
    }
}
