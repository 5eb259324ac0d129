//! Which inputs of embeddings are one item.

use super::*;

fn embeddings(input: &str) -> Case {
    let body = format!(r#"{{"model":"text-embedding-3-small","input":{input}}}"#);
    Case::new("/v1/embeddings", Dialect::OpenAi, &body)
        .with(|case| case.operation = Operation::EMBEDDINGS)
}

fn items(case: &Case) -> Option<Vec<[u8; 32]>> {
    let (request, call) = case.parts();
    crate::key::items::digests(&case.settings, &request, case.body.as_bytes(), &call).unwrap()
}

fn one(input: &str) -> [u8; 32] {
    let items = items(&embeddings(input)).unwrap();
    assert_eq!(items.len(), 1);
    items[0]
}

#[test]
fn an_item_is_the_same_in_any_company_and_alone() {
    let many = items(&embeddings(r#"["a","b","a",""]"#)).unwrap();
    assert_eq!(
        many,
        [one(r#""a""#), one(r#"["b"]"#), one(r#""a""#), one(r#""""#)]
    );
    let tokens = items(&embeddings("[[1,2],[3],[1.0,2]]")).unwrap();
    assert_eq!(tokens, [one("[1,2]"), one("[[3]]"), one("[1,2]")]);
    let mixed = items(&embeddings(r#"["a",[1]]"#)).unwrap();
    assert_eq!(mixed, [one(r#""a""#), one("[1]")]);
}

#[test]
fn different_items_differ_from_each_other_and_from_requests() {
    let digests = [
        one(r#""1""#),
        one("[1]"),
        one("[1,1]"),
        one(r#""[1]""#),
        one(r#""a""#),
        embeddings(r#""a""#).digest(),
        embeddings(r#"["a"]"#).digest(),
    ];
    for (at, digest) in digests.iter().enumerate() {
        assert!(!digests[..at].contains(digest), "{at}");
    }
}

#[test]
fn all_else_in_the_request_is_part_of_an_item() {
    let case = embeddings(r#""a""#);
    let with = |members: &str| {
        case.with(|case| case.body = case.body.replace('{', &format!("{{{members},")))
    };
    assert_eq!(items(&with(r#""user":"u-1""#)), items(&case));
    let others = [
        with(r#""dimensions":256"#),
        with(r#""encoding_format":"base64""#),
        case.with(|case| case.model = "n"),
        case.with(|case| case.settings.namespace = "b".into()),
        case.with(|case| case.settings.secret = Some([1; 32])),
    ];
    for (at, other) in others.iter().enumerate() {
        assert_ne!(items(other), items(&case), "{at}");
    }
}

#[test]
fn other_inputs_and_operations_have_no_items() {
    for input in [
        "[]",
        "null",
        "7",
        "{}",
        "[[]]",
        r#"["a",1]"#,
        "[[[1]]]",
        r#"[["a"]]"#,
    ] {
        assert_eq!(items(&embeddings(input)), None, "{input}");
    }
    assert_eq!(items(&Case::chat(r#"{"input":"a"}"#)), None);
    let chat = embeddings(r#""a""#).with(|case| case.operation = Operation::CHAT);
    assert_eq!(items(&chat), None);
}
