//! What the gateway adds to the time until a token arrives.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::support::{Connection, Running};

const CALLS: usize = 300;
const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;

async fn first_token(connection: &mut Connection) -> Duration {
    let began = Instant::now();
    connection
        .send("POST", "/v1/chat/completions", "", BODY)
        .await;
    connection.head(false).await.unwrap();
    let mut first = None;
    while let Some(chunk) = connection.chunk().await.unwrap() {
        let has_content = !chunk
            .windows(12)
            .any(|window| window == b"\"content\":\"\"");
        if has_content && first.is_none() {
            first = Some(began.elapsed());
        }
    }
    first.unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_comes_hardly_later_than_without_the_gateway() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(3));
    let gateway = Running::over(&provider, &[]).await;
    let connect = |addr: SocketAddr| Connection::open(addr);
    let (mut direct, mut through) = (connect(provider.addr()).await, connect(gateway.addr).await);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // In turn, so that what else the machine does strikes both.
    for _ in 0..CALLS {
        without.push(first_token(&mut direct).await);
        with.push(first_token(&mut through).await);
    }
    let (without, with) = (median(without), median(with));
    let added = with.saturating_sub(without);
    println!("first token, median of {CALLS}: {without:?} without, {with:?} with: {added:?} added");
    // In a release build under a millisecond; here other tests run beside it.
    assert!(added < Duration::from_millis(20), "{added:?}");
}
