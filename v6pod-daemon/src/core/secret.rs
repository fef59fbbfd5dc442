//! Numbers that are the same each time and that nobody guesses: SipHash-2-4 with a key of this host's own.
//!
//! Guarantee: equal texts give equal numbers for as long as the key is kept, whatever version of this
//! software asks. Who does not have the key cannot tell such a number from a random one (Aumasson and
//! Bernstein, "SipHash: a fast short-input PRF", 2012), so no number tells of a user or a name.

use std::fmt;

/// The key, 128 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u64; 2]);

impl Secret {
    /// The key of these bits.
    pub const fn new(bits: u128) -> Self {
        Self([bits as u64, (bits >> 64) as u64])
    }

    /// 128 bits that follow from these parts and the key. No other parts say the same: each is hashed with
    /// its length before it.
    pub fn number(&self, parts: &[&[u8]]) -> u128 {
        let mut text = Vec::new();
        for part in parts {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part);
        }
        let half = |which: u8| {
            text.push(which);
            let half = siphash(self.0, &text);
            text.pop();
            u128::from(half)
        };
        let [high, low] = [1, 2].map(half);
        high << 64 | low
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn siphash(key: [u64; 2], text: &[u8]) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |word: u64| {
        state[3] ^= word;
        (0..2).for_each(|_| round(&mut state));
        state[0] ^= word;
    };
    let (words, rest) = text.as_chunks::<8>();
    words.iter().for_each(|word| take(u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The last byte is the text's length, modulo 256.
    last[7] = text.len() as u8;
    take(u64::from_le_bytes(last));
    state[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut state));
    state.into_iter().fold(0, |all, word| all ^ word)
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_siphash_as_its_authors_have_it() {
        // Key 00 01 … 0f; texts 00 01 … of 0, 1, 8 and 15 bytes (the reference's vectors; the last is also
        // the paper's example).
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let text: Vec<u8> = (0..15).collect();
        for (length, hash) in [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ] {
            assert_eq!(siphash(key, &text[..length]), hash, "{length} bytes");
        }
    }

    #[test]
    fn other_parts_and_other_keys_give_other_numbers() {
        let secret = Secret::new(7);
        let all = [
            secret.number(&[b"ab", b"c"]),
            secret.number(&[b"a", b"bc"]),
            secret.number(&[b"abc"]),
            secret.number(&[]),
            Secret::new(8).number(&[b"ab", b"c"]),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(secret.number(&[b"ab", b"c"]), all[0]);
        assert_eq!(format!("{secret:?}"), "Secret");
    }
}
