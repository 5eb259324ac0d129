//! Which requests have one key, and which have different ones.

mod bypasses;
mod items;
mod members;
mod order;
mod request;
mod spelling;

use http::{HeaderValue, Request};
use tower_llm_core::{Caller, Provider};

use super::*;

/// A request, and what it is changed by.
#[derive(Clone)]
struct Case {
    settings: KeySettings,
    request: Request<()>,
    provider: Provider,
    operation: Operation,
    dialect: Option<Dialect>,
    model: &'static str,
    caller: Option<&'static str>,
    account: Option<&'static str>,
    body: String,
}

impl Case {
    fn new(path: &str, dialect: Dialect, body: &str) -> Self {
        let provider = match dialect {
            Dialect::Anthropic => Provider::ANTHROPIC,
            Dialect::Gemini => Provider::GEMINI,
            _ => Provider::OPENAI,
        };
        Self {
            settings: KeySettings::new(Scope::shared()),
            request: Request::post(path).body(()).unwrap(),
            provider,
            operation: Operation::CHAT,
            dialect: Some(dialect),
            model: "m",
            caller: None,
            account: None,
            body: body.into(),
        }
    }

    fn chat(body: &str) -> Self {
        Self::new("/v1/chat/completions", Dialect::OpenAi, body)
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut case = self.clone();
        change(&mut case);
        case
    }

    fn header(&self, name: &'static str, value: &'static str) -> Self {
        self.with(|case| {
            let value = HeaderValue::from_static(value);
            case.request.headers_mut().append(name, value);
        })
    }

    fn uri(&self, uri: &str) -> Self {
        self.with(|case| *case.request.uri_mut() = uri.parse().unwrap())
    }

    fn parts(&self) -> (Parts, Call) {
        let mut call = Call::builder(self.provider.clone(), self.operation.clone());
        if let Some(dialect) = self.dialect {
            call = call.dialect(dialect);
        }
        if let Some(caller) = self.caller {
            call = call.caller(Caller::named(caller));
        }
        if let Some(account) = self.account {
            call = call.account(account);
        }
        let (request, ()) = self.request.clone().into_parts();
        (request, call.model(self.model).build())
    }

    fn asked(&self) -> Result<Asked, Bypass> {
        let (request, call) = self.parts();
        read(&self.settings, &request, self.body.as_bytes(), &call, false)
    }

    /// Whether a policy for deterministic requests alone caches it.
    fn is_deterministic(&self) -> bool {
        let (request, call) = self.parts();
        let asked = read(&self.settings, &request, self.body.as_bytes(), &call, true);
        match asked {
            Ok(_) => true,
            Err(Bypass::NotDeterministic) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn digest(&self) -> [u8; 32] {
        *self.asked().unwrap().key.digest()
    }
}

fn all_differ(cases: &[Case]) {
    for (at, one) in cases.iter().enumerate() {
        for (other_at, other) in cases.iter().enumerate().skip(at + 1) {
            assert_ne!(one.digest(), other.digest(), "{at} and {other_at}");
        }
    }
}

fn all_equal(cases: &[Case]) {
    for (at, case) in cases.iter().enumerate() {
        assert_eq!(case.digest(), cases[0].digest(), "{at}");
    }
}
