//! Which partition a record goes to: as Java's client chooses, so that one key has one partition
//! whoever writes it.

/// The 32-bit murmur2 hash with which Kafka's clients spread keys.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    // Longer than 4 GiB no key is; the hash takes the length modulo 2^32.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ len;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (place, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key among `partitions`, which must not be zero.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_equal_those_of_other_clients() {
        // The first five are in the tests of Kafka's own client, the rest from kafka-python.
        let table: [(&[u8], u32); 10] = [
            (b"21", (-973_932_308_i32).cast_unsigned()),
            (b"foobar", (-790_332_482_i32).cast_unsigned()),
            (
                b"a-little-bit-long-string",
                (-985_981_536_i32).cast_unsigned(),
            ),
            (
                b"a-little-bit-longer-string",
                (-1_486_304_829_i32).cast_unsigned(),
            ),
            (b"abc", 479_470_107),
            (b"", 0x106e_08d9),
            (b"a", 0xa2d0_b27c),
            (b"ab", 0x12d8_262a),
            (b"abcd", 0xb11a_b5f4),
            (
                &std::array::from_fn::<u8, 256, _>(|i| i.to_le_bytes()[0]),
                0x8bde_9476,
            ),
        ];
        for (key, hash) in table {
            assert_eq!(murmur2(key), hash, "{key:?}");
        }
    }

    #[test]
    fn a_negative_hash_still_gives_a_partition() {
        assert_eq!(partition_of_key(b"a", 100), 24);
        assert_eq!(partition_of_key(b"", 100), 81);
        assert_eq!(partition_of_key(b"foobar", 1), 0);
    }
}
