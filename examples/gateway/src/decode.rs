//! Decoding what an upstream compressed, so that the layers can read it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::util::MapResponse;
use tower_http::decompression::{Decompression, DecompressionBody};
use tower_llm_stack::BoxError;

/// A client whose responses, with the body `B`, are decoded.
pub(crate) type Decode<C, B = Incoming> =
    MapResponse<Decompression<C>, fn(Response<DecompressionBody<B>>) -> Response<Decoded<B>>>;

pin_project! {
    /// A response body, decoded if it was coded, that knows its end.
    ///
    /// tower-http's does not say that it has ended. A response with a length is dropped after its last byte, without being
    /// asked for more, so the layers would take it for one that the caller gave up.
    pub(crate) struct Decoded<B: Body> {
        #[pin]
        inner: DecompressionBody<B>,
    }
}

pub(crate) fn decode<C, B: Body>(client: C) -> Decode<C, B> {
    MapResponse::new(Decompression::new(client), |response| {
        response.map(|inner| Decoded { inner })
    })
}

impl<B> Body for Decoded<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        // What is left of a body that is not coded; of any other the length is not known.
        self.inner.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
