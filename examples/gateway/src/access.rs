//! The gateway's own keys: which requests may use the provider credentials of its owner.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, header::AUTHORIZATION, request::Parts,
    uri::PathAndQuery,
};
use percent_encoding::percent_decode_str;
use ring::{hmac, rand::SystemRandom};
use subtle::ConstantTimeEq;
use tower_llm_stack::Caller;

use crate::{Secret, StartError, error::Reason, secret::CallerSecret};

/// Every header in which one of the dialects' clients sends its credential.
pub(crate) const CREDENTIALS: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Longest key, and longest credential that is compared with one.
const MAX_KEY_BYTES: usize = 1024;

/// Shortest key that is not warned of.
const SHORT_KEY_BYTES: usize = 16;

/// The callers that may use the gateway.
#[derive(Debug)]
pub(crate) enum Access {
    /// Every client that can connect.
    Open,
    /// Requests with one of these keys; no request if there are none.
    Keys(Box<Keys>),
}

/// The gateway's keys, as digests under a secret that is made at each start.
///
/// A caller cannot predict a digest, so the time that comparing takes tells nothing of a key, not even its length.
pub(crate) struct Keys {
    secret: hmac::Key,
    digests: Vec<hmac::Tag>,
    /// The caller of each key.
    callers: Arc<[Caller]>,
}

/// Which of the gateway's keys a request came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyNumber(usize);

// === impl Access ===

impl Access {
    /// What `GATEWAY_KEYS` asks for, or its default: open as long as there is no credential to protect.
    ///
    /// `name` is what the setting was given by, and `secret` names the callers. Adds to `notices` what the operator should
    /// know.
    pub(crate) fn new(
        keys: Option<&Secret>,
        name: &str,
        credential: Option<&str>,
        secret: Option<&CallerSecret>,
        notices: &mut Vec<String>,
    ) -> Result<Self, StartError> {
        let list = keys.map_or("", Secret::expose);
        if list.is_empty() {
            let Some(credential) = credential else {
                return Ok(Self::Open);
            };
            notices.push(format!(
                "{credential} is set and GATEWAY_KEYS is not, so every call is refused with 401. Set GATEWAY_KEYS to a \
                 comma-separated list of keys for your callers, or to `none` to let everybody use your credentials."
            ));
            return Ok(Self::Keys(Box::new(Keys::new(&[], secret)?)));
        }
        if list.eq_ignore_ascii_case("none") {
            let cost = match credential {
                Some(credential) => format!("; each call spends the money of {credential}"),
                None => String::new(),
            };
            notices.push(format!(
                "{name}=none: every client that reaches this port can use the gateway without a key{cost}."
            ));
            return Ok(Self::Open);
        }
        let keys = parse(list).map_err(|what| StartError::setting(name, what))?;
        for (index, _) in keys
            .iter()
            .enumerate()
            .filter(|(_, key)| key.len() < SHORT_KEY_BYTES)
        {
            notices.push(format!(
                "{name}: key {} has fewer than {SHORT_KEY_BYTES} characters and may be guessed; `openssl rand -hex 32` makes \
                 a good one.",
                index + 1
            ));
        }
        Ok(Self::Keys(Box::new(Keys::new(&keys, secret)?)))
    }
}

/// The keys in a list. Errors name a key's position, never the key.
fn parse(list: &str) -> Result<Vec<&str>, String> {
    let keys = list.split(',').map(str::trim);
    let keys: Vec<&str> = keys.filter(|key| !key.is_empty()).collect();
    if keys.is_empty() {
        return Err("has no key in it; `none` runs the gateway without keys".to_owned());
    }
    for (index, key) in keys.iter().enumerate() {
        let wrong = |what| Err(format!("key {} {what} (the value is not shown)", index + 1));
        if key.eq_ignore_ascii_case("none") {
            return wrong("is `none`, which must stand alone");
        }
        if key.len() > MAX_KEY_BYTES {
            return wrong("is longer than 1024 bytes");
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("has characters that a header must not have");
        }
    }
    Ok(keys)
}

// === impl Keys ===

impl Keys {
    /// `names` names the callers; without it, they are numbered.
    pub(crate) fn new(keys: &[&str], names: Option<&CallerSecret>) -> Result<Self, StartError> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Reason::Randomness)?;
        let digests = keys
            .iter()
            .map(|key| hmac::sign(&secret, key.as_bytes()))
            .collect();
        let caller = |(index, key): (usize, &&str)| match names {
            Some(names) => names.caller(key),
            None => Caller::named(format!("gateway key {}", index + 1)),
        };
        let callers = keys.iter().enumerate().map(caller).collect();
        Ok(Self {
            secret,
            digests,
            callers,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The key with this number in the list, from 1.
    pub(crate) fn number(&self, number: u64) -> Option<KeyNumber> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        (index < self.digests.len()).then_some(KeyNumber(index))
    }

    /// The caller that sends this key, under a name that may be logged.
    pub(crate) fn caller(&self, key: KeyNumber) -> &Caller {
        &self.callers[key.0]
    }

    /// Names the caller of a request whose key was [taken](Self::take).
    pub(crate) fn caller_by(&self) -> impl Fn(&Parts) -> Option<Caller> + Send + Sync + 'static {
        let callers = Arc::clone(&self.callers);
        move |parts| {
            let KeyNumber(index) = parts.extensions.get()?;
            callers.get(*index).cloned()
        }
    }

    /// Which key `credential` is.
    pub(crate) fn find(&self, credential: &[u8]) -> Option<KeyNumber> {
        if self.is_empty() || credential.is_empty() || credential.len() > MAX_KEY_BYTES {
            return None;
        }
        let digest = hmac::sign(&self.secret, credential);
        let mut found = None;
        // All of them, whichever it is.
        for (index, known) in self.digests.iter().enumerate() {
            if bool::from(known.as_ref().ct_eq(digest.as_ref())) {
                found = found.or(Some(KeyNumber(index)));
            }
        }
        found
    }

    /// The key that a request came with, taken out of it: no provider may see it.
    ///
    /// It may stand in any header in which clients send credentials, or in Gemini's `?key=`. What else stands there is the
    /// caller's own, for a provider that the gateway has no credential for.
    pub(crate) fn take(&self, parts: &mut Parts) -> Option<KeyNumber> {
        let mut found = None;
        for name in &CREDENTIALS {
            self.take_header(&mut parts.headers, name, &mut found);
        }
        let uri = without_query(&parts.uri, |name, value| {
            if decoded(name) != b"key" {
                return false;
            }
            let key = self
                .find(value.as_bytes())
                .or_else(|| self.find(&decoded(value)));
            found = found.or(key);
            key.is_some()
        });
        if let Some(uri) = uri {
            parts.uri = uri;
        }
        found
    }

    /// Removes those values of the header `name` that are keys.
    fn take_header(
        &self,
        headers: &mut HeaderMap,
        name: &HeaderName,
        found: &mut Option<KeyNumber>,
    ) {
        let mut others = Vec::new();
        let mut has_key = false;
        for value in headers.get_all(name) {
            match self.find_in(value) {
                Some(key) => {
                    *found = found.or(Some(key));
                    has_key = true;
                }
                None => others.push(value.clone()),
            }
        }
        if !has_key {
            return;
        }
        headers.remove(name);
        for value in others {
            headers.append(name, value);
        }
    }

    /// The key in a header's value: all of it, or what follows `Bearer` or another scheme.
    pub(crate) fn find_in(&self, value: &HeaderValue) -> Option<KeyNumber> {
        let value = value.as_bytes().trim_ascii();
        let scheme_end = value.iter().position(u8::is_ascii_whitespace);
        let credential = scheme_end.map(|end| value[end..].trim_ascii_start());
        self.find(value).or_else(|| self.find(credential?))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.digests.len())
    }
}

/// The address without the query's pairs that `removes` picks; `None` if there are none.
pub(crate) fn without_query(uri: &Uri, mut removes: impl FnMut(&str, &str) -> bool) -> Option<Uri> {
    let query = uri.query()?;
    let pairs = query.split('&');
    let kept: Vec<&str> = pairs
        .filter(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            !removes(name, value)
        })
        .collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    let path = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// A query's name or value, decoded.
pub(crate) fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn keys(list: &[&str]) -> Keys {
        Keys::new(list, None).unwrap()
    }

    fn parts(uri: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn access(list: &str, credential: Option<&'static str>) -> (Access, Vec<String>) {
        let mut notices = Vec::new();
        let secret: Secret = list.parse().unwrap();
        let access = Access::new(
            Some(&secret),
            "GATEWAY_KEYS",
            credential,
            None,
            &mut notices,
        );
        (access.unwrap(), notices)
    }

    #[test]
    fn a_key_is_taken_from_wherever_a_client_puts_it() {
        let keys = keys(&["one", "two"]);
        for header in [
            ("authorization", "Bearer two"),
            ("authorization", "bearer  two"),
            ("authorization", "two"),
            ("x-api-key", "two"),
            ("x-api-key", " two "),
            ("api-key", "two"),
            ("x-goog-api-key", "two"),
        ] {
            let mut parts = parts("/v1/messages?x=1", &[header]);
            assert_eq!(keys.take(&mut parts), Some(KeyNumber(1)), "{header:?}");
            assert!(parts.headers.is_empty(), "{header:?}");
            assert_eq!(parts.uri, "/v1/messages?x=1");
        }
        for uri in [
            "/m?key=two",
            "/m?%6Bey=two",
            "/m?key=t%77o",
            "/m?key=no&key=two",
        ] {
            let mut parts = parts(uri, &[]);
            assert_eq!(keys.take(&mut parts), Some(KeyNumber(1)), "{uri}");
            assert!(!parts.uri.to_string().contains("two"), "{uri}");
        }
    }

    #[test]
    fn nothing_else_is_a_key() {
        let keys = keys(&["a-key-of-this-gateway"]);
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "a-key-of-this-gatewa",
            "a-key-of-this-gateway2",
            "A-KEY-OF-THIS-GATEWAY",
            "Bearer a-key-of-this-gateway, Bearer x",
            "Bearer Bearer a-key-of-this-gateway",
            "Basic YS1rZXktb2YtdGhpcy1nYXRld2F5",
        ] {
            let mut parts = parts("/v1/messages?key=&key", &[("authorization", value)]);
            assert_eq!(keys.take(&mut parts), None, "{value}");
            assert_eq!(parts.headers["authorization"], value, "left as it was");
        }
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        assert_eq!(keys.find(long.as_bytes()), None);
        // With no keys nothing is one, not even nothing.
        let none = Keys::new(&[], None).unwrap();
        assert_eq!(none.find(b""), None);
        assert_eq!(none.take(&mut parts("/?key=", &[("x-api-key", "")])), None);
    }

    #[test]
    fn every_value_that_is_a_key_goes_and_the_caller_s_own_stay() {
        let keys = keys(&["one", "two"]);
        let mut parts = parts(
            "/m?key=one&alt=sse&key=own",
            &[
                ("authorization", "Bearer own"),
                ("authorization", "Bearer two"),
                ("authorization", "Bearer own-too"),
                ("x-api-key", "one"),
                ("x-goog-api-key", "own"),
            ],
        );
        // Of two keys, the same one each time.
        assert_eq!(keys.take(&mut parts), Some(KeyNumber(1)));
        let left: Vec<_> = parts.headers.get_all("authorization").iter().collect();
        assert_eq!(left, ["Bearer own", "Bearer own-too"]);
        assert!(!parts.headers.contains_key("x-api-key"));
        assert_eq!(parts.headers["x-goog-api-key"], "own");
        assert_eq!(parts.uri, "/m?alt=sse&key=own");
    }

    #[test]
    fn two_starts_have_other_digests() {
        let digest = |keys: &Keys| keys.digests[0].as_ref().to_vec();
        assert_ne!(digest(&keys(&["one"])), digest(&keys(&["one"])));
    }

    #[test]
    fn with_a_secret_a_caller_is_its_key_wherever_it_stands_in_the_list() {
        let secret = CallerSecret::from("secret");
        let one = Keys::new(&["alice", "bob"], Some(&secret)).unwrap();
        let other = Keys::new(&["bob", "alice"], Some(&secret)).unwrap();
        assert_eq!(one.caller(KeyNumber(0)), other.caller(KeyNumber(1)));
        assert_ne!(one.caller(KeyNumber(0)), other.caller(KeyNumber(0)));
        let mut parts = parts("/m", &[("x-api-key", "alice")]);
        let number = one.take(&mut parts).unwrap();
        parts.extensions.insert(number);
        let caller = one.caller_by()(&parts).unwrap();
        assert_eq!(&caller, one.caller(KeyNumber(0)));
        assert!(!caller.as_str().contains("alice"));
    }

    #[test]
    fn a_credential_closes_the_gateway_until_keys_are_chosen() {
        let mut notices = Vec::new();
        let open = Access::new(None, "GATEWAY_KEYS", None, None, &mut notices).unwrap();
        assert!(matches!(open, Access::Open) && notices.is_empty());

        for unset in [None, Some("".parse().unwrap()), Some("  ".parse().unwrap())] {
            let mut notices = Vec::new();
            let credential = Some("OPENAI_API_KEY");
            let closed = Access::new(
                unset.as_ref(),
                "GATEWAY_KEYS",
                credential,
                None,
                &mut notices,
            );
            assert!(matches!(closed.unwrap(), Access::Keys(keys) if keys.is_empty()));
            assert_eq!(notices.len(), 1);
            assert!(notices[0].contains("GATEWAY_KEYS") && notices[0].contains("OPENAI_API_KEY"));
        }

        for credential in [None, Some("OPENAI_API_KEY")] {
            for none in ["none", "None", " NONE "] {
                let (access, notices) = access(none, credential);
                assert!(matches!(access, Access::Open));
                assert!(notices[0].contains("GATEWAY_KEYS"), "{notices:?}");
            }
            let (access, notices) = access("a-long-enough-key-1, a-long-enough-key-2,", credential);
            assert!(matches!(access, Access::Keys(keys) if keys.digests.len() == 2));
            assert_eq!(notices, <[String; 0]>::default());
        }
    }

    #[test]
    fn a_list_that_cannot_be_is_refused_without_being_shown() {
        let long = "hidden".repeat(200);
        for list in [
            ",",
            " , ",
            "hidden,none",
            "hid den",
            "hidden,hidd\u{7f}en",
            "hiddén",
            &long,
        ] {
            let mut notices = Vec::new();
            let secret: Secret = list.parse().unwrap();
            let error =
                Access::new(Some(&secret), "GATEWAY_KEYS", None, None, &mut notices).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("GATEWAY_KEYS: "), "{error}");
            assert!(!error.contains("hid"), "{error}");
        }
    }

    #[test]
    fn no_key_is_shown() {
        let (access, notices) = access("hidden,hidden-too", Some("OPENAI_API_KEY"));
        assert_eq!(format!("{access:?}"), "Keys(Keys(2))");
        // That they are short is said of them by number.
        assert_eq!(notices.len(), 2);
        assert!(!notices.concat().contains("hidden"), "{notices:?}");
        let keys = keys(&["hidden"]);
        assert_eq!(keys.caller(KeyNumber(0)).as_str(), "gateway key 1");
    }

    #[test]
    fn pairs_are_removed_from_a_query_by_their_decoded_names() {
        let without = |uri| {
            let removed = without_query(&Uri::from_static(uri), |name, _| decoded(name) == b"key");
            removed.map(|uri| uri.to_string())
        };
        assert_eq!(
            without("/m?alt=sse&key=k&x=1").as_deref(),
            Some("/m?alt=sse&x=1")
        );
        assert_eq!(without("/m?key=k").as_deref(), Some("/m"));
        assert_eq!(without("/m?%6bey=k").as_deref(), Some("/m"));
        assert_eq!(without("http://h/m?key").as_deref(), Some("http://h/m"));
        assert_eq!(without("/m?keys=1&monkey=2"), None);
        assert_eq!(without("/m"), None);
    }
}
