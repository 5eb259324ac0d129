use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{ServiceExt, service_fn};
use tower_llm_stack::{
    BoxError, RequestBody, Secret,
    accounts::{ClientCredentials, NoAccessToken, Tokens},
};

use super::{Answer, Received, Sent, chat, with_tokens};

fn credentials() -> ClientCredentials {
    let secret = Secret::new("hidden: ä&+");
    ClientCredentials::new("https://login.test/oauth2/token?v=2", "me:too", secret).unwrap()
}

/// The tokens of a server that always answers so.
fn answering(status: u16, body: &'static str) -> Tokens {
    let client = service_fn(move |_: Sent| async move {
        let answer = Response::builder().status(status).body(Full::from(body));
        Ok::<Answer, BoxError>(answer.unwrap())
    });
    Tokens::client_credentials(client, credentials())
}

/// The request for a token.
async fn asked(credentials: ClientCredentials) -> (Request<()>, String) {
    let received = Received::default();
    let tokens = Tokens::client_credentials(received.answering(500), credentials);
    let service = with_tokens(tokens, Received::default().answering(200));
    service.oneshot(chat("m")).await.unwrap_err();
    let (parts, body) = received.0.lock().unwrap().pop().unwrap().into_parts();
    let body: RequestBody = body;
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (Request::from_parts(parts, ()), body)
}

#[tokio::test]
async fn a_token_is_asked_for_as_oauth_says() {
    let (request, body) = asked(credentials().scope("llm.invoke llm read")).await;
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "https://login.test/oauth2/token?v=2");
    let headers = request.headers();
    assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(headers["accept"], "application/json");
    // me%3Atoo:hidden%3A%20%C3%A4%26%2B
    let basic = "Basic bWUlM0F0b286aGlkZGVuJTNBJTIwJUMzJUE0JTI2JTJC";
    assert_eq!(headers["authorization"], basic);
    assert_eq!(
        body,
        "grant_type=client_credentials&scope=llm.invoke%20llm%20read"
    );

    let (request, body) = asked(credentials().in_body()).await;
    assert!(!request.headers().contains_key("authorization"));
    let client = "client_id=me%3Atoo&client_secret=hidden%3A%20%C3%A4%26%2B";
    assert_eq!(body, format!("grant_type=client_credentials&{client}"));
}

#[tokio::test(start_paused = true)]
async fn the_life_of_a_token_is_read_as_servers_write_it() {
    for (expires_in, seconds) in [
        (r#","expires_in":3600"#, 3600),
        (r#","expires_in":"3600""#, 3600),
        (r#","expires_in":3599.5"#, 3599),
        (r#","expires_in":null"#, 300),
        ("", 300),
        (r#","expires_in":"soon""#, 300),
        (r#","expires_in":-5"#, 0),
        // More than a day.
        (r#","expires_in":1e300"#, 300),
        (r#","expires_in":31536000"#, 86_400),
    ] {
        let received = Received::default();
        let fetches = super::Fetches::default();
        let counted = fetches.clone();
        let body = format!(r#"{{"access_token":"abc","token_type":"Bearer"{expires_in}}}"#);
        let client = service_fn(move |_: Sent| {
            counted.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let body = body.clone();
            async move { Ok::<Answer, BoxError>(Response::new(Full::from(body))) }
        });
        let service = with_tokens(
            Tokens::client_credentials(client, credentials()),
            received.answering(200),
        );
        service.clone().oneshot(chat("m")).await.unwrap();
        assert_eq!(received.header(0, "authorization").unwrap(), "Bearer abc");
        let second = Duration::from_secs(1);
        let refresh = seconds - u64::min(seconds / 2, 300);
        if refresh > 0 {
            tokio::time::advance(Duration::from_secs(refresh) - second).await;
            service.clone().oneshot(chat("m")).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!(fetches.count(), 1, "{expires_in}");
            tokio::time::advance(second * 2).await;
        }
        service.clone().oneshot(chat("m")).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(fetches.count(), 2, "{expires_in}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_authorization_server_refuses_is_told_without_what_it_says() {
    for (status, body, told, code) in [
        (
            401,
            r#"{"error":"invalid_client","error_description":"hidden is wrong"}"#,
            "answered 401 (invalid_client)",
            Some("invalid_client"),
        ),
        (
            400,
            r#"{"error":"hidden: ä&+ IS WRONG"}"#,
            "answered 400",
            None,
        ),
        (500, "hidden", "answered 500", None),
        (302, "", "answered 302", None),
        (200, "hidden", "answered without one", None),
        (200, r#"{"access_token":""}"#, "answered without one", None),
        (200, r#"{"token":"hidden"}"#, "answered without one", None),
        (
            200,
            r#"{"access_token":"hid\nden"}"#,
            "answered without one",
            None,
        ),
    ] {
        let service = with_tokens(answering(status, body), Received::default().answering(200));
        let error = service.oneshot(chat("m")).await.unwrap_err();
        let none = error.downcast_ref::<NoAccessToken>().unwrap();
        let expected =
            format!("no access token for account account-a: the authorization server {told}");
        assert_eq!(none.to_string(), expected);
        assert_eq!(none.error().code(), code);
        assert_eq!(none.account(), "account-a");
        assert_eq!(none.retry_after(), Some(Duration::from_secs(1)));
        let is_status = none.error().status().map(|status| status.as_u16());
        assert_eq!(is_status, (status != 200).then_some(status));
        assert!(!format!("{error:?}").contains("hid"), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_authorization_server_that_cannot_be_reached_or_says_too_much_is_told() {
    let client = service_fn(|_: Sent| async { Err::<Answer, _>(BoxError::from("no route")) });
    let unreachable = Tokens::client_credentials(client, credentials());
    let client = service_fn(|_: Sent| async {
        Ok::<Answer, BoxError>(Response::new(Full::from(vec![b' '; 65 * 1024])))
    });
    let endless = Tokens::client_credentials(client, credentials());
    for tokens in [unreachable, endless] {
        let service = with_tokens(tokens, Received::default().answering(200));
        let error = service.oneshot(chat("m")).await.unwrap_err();
        let told = error.to_string();
        assert!(
            told.ends_with("the authorization server could not be reached"),
            "{told}"
        );
    }
}
