use std::{fmt, sync::OnceLock};

use bytes::Bytes;
use sha1_smol::Sha1;

/// A Lua script with its SHA-1.
///
/// Create it once, preferably as a `static`, so that its text is hashed once.
///
/// Each Redis node stores a script until it restarts or gets a `SCRIPT FLUSH`. [`Redis::run`] sends the hash, and the text
/// only if the server does not have the script.
///
/// All keys that a script uses must be passed as keys, and on a Cluster they must share a hash tag (`{..}`).
///
/// ```
/// use tower_llm_redis::Script;
///
/// static TAKE: Script = Script::new("return redis.call('DECRBY', KEYS[1], ARGV[1])");
/// ```
///
/// [`Redis::run`]: crate::Redis::run
pub struct Script {
    text: &'static str,
    name: OnceLock<Bytes>,
}

impl Script {
    /// Creates a script from its text, which may come from a file: `include_str!("take.lua")`.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            name: OnceLock::new(),
        }
    }

    /// Its text.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// The SHA-1 of its text, 40 hex digits.
    pub(crate) fn name(&self) -> Bytes {
        let name = || Sha1::from(self.text).digest().to_string().into();
        self.name.get_or_init(name).clone()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_named_by_the_sha1_of_its_text() {
        let script = Script::new("return 1");
        assert_eq!(script.name(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
