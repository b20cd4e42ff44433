//! The codec of all gRPC messages: prost's bytes, written into room that was made for them.
//!
//! `tonic_prost::ProstCodec` writes field by field into a buffer that doubles as it fills: whatever
//! follows a batch in its message has the batch moved into a buffer of twice the size.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// A codec that sends `T` and receives `U`, as `application/grpc+proto`.
#[derive(Debug)]
pub struct SizedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SizedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SizedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SizedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::default().decoder()
    }
}

/// Encodes a message in room of its exact size.
#[derive(Debug)]
pub struct SizedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, room: &mut EncodeBuf<'_>) -> Result<(), Status> {
        room.reserve(item.encoded_len());
        item.encode(room)
            .map_err(|error| Status::internal(format!("no room for the message: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Body;
    use tonic::codec::EncodeBody;

    use super::*;
    use crate::v1::ProduceRequest;

    fn request() -> ProduceRequest {
        ProduceRequest {
            request_id: 7,
            topic: "orders".to_owned(),
            partition: 3,
            batch: Bytes::from(vec![b'x'; 65_000]),
            topic_id: Some(Bytes::from_static(&[9; 16])),
        }
    }

    /// What a message is sent as, and how much room it takes.
    async fn sent(message: ProduceRequest) -> (Bytes, usize) {
        let codec = SizedCodec::<ProduceRequest, ()>::default().encoder();
        let source = tokio_stream::once(Ok(message));
        let mut body = Box::pin(EncodeBody::new_client(codec, source, None, None));
        let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
        let sent = frame.expect("a frame").expect("no error").into_data();
        drop(body);
        let sent = sent
            .expect("data")
            .try_into_mut()
            .expect("nobody shares it");
        let room = sent.capacity();
        (sent.freeze(), room)
    }

    #[tokio::test]
    async fn a_message_is_written_as_prost_writes_it_into_room_of_its_size() {
        let (sent, room) = sent(request()).await;
        assert_eq!(&sent[5..], request().encode_to_vec());
        assert!(room < sent.len() + 8192, "{room} bytes for {}", sent.len());
    }
}
