//! What an answer says, in any dialect, streamed or not; and what was asked.

use serde_json::Value;

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The text of the first choice.
    pub(super) text: String,
    /// Why the model stopped, as its provider says it.
    pub(super) finish: Option<String>,
}

/// One reason, as providers name it.
const REASONS: [(&str, &[&str]); 4] = [
    ("stop", &["end_turn", "stop_sequence", "completed"]),
    ("length", &["max_tokens", "max_output_tokens"]),
    ("tool_calls", &["tool_use", "function_call"]),
    ("content_filter", &["refusal", "safety"]),
];

impl Said {
    /// Reads the body of a response.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut said = Self::default();
        match serde_json::from_slice(body) {
            Ok(whole) => said.add(&whole),
            Err(_) => events(body).for_each(|event| said.add(&event)),
        }
        said
    }

    /// Whether the model stopped for this reason, named as its provider does or as `OpenAI` does.
    pub(super) fn finished_by(&self, reason: &str) -> bool {
        let Some(finish) = &self.finish else {
            return false;
        };
        let is = |name: &str| finish.eq_ignore_ascii_case(name);
        let mut others = REASONS.iter().filter(|(name, _)| *name == reason);
        is(reason) || others.any(|(_, others)| others.iter().any(|name| is(name)))
    }

    /// Adds a whole response, or an event of a stream.
    fn add(&mut self, value: &Value) {
        match value["type"].as_str() {
            // Responses.
            Some("response.output_text.delta") => self.text(&value["delta"]),
            Some("response.completed" | "response.incomplete") => self.status(&value["response"]),
            // Anthropic.
            Some("content_block_delta") => self.text(&value["delta"]["text"]),
            Some("message_delta") => self.finish(&value["delta"]["stop_reason"]),
            Some("message") => {
                self.parts(&value["content"]);
                self.finish(&value["stop_reason"]);
            }
            _ => self.add_untyped(value),
        }
    }

    fn add_untyped(&mut self, value: &Value) {
        let is_first = |choice: &&Value| choice["index"].as_u64().unwrap_or(0) == 0;
        let choices = value["choices"].as_array();
        if let Some(choice) = choices.into_iter().flatten().find(is_first) {
            let content = [&choice["message"], &choice["delta"]].map(|of| &of["content"]);
            content.into_iter().for_each(|content| self.parts(content));
            self.text(&choice["text"]);
            self.finish(&choice["finish_reason"]);
        }
        let candidates = value["candidates"].as_array();
        if let Some(candidate) = candidates.into_iter().flatten().find(is_first) {
            self.parts(&candidate["content"]["parts"]);
            self.finish(&candidate["finishReason"]);
        }
        if value["object"] == "response" {
            for item in value["output"].as_array().into_iter().flatten() {
                self.parts(&item["content"]);
            }
            self.status(value);
        }
    }

    /// The end of a response of `OpenAI`'s.
    fn status(&mut self, response: &Value) {
        match &response["incomplete_details"]["reason"] {
            Value::Null => self.finish(&response["status"]),
            reason => self.finish(reason),
        }
    }

    /// A text, or a list of parts that may have one. Thoughts are no part of the answer.
    fn parts(&mut self, content: &Value) {
        self.text(content);
        for part in content.as_array().into_iter().flatten() {
            if part["thought"] != true {
                self.text(&part["text"]);
            }
        }
    }

    fn text(&mut self, text: &Value) {
        self.text.push_str(text.as_str().unwrap_or_default());
    }

    fn finish(&mut self, reason: &Value) {
        if let Some(reason) = reason.as_str() {
            self.finish = Some(reason.to_owned());
        }
    }
}

/// The data of an event stream that is JSON: every provider writes it in one line.
fn events(body: &[u8]) -> impl Iterator<Item = Value> {
    let lines = body.split(|&byte| byte == b'\n' || byte == b'\r');
    let data = lines.filter_map(|line| line.strip_prefix(b"data:"));
    data.filter_map(|data| serde_json::from_slice(data).ok())
}

/// The texts of a request's prompt, in their order, as far as a request has them in a place that is known.
pub(super) fn asked(body: &[u8]) -> String {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return String::new();
    };
    let mut texts = Vec::new();
    for place in [
        "system",
        "systemInstruction",
        "system_instruction",
        "instructions",
        "messages",
        "input",
        "prompt",
        "contents",
    ] {
        add_texts(&request[place], &mut texts);
    }
    texts.join("\n")
}

fn add_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(all) => all.iter().for_each(|value| add_texts(value, texts)),
        Value::Object(fields) => ["content", "parts", "text"]
            .into_iter()
            .filter_map(|name| fields.get(name))
            .for_each(|value| add_texts(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_testkit::{Behavior, wire};

    use super::*;

    const PATHS: [&str; 5] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1beta/models/m:generateContent",
    ];

    const ASKED: &str = r#"{"messages":[{"role":"user","content":"hello"}],"input":"hello","prompt":"hello","contents":[{"parts":[{"text":"hello"}]}]"#;

    fn said(path: &str, stream: bool, max: u64) -> Said {
        let path = match stream {
            true => path.replace("generateContent", "streamGenerateContent?alt=sse"),
            false => path.to_owned(),
        };
        let request = format!(
            "{ASKED},\"stream\":{stream},\"max_tokens\":{max},\"max_output_tokens\":{max},\"generationConfig\":{{\"maxOutputTokens\":{max}}}}}"
        );
        let behavior = Behavior::new().output_tokens(6);
        Said::read(&wire::body(&path, request.as_bytes(), &behavior).concat())
    }

    #[test]
    fn the_text_and_the_end_are_found_in_every_dialect() {
        for path in PATHS {
            for stream in [false, true] {
                let whole = said(path, stream, 100);
                let words = whole.text.split_whitespace().count();
                assert_eq!(words, 6, "{path} {stream}: {whole:?}");
                assert!(whole.finished_by("stop"), "{path} {stream}: {whole:?}");
                assert!(!whole.finished_by("length"), "{path} {stream}: {whole:?}");
                let cut = said(path, stream, 3);
                assert!(cut.finished_by("length"), "{path} {stream}: {cut:?}");
                assert!(!cut.finished_by("stop"), "{path} {stream}: {cut:?}");
            }
        }
    }

    #[test]
    fn only_the_first_choice_counts_and_a_reason_may_be_the_providers_own() {
        let body = r#"{"choices":[{"index":1,"message":{"content":"b"},"finish_reason":"length"},
            {"index":0,"message":{"content":[{"type":"text","text":"a"}]},"finish_reason":"eos"}]}"#;
        let said = Said::read(body.as_bytes());
        assert_eq!(said.text, "a");
        assert!(said.finished_by("eos") && !said.finished_by("stop"));
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        for body in [
            "",
            "data: [DONE]\n\n",
            "[1]",
            r#"{"error":{"message":"no"}}"#,
        ] {
            assert_eq!(Said::read(body.as_bytes()), Said::default(), "{body}");
        }
    }

    #[test]
    fn the_texts_of_a_prompt_are_found_in_every_dialect() {
        for body in [
            r#"{"messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
            r#"{"system":"a","messages":[{"role":"user","content":"b"}]}"#,
            r#"{"instructions":"a","input":[{"role":"user","content":[{"type":"input_text","text":"b"}]}]}"#,
            r#"{"systemInstruction":{"parts":[{"text":"a"}]},"contents":[{"role":"user","parts":[{"text":"b"}]}]}"#,
            r#"{"prompt":["a","b"]}"#,
        ] {
            assert_eq!(asked(body.as_bytes()), "a\nb", "{body}");
        }
        assert_eq!(asked(b"no json"), "");
    }
}
