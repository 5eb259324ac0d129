//! What an account makes of a caller's request.

use std::{collections::HashMap, sync::Arc};

use http::{Request, header::EXPECT};
use tower_llm_core::{
    BoxError, Call, ClassifiedError, Dialect, Outcome, Provider, RequestBody, rename_model,
};

use super::{
    Credential,
    credential::{self, Kind},
    headers,
};
use crate::adapters::base_url::BaseUrl;

/// An account at a provider: its address, its credential, and its names of models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Account(Arc<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    name: Box<str>,
    provider: Provider,
    dialect: Dialect,
    base: BaseUrl,
    credential: Credential,
    models: HashMap<Box<str>, Box<str>>,
}

impl Account {
    /// Creates an account that passes the caller's own credential and all model names.
    ///
    /// `name` is the [account](Call::account) of its calls: it may be shown, and it tells the accounts of a provider apart.
    pub fn new(name: impl Into<Box<str>>, provider: Provider, base: BaseUrl) -> Self {
        let dialect = match provider {
            ref provider if *provider == Provider::ANTHROPIC => Dialect::Anthropic,
            ref provider if *provider == Provider::GEMINI => Dialect::Gemini,
            _ => Dialect::OpenAi,
        };
        Self(Arc::new(Parts {
            name: name.into(),
            dialect,
            provider,
            base: base.replacing(),
            credential: Credential::caller(),
            models: HashMap::new(),
        }))
    }

    /// Sets the dialect of its requests; that of the provider, or else `OpenAI`'s, unless set. It says which header the
    /// caller's own credential passes in.
    #[must_use]
    pub fn dialect(self, dialect: Dialect) -> Self {
        self.with(|parts| parts.dialect = dialect)
    }

    /// Sets the credential; the caller's own unless set.
    #[must_use]
    pub fn credential(self, credential: Credential) -> Self {
        self.with(|parts| parts.credential = credential)
    }

    /// Adds a model that the provider knows by another name than callers; other names pass as they are.
    #[must_use]
    pub fn model(self, callers: impl Into<Box<str>>, own: impl Into<Box<str>>) -> Self {
        self.with(|parts| drop(parts.models.insert(callers.into(), own.into())))
    }

    fn with(mut self, set: impl FnOnce(&mut Parts)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns its provider.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.0.provider
    }

    /// Returns its address.
    #[must_use]
    pub fn base_url(&self) -> &BaseUrl {
        &self.0.base
    }

    /// Returns its name of a caller's model.
    #[must_use]
    pub fn model_of<'a>(&'a self, callers: &'a str) -> &'a str {
        self.mapped(callers).unwrap_or(callers)
    }

    fn mapped(&self, callers: &str) -> Option<&str> {
        Some(self.0.models.get(callers)?)
    }

    /// Describes a caller's call as it is sent to this account: its provider, its account and its model, by which the layers
    /// of the account key and count. A call that was described for this account is returned as it is.
    #[must_use]
    pub fn describe(&self, call: &Call) -> Call {
        if call.account() == Some(self.name()) {
            return call.clone();
        }
        let described = call
            .to_builder()
            .provider(self.0.provider.clone())
            .account(self.name());
        match call.model().and_then(|model| self.mapped(model)) {
            Some(model) => described.model(model).build(),
            None => described.build(),
        }
    }

    /// Its dialect.
    pub(super) fn speaks(&self) -> Dialect {
        self.0.dialect
    }

    /// Whether it has a credential of its own.
    pub(super) fn has_credential(&self) -> bool {
        !matches!(self.kind(), Kind::Caller)
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0.credential.0
    }

    /// Makes of a caller's request the one that is sent, but for the account's own credential.
    pub(super) fn prepare<B>(&self, request: &mut Request<RequestBody<B>>) -> Result<(), BoxError> {
        let parts = &*self.0;
        headers::remove_hop_by_hop(request.headers_mut());
        // `expect: 100-continue` concerns only the connection to the caller.
        request.headers_mut().remove(EXPECT);
        match parts.credential.0 {
            Kind::Caller => {
                let is_gemini = parts.provider == Provider::GEMINI;
                let key_header = credential::key_header(&parts.provider, parts.dialect);
                headers::keep_credential(request, &key_header, is_gemini);
            }
            Kind::Header(..) | Kind::Tokens(_) => headers::remove_choices(request),
        }
        if !parts.models.is_empty() {
            rename_model(request, |model| self.mapped(model));
        }
        if let Some(call) = request.extensions().get::<Call>() {
            let call = self.describe(call);
            request.extensions_mut().insert(call);
        }
        let joined = parts.base.apply(request);
        joined.map_err(|error| ClassifiedError::new(Outcome::ClientError, error).into())
    }
}
