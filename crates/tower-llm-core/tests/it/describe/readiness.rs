//! The inner service is readied and called once the body has arrived, and none of its permits is acquired before.

use super::*;

#[tokio::test]
async fn the_inner_service_is_readied_before_it_is_called() {
    let (mut service, mut handle) = mock::spawn_layer::<Sent, &str, _>(DescribeLayer::new());
    handle.allow(0);
    // Reading a body does not need the inner service.
    assert!(matches!(
        service.poll_ready::<Request<Full<Bytes>>>(),
        Poll::Ready(Ok(()))
    ));
    let request = Request::post("/v1/messages")
        .body(Full::<Bytes>::from(r#"{"model":"m"}"#))
        .unwrap();
    let mut answer = Box::pin(service.call(request));
    assert!(
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    assert!(
        pin!(handle.next_request())
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );

    handle.allow(1);
    let answering = async {
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.call().unwrap().model(), Some("m"));
        send.send_response("done");
    };
    let (answer, ()) = tokio::join!(answer, answering);
    assert_eq!(answer.unwrap(), "done");
}

#[tokio::test]
async fn an_error_of_the_inner_service_passes() {
    let inner = service_fn(async |_: Sent<_>| Err::<Response<()>, BoxError>("inner".into()));
    let request = Request::post("/").body(Empty::<Bytes>::new()).unwrap();
    let error = DescribeLayer::new()
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "inner");
}

#[tokio::test]
async fn a_disconnect_during_the_request_never_reaches_the_inner_service() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let inner = service_fn(move |request: Sent<_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        echo(request)
    });
    let script = Script::data(["{\"model\":"]).then(Step::Hang);
    let request = Request::post("/v1/messages").body(script).unwrap();
    let mut future = Box::pin(DescribeLayer::new().layer(inner).oneshot(request));
    assert!(
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    drop(future);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_body_holds_no_permit_of_an_inner_layer() {
    let inner = ConcurrencyLimit::new(service_fn(echo), 1);
    let service = DescribeLayer::new().layer(inner);
    let begun = Instant::now();
    let slow = Request::post("/slow")
        .body(Slow::new(Duration::from_secs(60)))
        .unwrap();
    let quick = Request::post("/quick")
        .body(Slow::new(Duration::from_secs(1)))
        .unwrap();
    let slow = async {
        service.clone().oneshot(slow).await.unwrap();
        begun.elapsed()
    };
    let quick = async {
        service.clone().oneshot(quick).await.unwrap();
        begun.elapsed()
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(quick, Duration::from_secs(1));
    assert_eq!(slow, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_saturated_inner_service_and_releases_its_permit() {
    let work = service_fn(async |request: Sent<_>| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        echo(request).await
    });
    let service = DescribeLayer::new().layer(ConcurrencyLimit::new(work, 1));
    let begun = Instant::now();
    let request = || Request::post("/").body(Empty::<Bytes>::new()).unwrap();
    let one = async |abandoned: bool| {
        let answer = service.clone().oneshot(request());
        if abandoned {
            tokio::time::timeout(Duration::from_secs(5), answer)
                .await
                .unwrap_err();
        } else {
            answer.await.unwrap();
        }
        begun.elapsed().as_secs()
    };
    let times = tokio::join!(one(false), one(true), one(false));
    assert_eq!(times, (10, 5, 20));
}
