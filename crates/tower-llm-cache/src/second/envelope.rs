//! What stands in Redis: a record, with all that it takes to trust it.
//!
//! ```text
//! magic  u8 version  u8 flags  u64 stored at  u64 ttl  16 bytes checksum                payload
//! magic  u8 version  u8 flags  u64 stored at  u64 ttl  24 bytes nonce     sealed(payload) 16 bytes tag
//! ```
//!
//! Times are milliseconds, since 1970 and in all; numbers are little-endian. The checksum, or the seal, covers the key, what
//! stands before it, and the payload, so that another key's value is none. A payload is a record, or its length (`u32`) and an
//! LZ4 block.

use std::time::Duration;

use bytes::Bytes;
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, KeyInit, Payload},
};

use super::owned;
use crate::record::Record;

const MAGIC: &[u8; 4] = b"tlls";
/// Of the layout. A value of another version is none.
const VERSION: u8 = 1;
const COMPRESSED: u8 = 1;
const SEALED: u8 = 2;
const HEADER: usize = 4 + 1 + 1 + 8 + 8;
const CHECKSUM: usize = 16;
const NONCE: usize = 24;
/// LZ4 cannot compress further.
const MAX_RATIO: usize = 255;

const SEAL_CONTEXT: &str = "tower-llm-cache 2026-11 values in redis: seal";
const CHECKSUM_CONTEXT: &str = "tower-llm-cache 2026-11 values in redis: checksum";

/// Writes and reads values.
pub(super) struct Codec {
    cipher: Option<XChaCha20Poly1305>,
    compress_above: Option<usize>,
}

/// A value that can be trusted.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) record: Record,
    /// At most the time to live.
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
}

impl Codec {
    pub(super) fn new(secret: Option<&[u8; 32]>, compress_above: Option<usize>) -> Self {
        let key = secret.map(|secret| blake3::derive_key(SEAL_CONTEXT, secret));
        Self {
            cipher: key.map(|key| XChaCha20Poly1305::new(&key.into())),
            compress_above,
        }
    }

    /// Writes a value; `None` if there is no randomness to seal it with.
    pub(super) fn write(
        &self,
        key: &str,
        record: &[u8],
        stored_at_ms: u64,
        ttl: Duration,
    ) -> Option<Bytes> {
        let compressed = self.compressed(record);
        let payload = compressed.as_deref().unwrap_or(record);
        let mut flags = 0;
        if compressed.is_some() {
            flags |= COMPRESSED;
        }
        if self.cipher.is_some() {
            flags |= SEALED;
        }
        let mut value = Vec::with_capacity(HEADER + NONCE + payload.len() + CHECKSUM);
        value.extend_from_slice(MAGIC);
        value.extend_from_slice(&[VERSION, flags]);
        value.extend_from_slice(&stored_at_ms.to_le_bytes());
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        value.extend_from_slice(&ttl_ms.to_le_bytes());
        match &self.cipher {
            Some(cipher) => {
                let aad = [value.as_slice(), key.as_bytes()].concat();
                let nonce = XNonce::try_generate().ok()?;
                let payload = Payload {
                    msg: payload,
                    aad: &aad,
                };
                let sealed = cipher.encrypt(&nonce, payload).ok()?;
                value.extend_from_slice(&nonce);
                value.extend_from_slice(&sealed);
            }
            None => {
                let checksum = checksum(key, &value, payload);
                value.extend_from_slice(&checksum);
                value.extend_from_slice(payload);
            }
        }
        Some(value.into())
    }

    /// Reads a value; `None` if anything in it is not as we would have written it.
    pub(super) fn open(&self, key: &str, value: &[u8], now_ms: u64) -> Option<Opened> {
        let (header, rest) = value.split_at_checked(HEADER)?;
        let (magic, fields) = header.split_first_chunk::<4>()?;
        let (&[version, flags], times) = fields.split_first_chunk::<2>()?;
        let is_sealed = flags & SEALED != 0;
        if magic != MAGIC
            || version != VERSION
            || flags & !(COMPRESSED | SEALED) != 0
            // What anyone could have written is not used beside what is sealed.
            || is_sealed != self.cipher.is_some()
        {
            return None;
        }
        let (stored_at, ttl) = times.split_first_chunk::<8>()?;
        let stored_at_ms = u64::from_le_bytes(*stored_at);
        let ttl_ms = u64::from_le_bytes(ttl.try_into().ok()?);
        let unpack = |payload: &[u8]| match flags & COMPRESSED {
            0 => Some(owned(payload)),
            _ => unpacked(payload),
        };
        let record = match &self.cipher {
            Some(cipher) => unpack(&unsealed(cipher, key, header, rest)?)?,
            None => {
                let (expected, payload) = rest.split_first_chunk::<CHECKSUM>()?;
                if checksum(key, header, payload) != *expected {
                    return None;
                }
                unpack(payload)?
            }
        };
        opened(record, stored_at_ms, ttl_ms, now_ms)
    }

    fn compressed(&self, record: &[u8]) -> Option<Vec<u8>> {
        if record.len() <= self.compress_above? {
            return None;
        }
        let block = lz4_flex::block::compress(record);
        let mut packed = Vec::with_capacity(4 + block.len());
        packed.extend_from_slice(&u32::try_from(record.len()).ok()?.to_le_bytes());
        packed.extend_from_slice(&block);
        (packed.len() < record.len()).then_some(packed)
    }
}

fn opened(record: Bytes, stored_at_ms: u64, ttl_ms: u64, now_ms: u64) -> Option<Opened> {
    Some(Opened {
        record: Record::parse(record)?,
        // Clocks differ: an answer from the future is new.
        age: Duration::from_millis(now_ms.saturating_sub(stored_at_ms).min(ttl_ms)),
        ttl: Duration::from_millis(ttl_ms),
    })
}

fn unsealed(cipher: &XChaCha20Poly1305, key: &str, header: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
    let aad = [header, key.as_bytes()].concat();
    let payload = Payload {
        msg: sealed,
        aad: &aad,
    };
    cipher.decrypt(&(*nonce).into(), payload).ok()
}

fn unpacked(packed: &[u8]) -> Option<Bytes> {
    let (len, block) = packed.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    // The memory that is allocated is bounded by what has arrived.
    if len > block.len().saturating_mul(MAX_RATIO) {
        return None;
    }
    let record = lz4_flex::block::decompress(block, len).ok()?;
    (record.len() == len).then(|| record.into())
}

fn checksum(key: &str, header: &[u8], payload: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
    hasher.update(header);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(payload);
    let mut checksum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::form::Form;

    const KEY: &str = "ai:completion:m:00";
    const TTL: Duration = Duration::from_secs(100);
    const AT: u64 = 1_000_000;

    fn record(body: &[u8]) -> Bytes {
        let frames = [Bytes::copy_from_slice(body)];
        let record = Record::new(Form::Events, true, None, &HeaderMap::new(), &frames);
        record.unwrap().bytes().clone()
    }

    fn codecs() -> [Codec; 4] {
        let secret = [7; 32];
        [
            Codec::new(None, None),
            Codec::new(None, Some(0)),
            Codec::new(Some(&secret), None),
            Codec::new(Some(&secret), Some(0)),
        ]
    }

    fn body_of(opened: &Opened) -> Vec<Bytes> {
        opened.record.frames().collect()
    }

    #[test]
    fn compression_makes_a_stream_smaller_and_leaves_noise_as_it_is() {
        let codec = Codec::new(None, Some(100));
        let stream = record(&b"data: {\"choices\":[]}\n\n".repeat(100));
        let value = codec.write(KEY, &stream, AT, TTL).unwrap();
        assert!(value.len() * 4 < stream.len(), "{}", value.len());
        let noise: Vec<u8> = (0..1_000).map(|_| fastrand::u8(..)).collect();
        let noise = record(&noise);
        let value = codec.write(KEY, &noise, AT, TTL).unwrap();
        assert_eq!(value.len(), HEADER + CHECKSUM + noise.len());
    }

    #[test]
    fn ages_are_within_the_ttl_whatever_the_clocks_say() {
        let codec = Codec::new(None, None);
        let value = codec.write(KEY, &record(b"a"), AT, TTL).unwrap();
        for (now, age) in [(0, 0), (AT, 0), (AT + 99_999, 99_999), (u64::MAX, 100_000)] {
            let opened = codec.open(KEY, &value, now).unwrap();
            assert_eq!(opened.age, Duration::from_millis(age));
            assert_eq!(opened.ttl, TTL);
        }
    }

    #[test]
    fn a_value_of_another_key_secret_or_version_is_none() {
        let codecs = codecs();
        for (writer, codec) in codecs.iter().enumerate() {
            let value = codec.write(KEY, &record(b"a"), AT, TTL).unwrap();
            assert!(codec.open("ai:completion:m:01", &value, AT).is_none());
            let other = Codec::new(Some(&[8; 32]), None);
            assert!(other.open(KEY, &value, AT).is_none());
            for (reader, codec) in codecs.iter().enumerate() {
                let is_found = codec.open(KEY, &value, AT).is_some();
                // Compression needs no setting to be read.
                assert_eq!(is_found, writer / 2 == reader / 2);
            }
            let mut later = value.to_vec();
            later[4] += 1;
            assert!(codec.open(KEY, &later, AT).is_none());
        }
    }

    #[test]
    fn an_older_record_in_a_valid_envelope_is_none() {
        let mut older = record(b"a").to_vec();
        older[4] -= 1;
        for codec in codecs() {
            let value = codec.write(KEY, &older, AT, TTL).unwrap();
            assert!(codec.open(KEY, &value, AT).is_none());
        }
    }

    #[test]
    fn a_length_that_no_block_could_have_is_none_and_allocates_nothing() {
        let mut packed = u32::MAX.to_le_bytes().to_vec();
        packed.extend_from_slice(&[0; 100]);
        assert!(unpacked(&packed).is_none());
        assert!(unpacked(&[]).is_none());
        assert!(unpacked(&[1, 0, 0, 0]).is_none());
    }

    #[test]
    fn what_is_sealed_shows_nothing_and_never_looks_the_same() {
        let codec = Codec::new(Some(&[7; 32]), None);
        let record = record(b"the answer");
        let one = codec.write(KEY, &record, AT, TTL).unwrap();
        let two = codec.write(KEY, &record, AT, TTL).unwrap();
        assert_ne!(one, two);
        let shows = |value: &[u8]| value.windows(10).any(|part| part == b"the answer");
        assert!(!shows(&one) && shows(&record));
    }

    proptest! {
        #[test]
        fn a_value_is_read_as_it_was_written(body in prop::collection::vec(any::<u8>(), 0..2_000)) {
            for codec in codecs() {
                let value = codec.write(KEY, &record(&body), AT, TTL).unwrap();
                let opened = codec.open(KEY, &value, AT).unwrap();
                prop_assert_eq!(body_of(&opened), [Bytes::from(body.clone())]);
            }
        }

        #[test]
        fn a_bit_that_has_flipped_makes_it_none(
            body in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            for codec in codecs() {
                let value = codec.write(KEY, &record(&body), AT, TTL).unwrap();
                let mut value = value.to_vec();
                let at = at.index(value.len());
                value[at] ^= 1_u8 << bit;
                prop_assert!(codec.open(KEY, &value, AT).is_none());
            }
        }

        #[test]
        fn a_part_of_a_value_is_none(
            body in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
        ) {
            for codec in codecs() {
                let value = codec.write(KEY, &record(&body), AT, TTL).unwrap();
                let at = at.index(value.len());
                prop_assert!(codec.open(KEY, &value[..at], AT).is_none());
            }
        }

        #[test]
        fn random_bytes_are_none(
            mut value in prop::collection::vec(any::<u8>(), 0..300),
            flags in 0_u8..4,
            has_header in any::<bool>(),
        ) {
            if has_header {
                value.splice(0..0, [b't', b'l', b'l', b's', VERSION, flags]);
            }
            for codec in codecs() {
                prop_assert!(codec.open(KEY, &value, AT).is_none());
            }
            unpacked(&value);
        }
    }
}
