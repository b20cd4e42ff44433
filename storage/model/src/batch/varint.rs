//! Zigzag varints, as protobuf's `sint32` and `sint64`: at most 5 and 10 bytes.

/// Cuts a 64-bit varint from the front of `bytes`; `None` if it is cut short or too long.
pub(super) fn take_i64(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        // The tenth byte holds the last bit: more would not fit.
        if place == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            *bytes = bytes.get(place + 1..)?;
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// Cuts a 32-bit varint from the front of `bytes`; `None` if it is cut short or too long.
pub(super) fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    let mut rest = *bytes;
    let value = i32::try_from(take_i64(&mut rest)?).ok()?;
    // No 32-bit value needs more than five bytes; a longer spelling is not one a writer makes.
    if bytes.len() - rest.len() > 5 {
        return None;
    }
    *bytes = rest;
    Some(value)
}

/// Appends `value` as a varint.
pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    loop {
        let low = (rest & 0x7f).to_le_bytes()[0];
        rest >>= 7;
        if rest == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Bytes that [`put`] will write.
pub(super) const fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values_have_their_known_bytes() {
        let table: [(i64, &[u8]); 8] = [
            (0, &[0x00]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (64, &[0x80, 0x01]),
            (-65, &[0x81, 0x01]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MAX, &[0xfe, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ];
        for (value, bytes) in table {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(take_i64(&mut &out[..]), Some(value));
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        assert_eq!(take_i64(&mut &[0x80; 11][..]), None);
        let mut eleven_bits_too_many = [0xff; 10];
        eleven_bits_too_many[9] = 2;
        assert_eq!(take_i64(&mut &eleven_bits_too_many[..]), None);
        assert_eq!(take_i32(&mut &[0x80, 0x80, 0x80, 0x80, 0x80, 0][..]), None);
        assert_eq!(take_i32(&mut &[0xff, 0xff, 0xff, 0xff, 0x1f][..]), None);
    }

    proptest! {
        #[test]
        fn any_value_survives_and_no_prefix_does(value: i64) {
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(len(value), out.len());
            for cut in 0..out.len() {
                prop_assert_eq!(take_i64(&mut &out[..cut]), None);
            }
            let mut rest = &out[..];
            prop_assert_eq!(take_i64(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
            if let Ok(small) = i32::try_from(value) {
                prop_assert_eq!(take_i32(&mut &out[..]), Some(small));
            }
        }
    }
}
