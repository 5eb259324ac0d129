use bytes::Bytes;
use fred::{types::Value, util::redis_keyslot};

use crate::{Arg, Script};

/// A script with its keys and arguments, which is sent again if the server reports that it did not run.
pub(crate) struct Request<'a> {
    script: &'a Script,
    /// The number of keys, the keys, the arguments.
    rest: Vec<Value>,
    slot: Option<u16>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(script: &'a Script, keys: Vec<String>, args: Vec<Arg>) -> Self {
        let slot = keys.first().map(|key| redis_keyslot(key.as_bytes()));
        let mut rest = Vec::with_capacity(1 + keys.len() + args.len());
        // No machine holds so many keys that their number would not fit.
        rest.push(Value::Integer(
            i64::try_from(keys.len()).unwrap_or(i64::MAX),
        ));
        rest.extend(keys.into_iter().map(|key| Value::Bytes(key.into())));
        rest.extend(args.into_iter().map(|arg| arg.0));
        Self { script, rest, slot }
    }

    /// The slot of the first key; the server checks that the others are in it too. `None` without keys.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.slot
    }

    /// The arguments of EVALSHA.
    pub(crate) fn by_name(&self) -> Vec<Value> {
        self.after(self.script.name())
    }

    /// The arguments of EVAL.
    pub(crate) fn by_text(&self) -> Vec<Value> {
        self.after(Bytes::from_static(self.script.text().as_bytes()))
    }

    fn after(&self, script: Bytes) -> Vec<Value> {
        let mut all = Vec::with_capacity(1 + self.rest.len());
        all.push(Value::Bytes(script));
        // Almost all are reference-counted: nothing large is copied.
        all.extend_from_slice(&self.rest);
        all
    }
}
