use bytes::Bytes;
use fred::{types::Value, util::redis_keyslot};

use crate::{Arg, Script};

/// A script or a command, which is sent again if the server reports that it did not run.
pub(crate) struct Request<'a> {
    what: What<'a>,
    /// Of a script, the number of keys, the keys and the arguments; of a command, its arguments.
    args: Vec<Value>,
    slot: Option<u16>,
}

enum What<'a> {
    Script(&'a Script),
    Command(&'static str),
}

/// What is sent: the name of a command and its arguments.
pub(crate) type Words = (&'static str, Vec<Value>);

impl<'a> Request<'a> {
    pub(crate) fn script(script: &'a Script, keys: Vec<String>, args: Vec<Arg>) -> Self {
        let slot = keys.first().map(|key| slot(key));
        let mut all = Vec::with_capacity(1 + keys.len() + args.len());
        // No machine holds so many keys that their number would not fit.
        all.push(Value::Integer(
            i64::try_from(keys.len()).unwrap_or(i64::MAX),
        ));
        all.extend(keys.into_iter().map(|key| Value::Bytes(key.into())));
        all.extend(args.into_iter().map(|arg| arg.0));
        Self {
            what: What::Script(script),
            args: all,
            slot,
        }
    }

    /// A command whose first arguments are its keys.
    pub(crate) fn of_keys(name: &'static str, keys: Vec<String>, args: Vec<Value>) -> Self {
        let slot = keys.first().map(|key| slot(key));
        let mut all = Vec::with_capacity(keys.len() + args.len());
        all.extend(keys.into_iter().map(|key| Value::Bytes(key.into())));
        all.extend(args);
        Self {
            what: What::Command(name),
            args: all,
            slot,
        }
    }

    /// A command that any node can run.
    pub(crate) fn anywhere(name: &'static str, args: Vec<Value>) -> Self {
        Self {
            what: What::Command(name),
            args,
            slot: None,
        }
    }

    /// The slot of the first key; the server checks that the others are in it too. `None` without keys.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.slot
    }

    /// What is sent first: a script by its name.
    pub(crate) fn first(&self) -> Words {
        match self.what {
            What::Script(script) => ("EVALSHA", self.after(script.name())),
            What::Command(name) => (name, self.args.clone()),
        }
    }

    /// What is sent to a server that does not have the script; `None` for a command.
    pub(crate) fn by_text(&self) -> Option<Words> {
        match self.what {
            What::Script(script) => {
                let text = Bytes::from_static(script.text().as_bytes());
                Some(("EVAL", self.after(text)))
            }
            What::Command(_) => None,
        }
    }

    fn after(&self, script: Bytes) -> Vec<Value> {
        let mut all = Vec::with_capacity(1 + self.args.len());
        all.push(Value::Bytes(script));
        // Almost all are reference-counted: nothing large is copied.
        all.extend_from_slice(&self.args);
        all
    }
}

/// The slot of a key, by its hash tag if it has one.
pub(crate) fn slot(key: &str) -> u16 {
    redis_keyslot(key.as_bytes())
}
