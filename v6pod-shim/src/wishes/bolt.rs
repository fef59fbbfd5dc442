//! Looks a value up in a Bolt database, which other programs may be writing.
//!
//! A file of pages: two meta pages, of which the newer counts, each the root of a B+ tree of keys; a
//! value can be a tree of its own, a bucket (bbolt's `page.go`, `bucket.go`, `db.go`; version 2, all
//! releases). Numbers have the machine's own byte order.
//!
//! Guarantees: no lock is taken, not even for reading. Podman opens this file anew for each thing that
//! it does, under an exclusive flock(2), and looks again every 50 ms where it finds it locked: a reader's
//! lock would slow it down, and a reader that waits would wait for it. None is needed: a transaction
//! writes only pages that belong to no earlier one, then its meta page, and pages that it freed are
//! not written before the next. So what was read under a meta page is right if that is still the newest
//! afterwards. Whatever the bytes are, the work is bounded by what `read` gives, and nothing panics.

use super::{Lookup, Read};

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// The sizes that machines' pages have, and so Bolt's.
const PAGE_SIZES: [usize; 3] = [4096, 16384, 65536];
/// A page's head: its number, flags, how many elements, how many pages more it goes on for.
const HEAD: usize = 16;
/// An element's head, in leaves and branches alike.
const ELEMENT: usize = 16;
/// A meta page's content, its checksum included.
const META: usize = 64;
/// A bucket's head in its value: root page and sequence.
const BUCKET: usize = 16;
/// Of the flags of a page and of a leaf's element.
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const IS_BUCKET: u32 = 0x01;
/// More levels than a database that fits a disk has.
const DEPTH: usize = 16;
/// No page is longer than `read` gives.
const LONGEST: usize = 1 << 30;

/// The value at the end of a path of keys, all but the last of which are buckets.
pub(crate) fn find(read: Read<'_>, path: &[&[u8]]) -> Lookup {
    let Some(before) = Meta::newest(read) else { return Lookup::Nothing };
    let found = descend(read, &before, path);
    match Meta::newest(read) {
        Some(after) if after.transaction == before.transaction => {
            found.map_or(Lookup::Nothing, Lookup::Found)
        }
        _ => Lookup::Moved,
    }
}

/// What a meta page says.
struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

impl Meta {
    /// The one of the last transaction: the first page or the second, whose place depends on the size.
    fn newest(read: Read<'_>) -> Option<Self> {
        let first = Self::at(read, 0);
        let second = PAGE_SIZES
            .iter()
            .find_map(|&size| Self::at(read, size as u64).filter(|meta| meta.page_size == size));
        first.into_iter().chain(second).max_by_key(|meta| meta.transaction)
    }

    /// The one at this place, if it is whole.
    fn at(read: Read<'_>, at: u64) -> Option<Self> {
        let bytes = read(at + HEAD as u64, META)?;
        let page_size = usize::try_from(u32_at(&bytes, 8)?).ok()?;
        let right = u32_at(&bytes, 0)? == MAGIC
            && u32_at(&bytes, 4)? == VERSION
            && PAGE_SIZES.contains(&page_size)
            && u64_at(&bytes, META - 8)? == fnv1a(bytes.get(..META - 8)?);
        right.then_some(Self {
            page_size,
            root: u64_at(&bytes, 16)?,
            transaction: u64_at(&bytes, 48)?,
        })
    }
}

/// The checksum of a meta page: 64-bit FNV-1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn descend(read: Read<'_>, meta: &Meta, path: &[&[u8]]) -> Option<Vec<u8>> {
    let (last, buckets) = path.split_last()?;
    let mut tree = Tree::At(meta.root);
    for key in buckets {
        let (is_bucket, value) = tree.get(read, meta.page_size, key)?;
        tree = Tree::of(&value).filter(|_| is_bucket)?;
    }
    let (is_bucket, value) = tree.get(read, meta.page_size, last)?;
    (!is_bucket).then_some(value)
}

/// Where a bucket's tree is.
enum Tree {
    /// Its root is this page.
    At(u64),
    /// It is small, and its only page stands in its value.
    Inline(Vec<u8>),
}

impl Tree {
    fn of(value: &[u8]) -> Option<Self> {
        match u64_at(value, 0)? {
            0 => Some(Self::Inline(value.get(BUCKET..)?.to_vec())),
            root => Some(Self::At(root)),
        }
    }

    /// The value of a key, and whether it is a bucket.
    fn get(self, read: Read<'_>, size: usize, key: &[u8]) -> Option<(bool, Vec<u8>)> {
        let mut page = match self {
            Self::At(root) => page_at(read, size, root)?,
            Self::Inline(page) => page,
        };
        for _ in 0..DEPTH {
            match u16_at(&page, 8)? {
                LEAF => return value_in(&page, key),
                BRANCH => page = page_at(read, size, child_in(&page, key)?)?,
                _ => return None,
            }
        }
        None
    }
}

/// A page with those that it goes on for.
fn page_at(read: Read<'_>, size: usize, number: u64) -> Option<Vec<u8>> {
    let at = number.checked_mul(size as u64)?;
    let head = read(at, HEAD)?;
    let more = usize::try_from(u32_at(&head, 12)?).ok()?;
    let length = more.checked_add(1)?.checked_mul(size).filter(|&length| length <= LONGEST)?;
    (u64_at(&head, 0)? == number).then(|| read(at, length))?
}

/// In a leaf, elements of flags, position from the element's own start, and two lengths.
fn value_in(page: &[u8], key: &[u8]) -> Option<(bool, Vec<u8>)> {
    for nth in 0..usize::from(u16_at(page, 10)?) {
        let at = HEAD + nth * ELEMENT;
        let (from, key_length, value_length) = (
            at.checked_add(length_at(page, at + 4)?)?,
            length_at(page, at + 8)?,
            length_at(page, at + 12)?,
        );
        let behind = from.checked_add(key_length)?;
        if page.get(from..behind)? == key {
            let value = page.get(behind..behind.checked_add(value_length)?)?;
            return Some((u32_at(page, at)? & IS_BUCKET != 0, value.to_vec()));
        }
    }
    None
}

/// In a branch, elements of position, the first key's length, and the child's page: the last child
/// whose first key is not beyond the one that is looked for.
fn child_in(page: &[u8], key: &[u8]) -> Option<u64> {
    let mut child = None;
    for nth in 0..usize::from(u16_at(page, 10)?) {
        let at = HEAD + nth * ELEMENT;
        let (from, length) = (at.checked_add(length_at(page, at)?)?, length_at(page, at + 4)?);
        if child.is_some() && page.get(from..from.checked_add(length)?)? > key {
            break;
        }
        child = Some(u64_at(page, at + 8)?);
    }
    child
}

/// A length or distance.
fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Containers `abab…` and `cdcd…`, in trees of their own pages, and `abab…` in a page's own value.
    const TWO_LEVELS: &[u8] = include_bytes!("../../../fuzz/corpus/podman_bolt/two-levels");
    const ONE_PAGE: &[u8] = include_bytes!("../../../fuzz/corpus/podman_bolt/one-page");
    const CTR: &[u8] = b"ctr";
    const CONFIG: &[u8] = b"config";

    fn reader(bytes: &[u8]) -> impl FnMut(u64, usize) -> Option<Vec<u8>> {
        move |at, length| {
            let at = usize::try_from(at).ok()?;
            bytes.get(at..at.checked_add(length)?).map(<[u8]>::to_vec)
        }
    }

    fn find_in(bytes: &[u8], path: &[&[u8]]) -> Lookup {
        find(&mut reader(bytes), path)
    }

    fn config(name: &str) -> Lookup {
        Lookup::Found(format!(r#"{{"labels":{{"v6pod.name":"{name}"}}}}"#).into_bytes())
    }

    #[test]
    fn a_container_is_found_under_its_id_alone() {
        let [a, b, c] = ["ab", "cd", "ac"].map(|two| two.repeat(32).into_bytes());
        assert_eq!(find_in(TWO_LEVELS, &[CTR, &a, CONFIG]), config("a"));
        assert_eq!(find_in(TWO_LEVELS, &[CTR, &b, CONFIG]), config("b"));
        assert_eq!(find_in(ONE_PAGE, &[CTR, &a, CONFIG]), config("a"));
        for nothing in [
            &[CTR, &c, CONFIG][..],
            &[CTR, b"", CONFIG],
            &[CTR, &a, b"confi"],
            &[CTR, &a],
            &[b"not-a-bucket", &a, CONFIG],
            &[b"pod", &a, CONFIG],
            &[],
        ] {
            assert_eq!(find_in(TWO_LEVELS, nothing), Lookup::Nothing);
        }
    }

    #[test]
    fn the_meta_page_of_the_last_whole_transaction_counts() {
        let a = "ab".repeat(32).into_bytes();
        let path = [CTR, &a, CONFIG];
        // The first page's transaction is the older one, and its root is nowhere.
        let mut bytes = TWO_LEVELS.to_vec();
        bytes[4096 + HEAD + 48] ^= 1;
        assert_eq!(find_in(&bytes, &path), Lookup::Nothing, "the second one is torn");
        bytes = ONE_PAGE.to_vec();
        bytes[4096 + HEAD + 48] ^= 1;
        assert_eq!(find_in(&bytes, &path), config("a"));
        bytes[HEAD] ^= 1;
        assert_eq!(find_in(&bytes, &path), Lookup::Nothing, "neither is whole");
    }

    #[test]
    fn what_was_written_meanwhile_is_not_taken_for_one_state() {
        let a = "ab".repeat(32).into_bytes();
        let mut later = ONE_PAGE.to_vec();
        later[HEAD + 48] += 5;
        let sum = fnv1a(&later[HEAD..HEAD + META - 8]);
        later[HEAD + META - 8..HEAD + META].copy_from_slice(&sum.to_ne_bytes());
        let mut reads = 0;
        let (mut before, mut after) = (reader(ONE_PAGE), reader(&later));
        let mut read = |at, length| {
            reads += 1;
            // The metas of the start are read by then.
            if reads > 4 { after(at, length) } else { before(at, length) }
        };
        assert_eq!(find(&mut read, &[CTR, &a, CONFIG]), Lookup::Moved);
    }

    #[test]
    fn a_database_that_ends_anywhere_or_leads_in_circles_says_nothing() {
        let a = "ab".repeat(32).into_bytes();
        let path = [CTR, &a, CONFIG];
        for end in (0..TWO_LEVELS.len() - 4096).step_by(97) {
            assert_ne!(find_in(&TWO_LEVELS[..end], &path), config("b"), "{end}");
        }
        // The branch is its own child.
        let mut bytes = TWO_LEVELS.to_vec();
        for child in 0..2 {
            let at = 3 * 4096 + HEAD + child * ELEMENT + 8;
            bytes[at..at + 8].copy_from_slice(&3u64.to_ne_bytes());
        }
        assert_eq!(find_in(&bytes, &path), Lookup::Nothing);
        // A page that claims to go on for 16 TiB.
        let mut bytes = ONE_PAGE.to_vec();
        bytes[2 * 4096 + 12..2 * 4096 + 16].fill(0xff);
        assert_eq!(find_in(&bytes, &path), Lookup::Nothing);
    }
}
