//! Responses that cost no call of their own.

/// How a response came to its caller without a call to the provider that was made for it.
///
/// A cache puts it into the response's extensions, and the layers around it find it as
/// [`Completion::served`](crate::Completion::served): its usage was paid for by another call, and it says nothing of how the
/// provider does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Served {
    /// From the store.
    Hit,
    /// From a call in flight that another caller began.
    Follower,
}
