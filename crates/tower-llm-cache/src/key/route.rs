//! What a request says outside its body.

use http::{HeaderName, header::HOST, request::Parts};
use tower_llm_core::{Call, Dialect, Operation};

use super::{buffer::Buffer, place::Place};

/// Headers that change what a provider answers. The beta headers are lists, in any order.
static HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("anthropic-version"),
    // Azure AI: what becomes of parameters that the model does not know, and which deployment answers.
    HeaderName::from_static("extra-parameters"),
    HeaderName::from_static("azureml-model-deployment"),
    // Azure OpenAI and Bedrock: what is filtered.
    HeaderName::from_static("x-policy-id"),
    HeaderName::from_static("x-amzn-bedrock-guardrailidentifier"),
    HeaderName::from_static("x-amzn-bedrock-guardrailversion"),
];
static LIST_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// Parameters of Google's APIs that do not change the answer; the key of the API is one of them.
const GOOGLE_EXTRAS: [&str; 6] = [
    "key",
    "access_token",
    "oauth_token",
    "quotaUser",
    "prettyPrint",
    "$prettyPrint",
];

/// Returns the place of the body as a whole.
pub(super) fn root(request: &Parts, call: &Call) -> Place {
    match call.dialect() {
        Some(Dialect::OpenAi) if *call.operation() == Operation::EMBEDDINGS => {
            Place::EmbeddingsBody
        }
        Some(Dialect::OpenAi) => Place::ChatBody,
        Some(Dialect::OpenAiResponses) => Place::ResponsesBody,
        Some(Dialect::Anthropic) => Place::MessagesBody,
        Some(Dialect::Gemini) if path(request).ends_with("/interactions") => {
            Place::InteractionsBody
        }
        Some(Dialect::Gemini) => Place::GeminiBody,
        _ => Place::Data,
    }
}

/// Appends the upstream's name, the path, the query and the headers that matter, `more` among them.
///
/// Providers may be told apart by nothing else: many speak `OpenAI`'s dialect and are named after it.
pub(super) fn write(request: &Parts, call: &Call, more: &[HeaderName], out: &mut Buffer) {
    write_authority(request, out);
    let path = path(request);
    // The method that streams has the same answer.
    match path.strip_suffix(":streamGenerateContent") {
        Some(model) => {
            out.text(model);
            out.text(":generateContent");
        }
        None => {
            let method = path.rfind(':').unwrap_or(path.len());
            out.text(&path[..method]);
            out.text(&path[method..]);
        }
    }
    write_query(request, call, out);
    for name in &HEADERS {
        write_header(request, name, out);
    }
    for name in &LIST_HEADERS {
        write_list(request, name, out);
    }
    // Caches of different settings may share a store.
    out.number(more.len() as u64);
    for name in more {
        out.text(name.as_str());
        write_header(request, name, out);
    }
}

fn path(request: &Parts) -> &str {
    let path = request.uri.path();
    path.strip_suffix('/').unwrap_or(path)
}

/// HTTP/2 and clients put the host in the URI, HTTP/1 servers find it in a header. Never the user and password before it.
fn write_authority(request: &Parts, out: &mut Buffer) {
    let authority = request.uri.authority().map(|authority| {
        let authority = authority.as_str();
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        host.as_bytes()
    });
    let header = || request.headers.get(HOST).map(|host| host.as_bytes());
    let host = authority.or_else(header).unwrap_or_default();
    out.number(host.len() as u64);
    for byte in host {
        out.tag(byte.to_ascii_lowercase());
    }
}

fn write_query(request: &Parts, call: &Call, out: &mut Buffer) {
    let google = call.dialect() == Some(Dialect::Gemini);
    let is_extra = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        let sends = ["alt=sse", "alt=json", "$alt=sse", "$alt=json"].contains(&parameter);
        google && (sends || GOOGLE_EXTRAS.contains(&name))
    };
    let query = request.uri.query().unwrap_or_default();
    let parameters = query.split('&');
    let mut kept: Vec<_> = parameters
        .filter(|parameter| !parameter.is_empty() && !is_extra(parameter))
        .collect();
    // Stable: of two values of one name, which comes first may matter.
    kept.sort_by_key(|parameter| parameter.split('=').next());
    out.number(kept.len() as u64);
    for parameter in kept {
        out.text(parameter);
    }
}

fn write_header(request: &Parts, name: &HeaderName, out: &mut Buffer) {
    for value in request.headers.get_all(name) {
        out.tag(1);
        out.bytes(value.as_bytes());
    }
    out.tag(0);
}

fn write_list(request: &Parts, name: &HeaderName, out: &mut Buffer) {
    let values = request.headers.get_all(name).iter();
    let mut names: Vec<_> = values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    out.number(names.len() as u64);
    for name in names {
        out.bytes(name);
    }
}
