//! Simulated providers, fault scripts and Redis servers for tests.
//!
//! - [`SimulatedProvider`]: an HTTP server that speaks the dialects of OpenAI, Azure, Anthropic and Gemini. A [`Behavior`]
//!   sets its speed, its answers and its faults. It counts requests, connections and tokens.
//! - [`wire`]: the same answers as bytes, without a server.
//! - [`fixtures`]: recorded response bodies of providers, each with the result expected from reading it.
//! - [`example`]: runs the workspace's examples as programs.
//! - [`redis`]: Redis servers and clusters that a test can kill, freeze and restart.
//! - [`Stopwatch`]: elapsed time, excluding pauses in which the machine did not run the process.
//!
//! ```
//! use http_body_util::{BodyExt, Full};
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use tower_llm_testkit::{Behavior, Fault, RetryAfter, SimulatedProvider};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = SimulatedProvider::start().await?;
//! provider.set(Behavior::new().output_tokens(20));
//! provider.push(Fault::Throttled(RetryAfter::Seconds(2)));
//!
//! let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
//! let chat = || {
//!     let body = Full::from(r#"{"model":"sim-1","messages":[]}"#);
//!     http::Request::post(format!("{}/v1/chat/completions", provider.url())).body(body)
//! };
//! let refused = client.request(chat()?).await?;
//! assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"2".parse()?));
//! let answered = client.request(chat()?).await?;
//! answered.into_body().collect().await?;
//! assert_eq!(provider.counts().output_tokens, 20);
//! # Ok(())
//! # }
//! ```

mod behavior;
pub mod example;
mod fault;
pub mod fixtures;
#[cfg(feature = "mock")]
pub mod mock;
mod provider;
pub mod redis;
mod stopwatch;
pub mod wire;

pub use behavior::{Behavior, Cut, LineEnding};
pub use fault::{Fault, InBand, RetryAfter};
pub use provider::{Counts, Recorded, SimulatedProvider};
pub use stopwatch::Stopwatch;
