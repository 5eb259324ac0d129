//! Keys of typed requests.

use std::any::type_name;

use serde::Serialize;
use tower_llm_core::{Call, Described};

use super::{CacheKey, KeySettings, Scratch, bypass::Bypass, canonical, place::Place};

/// Changes when the bytes that are hashed do; another one than that of HTTP requests.
const SCHEMA: &str = "tower-llm-cache typed key 1";

/// What decides the answer to a typed request, beside its provider, operation and model.
///
/// ```
/// use tower_llm_cache::KeyContent;
///
/// #[derive(serde::Serialize)]
/// struct Question {
///     text: String,
///     temperature: f32,
///     /// Does not change the answer.
///     #[serde(skip)]
///     trace: u64,
/// }
///
/// let all_of_it = |question: &Question| KeyContent::json(question);
/// let a_part = |question: &Question| KeyContent::json(&(&question.text, question.temperature));
/// let if_deterministic = |question: &Question| match question.temperature {
///     0.0 => KeyContent::bytes(&question.text),
///     _ => KeyContent::uncached(),
/// };
/// # let question = Question { text: String::new(), temperature: 1.0, trace: 0 };
/// # let _ = (all_of_it(&question), a_part(&question), if_deterministic(&question));
/// ```
#[derive(Clone, Debug)]
pub struct KeyContent(Result<Content, Bypass>);

#[derive(Clone, Debug)]
struct Content {
    format: &'static str,
    digest: [u8; 32],
}

impl KeyContent {
    /// The value as JSON. The order of an object's members does not matter.
    ///
    /// All that changes the answer must be in it: fields that serde skips do not split answers, and, in JSON, floats that are
    /// not finite are `null`. The request bypasses the cache if the value cannot be serialized, or has an object with two
    /// members of one name.
    #[must_use]
    pub fn json(value: &(impl Serialize + ?Sized)) -> Self {
        let json = serde_json::to_vec(value).map_err(|_| Bypass::NotJson);
        Self(json.and_then(|json| {
            Scratch::with(|Scratch { arena, buffer }| {
                buffer.clear();
                canonical::write(arena.read(&json)?, Place::Data, buffer);
                Ok(Content::of("json", buffer.as_slice()))
            })
        }))
    }

    /// The bytes, which are in a format of your own.
    #[must_use]
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self(Ok(Content::of("bytes", bytes.as_ref())))
    }

    /// Of a request that bypasses the cache.
    #[must_use]
    pub const fn uncached() -> Self {
        Self(Err(Bypass::NoStore))
    }
}

impl Content {
    fn of(format: &'static str, bytes: &[u8]) -> Self {
        Self {
            format,
            digest: *blake3::hash(bytes).as_bytes(),
        }
    }
}

impl KeySettings {
    /// The key of the answer, of type `R`, to a typed request.
    ///
    /// # Errors
    ///
    /// [`Bypass`] if it must not be answered from the cache.
    pub(crate) fn typed<Req: Described, R>(
        &self,
        request: &Req,
        call: &Call,
        content: KeyContent,
    ) -> Result<CacheKey, Bypass> {
        let content = content.0?;
        Scratch::with(|Scratch { buffer, .. }| {
            buffer.clear();
            buffer.text(SCHEMA);
            buffer.text(&self.namespace);
            self.scope
                .write(call, |name| request.header(name.as_str()), buffer)?;
            Self::write_call(call, buffer)?;
            for name in &self.headers {
                buffer.text(name.as_str());
                let value = request.header(name.as_str());
                buffer.tag(value.is_some().into());
                buffer.bytes(value.unwrap_or_default());
            }
            // The same content in another type is another request.
            buffer.text(type_name::<Req>());
            buffer.text(type_name::<R>());
            buffer.text(content.format);
            buffer.bytes(&content.digest);
            Ok(CacheKey::new(call, self.digest(buffer)))
        })
    }
}
