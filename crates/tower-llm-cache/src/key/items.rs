//! Embeddings by item: a request for many inputs is answered from the answers to each.

use http::request::Parts;
use tower_llm_core::{Call, Dialect, Operation, is_of_each_input};

use super::{
    KeySettings,
    bypass::Bypass,
    canonical,
    json::{Node, Shape},
    place::Place,
    with_request,
};

/// Tells an item's answer from that to a whole request.
const ITEM: &str = "item";

/// The most inputs that are taken apart; providers take 2,048. A request with more is one item, as it stands: each input costs
/// a hash, and a look-up while a lock is held that all batches share.
const MAX_INPUTS: usize = 4_096;

/// Returns a digest for each input of an embeddings request, in its order; `None` if it is no such request, or its input is
/// none that can be taken apart.
///
/// An item has one digest in all requests that differ only in their other inputs, and alone. A text and a list of tokens are
/// different items, even if one encodes the other.
///
/// # Errors
///
/// [`Bypass`], as for the whole request.
pub(crate) fn digests(
    settings: &KeySettings,
    request: &Parts,
    body: &[u8],
    call: &Call,
) -> Result<Option<Vec<[u8; 32]>>, Bypass> {
    let embeds = *call.operation() == Operation::EMBEDDINGS;
    if !embeds || call.dialect() != Some(Dialect::OpenAi) {
        return Ok(None);
    }
    with_request(settings, request, body, call, |body, root, out| {
        let Shape::Object(members) = body.shape() else {
            return None;
        };
        if !members.members().all(|(name, _)| is_of_each_input(name)) {
            return None;
        }
        let inputs = inputs(body)?;
        canonical::write_without(body, "input", root, out);
        out.text(ITEM);
        let start = out.len();
        let digest = |input| {
            out.truncate(start);
            canonical::write(input, Place::Data, out);
            settings.digest(out)
        };
        Some(inputs.into_iter().map(digest).collect())
    })
}

/// Returns the inputs of a body: a text or a list of tokens is one, a list of either is many.
fn inputs(body: Node<'_>) -> Option<Vec<Node<'_>>> {
    let is_token = |input: Node<'_>| matches!(input.shape(), Shape::Number(_));
    let is_input = |input: &Node<'_>| match input.shape() {
        Shape::String(_) => true,
        Shape::Array(tokens) => !tokens.is_empty() && tokens.values().all(is_token),
        _ => false,
    };
    let input = body.get("input")?;
    if is_input(&input) {
        return Some(vec![input]);
    }
    let inputs: Vec<_> = input.elements().take(MAX_INPUTS + 1).collect();
    let is_batch = (1..=MAX_INPUTS).contains(&inputs.len());
    (is_batch && inputs.iter().all(is_input)).then_some(inputs)
}
