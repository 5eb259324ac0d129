//! Which requests have an answer that can be given again.

use tower_llm_core::{Call, Operation};

use super::{
    bypass::Bypass,
    json::{Node, Shape},
    place::Place,
};

/// Tools that run at the client, by how the dialect's types of tools start. A type that is not here may run at the provider,
/// where its result can change.
const OPENAI_TOOLS: &[&str] = &["function", "custom", "apply_patch"];
const MESSAGES_TOOLS: &[&str] = &[
    "custom",
    "bash_",
    "text_editor_",
    "computer_",
    "memory_",
    // Runs at the provider, on the request's own tools.
    "tool_search_tool_",
];
const GEMINI_TOOLS: &[&str] = &["functionDeclarations", "function_declarations"];

/// Words that begin the names of models that search by themselves, whatever the request says.
const LIVE_NAMES: [&str; 6] = [
    // Perplexity.
    "sonar",
    // Groq.
    "compound",
    // Google.
    "deep-research",
    "exa",
    "brave",
    "jina-deepsearch",
];

/// Words within the names of such models.
const LIVE_WORDS: [&str; 5] = [
    // OpenAI.
    "search-preview",
    "search-api",
    "deep-research",
    // Perplexity.
    "sonar",
    "online",
];

/// `OpenRouter`'s variant of any model, with a search before it.
const LIVE_VARIANT: &str = "online";

/// Fails if the answer to `body` depends on more than the request, or is more than an answer.
pub(super) fn check(
    body: Node<'_>,
    root: Place,
    call: &Call,
    allow_stored: bool,
) -> Result<(), Bypass> {
    // Counting stores nothing.
    let allow_stored = allow_stored || *call.operation() == Operation::COUNT_TOKENS;
    let given = |name| is_given(body.get(name));
    let given_any = |names: &[&str]| names.iter().any(|name| is_given(body.get(name)));
    let refuse = |condition, bypass| match condition {
        true => Err(bypass),
        false => Ok(()),
    };
    let stored = |by_default| match body.get("store") {
        Some(store) if !store.is_null() => !store.is_bool(false),
        _ => by_default,
    };
    refuse(has_live_model(body, call), Bypass::LiveData)?;
    match root {
        Place::ChatBody => {
            refuse(has_hosted_tool(body, OPENAI_TOOLS), Bypass::HostedTool)?;
            let searches = ["web_search_options", "search_parameters", "data_sources"];
            let live = given_any(&searches)
                || body.get("enable_search").is_some_and(|on| on.is_bool(true))
                || has_web_plugin(body);
            refuse(live, Bypass::LiveData)?;
            refuse(!allow_stored && stored(false), Bypass::Stored)
        }
        Place::ResponsesBody => {
            let stateful = given_any(&["previous_response_id", "conversation", "prompt"])
                || has_item_reference(body);
            refuse(stateful, Bypass::Stateful)?;
            refuse(is_on(body.get("background")), Bypass::Background)?;
            refuse(has_hosted_tool(body, OPENAI_TOOLS), Bypass::HostedTool)?;
            refuse(!allow_stored && stored(true), Bypass::Stored)
        }
        Place::MessagesBody => {
            refuse(given("container"), Bypass::Stateful)?;
            let hosted = has_hosted_tool(body, MESSAGES_TOOLS) || given("mcp_servers");
            refuse(hosted, Bypass::HostedTool)
        }
        Place::GeminiBody => refuse(has_hosted_gemini_tool(body), Bypass::HostedTool),
        Place::InteractionsBody => {
            refuse(given("previous_interaction_id"), Bypass::Stateful)?;
            refuse(is_on(body.get("background")), Bypass::Background)?;
            let hosted = given("agent") || has_hosted_tool(body, OPENAI_TOOLS);
            refuse(hosted, Bypass::HostedTool)?;
            refuse(!allow_stored && stored(true), Bypass::Stored)
        }
        _ => Ok(()),
    }
}

/// Whether the same request is meant to have the same answer each time: a temperature of zero, or a seed.
pub(super) fn is_deterministic(body: Node<'_>) -> bool {
    let configs = ["generationConfig", "generation_config"].map(|name| body.get(name));
    let mut levels = [Some(body)].into_iter().chain(configs).flatten();
    levels.any(|level| {
        let temperature = level.get("temperature").map(Node::shape);
        matches!(temperature, Some(Shape::Number(number)) if number.is_zero())
            || is_given(level.get("seed"))
    })
}

/// How many choices, or candidates, the answer is to have.
pub(super) fn choices(body: Node<'_>, root: Place) -> u64 {
    let number = match root {
        Place::ChatBody => body.get("n"),
        Place::GeminiBody => {
            let configs = ["generationConfig", "generation_config"];
            let config = configs.into_iter().find_map(|name| body.get(name));
            let names = ["candidateCount", "candidate_count"];
            names
                .into_iter()
                .find_map(|name| config.and_then(|config| config.get(name)))
        }
        _ => None,
    };
    match number.map(Node::shape) {
        Some(Shape::Number(number)) => number.as_count(),
        _ => 1,
    }
}

/// Whether a stream of chunks is asked to end with the usage.
pub(super) fn includes_usage(body: Node<'_>) -> bool {
    let options = body.get("stream_options");
    let include = options.and_then(|options| options.get("include_usage"));
    include.is_some_and(|include| include.is_bool(true))
}

/// Whether a member asks for anything: null and an empty list do not.
fn is_given(member: Option<Node<'_>>) -> bool {
    match member.map(Node::shape) {
        None | Some(Shape::Null) => false,
        Some(Shape::Array(elements)) => !elements.is_empty(),
        Some(_) => true,
    }
}

/// Whether a switch that is off by default is on, or is something that is no switch.
fn is_on(switch: Option<Node<'_>>) -> bool {
    switch.is_some_and(|switch| !switch.is_null() && !switch.is_bool(false))
}

fn elements<'a>(body: Node<'a>, name: &str) -> impl Iterator<Item = Node<'a>> {
    body.get(name).into_iter().flat_map(Node::elements)
}

fn kind(object: Node<'_>) -> Option<&str> {
    object.get("type").and_then(Node::as_str)
}

fn has_hosted_tool(body: Node<'_>, at_client: &[&str]) -> bool {
    elements(body, "tools").filter_map(kind).any(|kind| {
        let is_this = |known: &&str| match known.ends_with('_') {
            // With a date behind it.
            true => kind.starts_with(known),
            false => kind == *known,
        };
        !at_client.iter().any(is_this)
    })
}

/// Gemini's tools are told apart by their member.
fn has_hosted_gemini_tool(body: Node<'_>) -> bool {
    let mut tools = elements(body, "tools").map(Node::shape);
    tools.any(|tool| match tool {
        Shape::Object(members) => members
            .members()
            .any(|(name, value)| !GEMINI_TOOLS.contains(&name) && !value.is_null()),
        _ => false,
    })
}

/// Whether the model, or one that `OpenRouter` may take instead of it, searches by itself.
fn has_live_model(body: Node<'_>, call: &Call) -> bool {
    if *call.operation() == Operation::EMBEDDINGS {
        return false;
    }
    let others = elements(body, "models").filter_map(Node::as_str);
    call.model().into_iter().chain(others).any(is_live)
}

fn is_live(model: &str) -> bool {
    // A provider's name may stand before it.
    let model = model.rsplit('/').next().unwrap_or_default();
    let mut variants = model.split(':').skip(1);
    let mut words = model.match_indices('-').map(|(at, _)| &model[at + 1..]);
    LIVE_NAMES.iter().any(|name| begins_with(model, name))
        || words.any(|rest| LIVE_WORDS.iter().any(|word| begins_with(rest, word)))
        || variants.any(|variant| variant.eq_ignore_ascii_case(LIVE_VARIANT))
}

/// Whether a text begins with a word, in any case, and the word ends there.
fn begins_with(text: &str, word: &str) -> bool {
    let Some((begin, rest)) = text.as_bytes().split_at_checked(word.len()) else {
        return false;
    };
    begin.eq_ignore_ascii_case(word.as_bytes())
        && rest
            .first()
            .is_none_or(|byte| !byte.is_ascii_alphanumeric())
}

/// `OpenRouter`'s way to search the web.
fn has_web_plugin(body: Node<'_>) -> bool {
    elements(body, "plugins").any(|plugin| plugin.get("id").and_then(Node::as_str) == Some("web"))
}

/// Whether an item of the input only names a stored one, which it may do without a type.
fn has_item_reference(body: Node<'_>) -> bool {
    elements(body, "input").any(|item| match kind(item) {
        Some(kind) => kind == "item_reference",
        None => is_given(item.get("id")) && !is_given(item.get("role")),
    })
}
