//! A simulated provider to try things on with curl: `cargo run -p tower-llm-testkit --example
//! provider -- 127.0.0.1:8080`.

use tower_llm_testkit::{Behavior, SimulatedProvider};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let provider = SimulatedProvider::start_on(addr.parse()?).await?;
    provider.set(
        Behavior::new()
            .strict()
            .counted_input_tokens()
            .output_tokens(20),
    );
    let url = provider.url();
    println!("listening on {url}; for example:");
    let messages = r#""messages":[{"role":"user","content":"Where does the river run?"}]"#;
    println!(
        "curl -N {url}/v1/chat/completions -H 'x-sim-gap-ms: 200' -d '{{\"model\":\"sim-1\",\"stream\":true,{messages}}}'"
    );
    println!(
        "curl -i {url}/v1/messages -H 'x-sim-fault: 529' -d '{{\"model\":\"sim-1\",\"max_tokens\":64,{messages}}}'"
    );
    std::future::pending().await
}
