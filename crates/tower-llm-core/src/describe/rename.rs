//! Replaces the model in a request: the counterpart of reading it.

use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Uri, header::CONTENT_LENGTH, uri::PathAndQuery};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::tokens::decoded;
use crate::{
    RequestBody,
    dialect::Route,
    scan::json::{Json, Sink, StringMode, Text},
};

/// What a path segment cannot have unescaped, and more, as `encodeURIComponent` escapes it.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The prefix of models in Gemini's bodies.
const MODELS: &str = "models/";

/// Replaces the model that a request names by what `to` returns for it; a model for which it returns `None` stays.
///
/// The model is replaced where a [`DescribeLayer`](crate::DescribeLayer) reads it: in the path of Gemini and of Azure's
/// deployments, and otherwise in the JSON body. Gemini's bodies repeat the model of the path, which is replaced with it. No
/// other byte of the body changes. A request that names no model, or has it in a streamed body such as a form, is unchanged.
///
/// Returns whether the model was replaced. The request's [`Call`](crate::Call) is not changed.
///
/// ```
/// use http::Request;
/// use tower_llm_core::{RequestBody, rename_model};
///
/// let body = RequestBody::held(r#"{"model": "gpt-4", "messages": []}"#);
/// let mut request = Request::post("/v1/chat/completions").body(<RequestBody>::from(body))?;
/// assert!(rename_model(&mut request, |model| (model == "gpt-4").then_some("gpt-4-0613")));
/// assert_eq!(request.body().as_bytes().unwrap(), r#"{"model": "gpt-4-0613", "messages": []}"#);
/// # Ok::<(), http::Error>(())
/// ```
pub fn rename_model<'a, B>(
    request: &mut Request<RequestBody<B>>,
    to: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let Some((model, at)) = model_of_path(request) else {
        return rename_in_body(request, Within::Body, to);
    };
    let Some(new) = to(&model).filter(|new| *new != model) else {
        return false;
    };
    let Some(uri) = with_segment(request.uri(), at, new) else {
        return false;
    };
    *request.uri_mut() = uri;
    rename_in_body(request, Within::Gemini, |name| {
        (name == model).then_some(new)
    });
    true
}

/// The model that the path names, and where.
fn model_of_path<B>(request: &Request<B>) -> Option<(String, Range<usize>)> {
    if *request.method() != Method::POST {
        return None;
    }
    let path = request.uri().path();
    let written = Route::of(request.method(), request.uri(), request.headers()).model?;
    let model = percent_decode_str(written).decode_utf8_lossy().into_owned();
    Some((model, range_in(path.as_bytes(), written.as_bytes())))
}

/// The address with `segment` in place of what is there.
fn with_segment(uri: &Uri, at: Range<usize>, segment: &str) -> Option<Uri> {
    let path_and_query = uri.path_and_query()?.as_str();
    let mut replaced = String::with_capacity(path_and_query.len() + segment.len());
    replaced.push_str(&path_and_query[..at.start]);
    replaced.extend(utf8_percent_encode(segment, SEGMENT));
    replaced.push_str(&path_and_query[at.end..]);
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(replaced).ok()?);
    Uri::from_parts(parts).ok()
}

fn rename_in_body<'a, B>(
    request: &mut Request<RequestBody<B>>,
    within: Within,
    to: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let Some(body) = request.body().as_bytes() else {
        return false;
    };
    let names = Names::find(body, within);
    let replaced: Vec<_> = names
        .into_iter()
        .filter_map(|at| Some((renamed(&body[at.clone()], &to)?, at)))
        .collect();
    if replaced.is_empty() {
        return false;
    }
    let body = spliced(body, &replaced);
    let length = body.len();
    *request.body_mut() = RequestBody::held(body);
    if request.headers().contains_key(CONTENT_LENGTH) {
        let length = HeaderValue::from(length);
        request.headers_mut().insert(CONTENT_LENGTH, length);
    }
    true
}

/// The new name as it is written in JSON, without quotes.
fn renamed<'a>(written: &[u8], to: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let name = decoded(written);
    let name = std::str::from_utf8(&name).ok()?;
    let new: Cow<'_, str> = match to(name) {
        Some(new) => new.into(),
        None => format!("{MODELS}{}", to(name.strip_prefix(MODELS)?)?).into(),
    };
    let quoted = serde_json::to_string(&*new).ok()?;
    (new != name).then(|| quoted[1..quoted.len() - 1].to_owned())
}

fn spliced(body: &[u8], replaced: &[(String, Range<usize>)]) -> Bytes {
    let added: usize = replaced.iter().map(|(new, _)| new.len()).sum();
    let mut spliced = BytesMut::with_capacity(body.len() + added);
    let mut from = 0;
    for (new, at) in replaced {
        spliced.extend_from_slice(&body[from..at.start]);
        spliced.extend_from_slice(new.as_bytes());
        from = at.end;
    }
    spliced.extend_from_slice(&body[from..]);
    spliced.freeze()
}

/// Where `part` is in `whole`, of which it is a part.
fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

/// Where a body may name its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// In a member of the body.
    Body,
    /// In the parts of Gemini's body too: a request of `batchEmbedContents`, or the one whose tokens are counted.
    Gemini,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Body,
    Requests,
    Request,
    Model,
}

/// Collects where a body names its model.
struct Names<'a> {
    body: &'a [u8],
    within: Within,
    /// Without their quotes, in order.
    found: Vec<Range<usize>>,
}

impl<'a> Names<'a> {
    fn find(body: &'a [u8], within: Within) -> Vec<Range<usize>> {
        let mut names = Self {
            body,
            within,
            found: Vec::new(),
        };
        let json = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let mut reader = Json::<Place>::new(Place::Body);
        reader.feed(json, &mut names);
        names.found
    }
}

impl Sink for Names<'_> {
    type Place = Place;

    fn member(&mut self, parent: Place, key: &[u8]) -> Option<Place> {
        let is_gemini = self.within == Within::Gemini;
        match (parent, &*decoded(key)) {
            (Place::Body | Place::Request, b"model") => Some(Place::Model),
            (Place::Body, b"requests") if is_gemini => Some(Place::Requests),
            (Place::Body, b"generateContentRequest") if is_gemini => Some(Place::Request),
            _ => None,
        }
    }

    fn item(&mut self, parent: Place) -> Option<Place> {
        matches!(parent, Place::Requests).then_some(Place::Request)
    }

    fn string_mode(&self, place: Place) -> StringMode {
        match place {
            Place::Model => StringMode::Pass,
            _ => StringMode::Skip,
        }
    }

    fn open(&mut self, _: Place) {}

    fn close(&mut self, _: Place) {}

    fn string(&mut self, _: Place, _: &[u8]) {}

    /// The name, whole: a body is one piece.
    fn pass(&mut self, _: Place, piece: &[u8]) {
        self.found.push(range_in(self.body, piece));
    }

    fn passed(&mut self, _: Place) {}

    fn text(&mut self, _: Place, _: Text<'_>) {}

    fn number(&mut self, _: Place, _: u64) {}

    fn word(&mut self, _: Place, _: &[u8]) {}
}
