//! The secret by which gateways recognize the same callers.

use std::fmt;

use ring::hmac;
use tower_llm_stack::Caller;

use crate::{Secret, Settings, StartError, settings::Names};

const MIN_CHARACTERS: usize = 32;

/// Makes names of credentials: the same ones in all gateways that have the same secret. A name does not tell its credential.
pub(crate) struct CallerSecret(hmac::Key);

impl CallerSecret {
    /// The configured secret; required if gateways share.
    pub(crate) fn new(settings: &Settings) -> Result<Option<Self>, StartError> {
        let (sharing, names) = (&settings.sharing, &settings.names);
        let Some(secret) = &sharing.caller_secret else {
            return match sharing.redis_url {
                Some(_) => Err(missing(names)),
                None => Ok(None),
            };
        };
        let secret = check(secret, names.of("--caller-secret"))?;
        Ok(Some(Self::from(secret)))
    }

    /// The key of the digests of credentials.
    pub(crate) fn of_credentials(&self) -> [u8; 16] {
        bytes(self.derive("credentials", b""))
    }

    /// The caller with one of the gateway's keys.
    pub(crate) fn caller(&self, key: &str) -> Caller {
        Caller::named(format!(
            "gateway key {}",
            self.name("key", key.as_bytes(), 16)
        ))
    }

    /// The account of a credential of the owner's. One that replaces it is another account, with circuits of its own.
    pub(crate) fn account(&self, credential: &[u8]) -> String {
        format!("gateway {}", self.name("account", credential, 16))
    }

    /// The secret of the keys of cached answers: without it, a reader of Redis can test which prompt is behind a key.
    pub(crate) fn of_cache_keys(&self) -> [u8; 32] {
        bytes(self.derive("cache keys", b""))
    }

    /// What tells apart gateways that have different secrets and the same Redis.
    pub(crate) fn namespace(&self) -> String {
        format!("gateway-{}", self.name("namespace", b"", 4))
    }

    fn name(&self, purpose: &str, data: &[u8], bytes: usize) -> String {
        let digest = self.derive(purpose, data);
        let bytes = digest.as_ref().iter().take(bytes);
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    fn derive(&self, purpose: &str, data: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(purpose.as_bytes());
        context.update(&[0]);
        context.update(data);
        context.sign()
    }
}

/// The key that seals cached answers in Redis, made of the configured secret.
pub(crate) fn of_sealed_answers(settings: &Settings) -> Result<Option<[u8; 32]>, StartError> {
    let Some(secret) = &settings.cache.secret else {
        return Ok(None);
    };
    let secret = check(secret, settings.names.of("--cache-secret"))?;
    Ok(Some(bytes(
        CallerSecret::from(secret).derive("sealed answers", b""),
    )))
}

/// The secret, if it is long enough not to be guessed.
fn check<'a>(secret: &'a Secret, name: &str) -> Result<&'a str, StartError> {
    let secret = secret.expose();
    if secret.chars().count() < MIN_CHARACTERS {
        let what = format!(
            "has fewer than {MIN_CHARACTERS} characters; `openssl rand -hex 32` makes a good one (the value is not shown)"
        );
        return Err(StartError::setting(name, what));
    }
    Ok(secret)
}

fn bytes<const N: usize>(digest: hmac::Tag) -> [u8; N] {
    std::array::from_fn(|index| digest.as_ref()[index])
}

fn missing(names: &Names) -> StartError {
    // Named like the one that is set.
    let name = match names.is_variable("--redis-url") {
        true => "GATEWAY_CALLER_SECRET",
        false => "--caller-secret",
    };
    let what = format_args!(
        "must be set, because {} is: without it, a caller is a different one in each gateway. Set it to the same value in \
         all of them, such as the output of `openssl rand -hex 32`",
        names.of("--redis-url")
    );
    StartError::setting(name, what)
}

impl From<&str> for CallerSecret {
    fn from(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }
}

impl fmt::Debug for CallerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_for_the_same_secret_alone() {
        let (one, same, other) = ["one", "one", "other"].map(CallerSecret::from).into();
        assert_eq!(one.caller("key"), same.caller("key"));
        assert_ne!(one.caller("key"), one.caller("another key"));
        assert_ne!(one.caller("key"), other.caller("key"));
        assert_ne!(one.account(b"key"), other.account(b"key"));
        assert_ne!(one.namespace(), other.namespace());
        assert_ne!(one.of_credentials(), other.of_credentials());
        // Each purpose has its own names.
        let digest = |name: &str| name.rsplit(' ').next().map(str::to_owned);
        assert_ne!(
            digest(one.caller("key").as_str()),
            digest(&one.account(b"key"))
        );
        assert_eq!(one.namespace().len(), "gateway-".len() + 8);
        assert!(!format!("{one:?}").contains("one"));
    }
}
