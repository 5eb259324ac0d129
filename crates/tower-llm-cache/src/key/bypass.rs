use std::fmt;

/// Why a request is neither answered from the cache nor stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
// As wide as what a parser returns beside it: see `Text` in `json`.
#[repr(u32)]
pub enum Bypass {
    /// The operation is not one whose answers can be reused.
    Operation,
    /// The scope needs a caller, or a header, that the request does not have.
    NoCaller,
    /// The body is not a JSON object that every parser reads alike.
    NotJson,
    /// An object in the body names a member twice; parsers differ in which of them they take.
    DuplicateMember,
    /// The body is nested too deeply.
    TooDeep,
    /// The request refers to state at the provider: an earlier response, a conversation, a container, a stored prompt.
    Stateful,
    /// The provider runs a tool, or may: the request has a tool that is not known to run at the client.
    HostedTool,
    /// The answer draws on data that changes, such as a web search.
    LiveData,
    /// The provider stores the answer under its id, which a later request may refer to.
    Stored,
    /// The provider answers later.
    Background,
    /// The policy takes only requests that ask for determinism.
    NotDeterministic,
    /// The request says `no-store`, or a typed one has no [content](crate::KeyContent::uncached).
    NoStore,
}

impl Bypass {
    pub(crate) const ALL: [Self; 12] = [
        Self::Operation,
        Self::NoCaller,
        Self::NotJson,
        Self::DuplicateMember,
        Self::TooDeep,
        Self::Stateful,
        Self::HostedTool,
        Self::LiveData,
        Self::Stored,
        Self::Background,
        Self::NotDeterministic,
        Self::NoStore,
    ];

    /// Returns the reason as a label for metrics and logs. The set of labels is closed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::NoCaller => "no_caller",
            Self::NotJson => "not_json",
            Self::DuplicateMember => "duplicate_member",
            Self::TooDeep => "too_deep",
            Self::Stateful => "stateful",
            Self::HostedTool => "hosted_tool",
            Self::LiveData => "live_data",
            Self::Stored => "stored",
            Self::Background => "background",
            Self::NotDeterministic => "not_deterministic",
            Self::NoStore => "no_store",
        }
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
