//! A stack around a tonic channel, under a client that tonic generated.
//!
//! The service is gRPC's own health check, so that there is nothing to generate here: `check` answers once, `watch`
//! with a stream. It is served by this program too.

use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::ServiceBuilder;
use tower_llm_stack::{
    BoxError, BulkheadLayer, Refusal, Stack, TimeoutLayer, adapters::tonic::StatusLayer,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let url = format!("http://{}", incoming.local_addr()?);
    tokio::spawn(Server::builder().serve_with_incoming(health, incoming));

    // One call at a time, so that a second one can be seen to be refused.
    let bulkhead = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let handle = bulkhead.handle();
    let stack = Stack::builder()
        .without_describe()
        .bulkhead(bulkhead)
        .timeout(TimeoutLayer::new())
        .build();
    let service = ServiceBuilder::new()
        .layer(StatusLayer::refusals())
        .layer(stack)
        .service(Endpoint::new(url)?.connect_lazy());
    let mut client = HealthClient::new(service);
    // The whole server: it has no services by name.
    let request = HealthCheckRequest::default;

    let answer = client.check(request()).await?;
    println!("answer: {:?}", answer.into_inner().status());

    let mut stream = client.watch(request()).await?.into_inner();
    let part = stream.message().await?;
    println!("part: {:?}", part.map(|part| part.status()));

    // The stream holds its permit until it has ended or is dropped.
    if let Err(status) = client.check(request()).await {
        let refusal = Refusal::find(&status);
        println!(
            "refused: {:?}; by {:?}",
            status.code(),
            refusal.map(Refusal::layer)
        );
    }
    println!("bulkhead: {:?}", handle.stats());

    drop(stream);
    client.check(request()).await?;
    println!("bulkhead: {:?}", handle.stats());
    Ok(())
}
