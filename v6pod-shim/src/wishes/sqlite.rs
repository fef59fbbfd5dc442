//! Looks a container up in podman's SQLite database, which other programs may be writing.
//!
//! The file's format is promised for good (sqlite.org/fileformat2.html): pages that are B-trees, of
//! rows by number or of index entries by key; what is too long for a page goes on in others. Read
//! here: the schema on page 1, one index, one row. Not SQLite itself, which would be as large as all
//! of v6pod's other programs for users together, takes locks that podman may stumble over, and cannot
//! be told to do without and to heed a journal at once.
//!
//! Guarantees: no lock is taken and nothing is written. What is read is right if there is no journal
//! before and after (the caller's to see to: one exists before the file is first written to, until the
//! transaction is over) and the head of the file, with its count of changes, is the same. Another schema,
//! another journal mode, another encoding than podman's: nothing is found. Whatever the bytes are, the
//! work is bounded by what `read` gives, and nothing panics.

use super::{Lookup, Read};

/// The version of podman's schema, the only one there has been (4.8 to 6).
const SCHEMA: i64 = 1;
/// The head of the file, on page 1 before that page's tree.
const HEAD: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";
/// More levels than a database that fits a disk has.
const DEPTH: usize = 16;
/// More tables and indices than podman has, by far.
const SCHEMA_ROWS: usize = 256;
/// No row is longer than `read` gives in all.
const LONGEST: u64 = 16 << 20;

/// What podman keeps by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A container.
    Container,
    /// A pod.
    Pod,
}

impl What {
    /// Its table, and the index of that by the first column which has to be unique: its id.
    const fn names(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Container => (b"ContainerConfig", b"sqlite_autoindex_ContainerConfig_1"),
            Self::Pod => (b"PodConfig", b"sqlite_autoindex_PodConfig_1"),
        }
    }
}

/// The container's or the pod's configuration, as podman wrote it.
pub(crate) fn find(read: Read<'_>, what: What, id: &str) -> Lookup {
    let Some(before) = read(0, HEAD) else { return Lookup::Nothing };
    let found = Format::of(&before).and_then(|format| look_up(read, &format, what, id));
    match read(0, HEAD) {
        Some(after) if after == before => found.map_or(Lookup::Nothing, Lookup::Found),
        _ => Lookup::Moved,
    }
}

fn look_up(read: Read<'_>, format: &Format, what: What, id: &str) -> Option<Vec<u8>> {
    let schema = Schema::read(read, format, what)?;
    (schema.version(read, format)? == SCHEMA).then_some(())?;
    let number = row_number(read, format, schema.index, id.as_bytes())?;
    let row = format.row(read, schema.table.root, Some(number))?;
    // The index may lie.
    (bytes_of(&row, schema.table.column("ID")?)? == id.as_bytes()).then_some(())?;
    bytes_of(&row, schema.table.column("JSON")?).map(<[u8]>::to_vec)
}

/// What the head of the file says.
struct Format {
    page_size: usize,
    /// The part of each page that is used.
    usable: usize,
}

impl Format {
    fn of(head: &[u8]) -> Option<Self> {
        let page_size = match u16_at(head, 16)? {
            1 => 65536,
            size => usize::from(size),
        };
        let usable = page_size.checked_sub(usize::from(*head.get(20)?))?;
        let right = head.starts_with(MAGIC)
            && page_size.is_power_of_two()
            && page_size >= 512
            && usable >= 480
            // With a rollback journal, for readers too: not a write-ahead log, whose content is elsewhere.
            && head.get(18..20)? == [1, 1]
            && head.get(21..24)? == [64, 32, 32]
            && u32_at(head, 56)? == 1;
        right.then_some(Self { page_size, usable })
    }

    fn page(&self, read: Read<'_>, number: u32) -> Option<Page> {
        let at = u64::from(number.checked_sub(1)?) * self.page_size as u64;
        let bytes = read(at, self.page_size)?;
        let head = if number == 1 { HEAD } else { 0 };
        let kind = Kind::of(*bytes.get(head)?)?;
        Some(Page { kind, head, bytes })
    }

    /// The row of this number, or the first one.
    fn row(&self, read: Read<'_>, root: u32, number: Option<i64>) -> Option<Vec<u8>> {
        let mut page = self.page(read, root)?;
        for _ in 0..DEPTH {
            let mut cells = 0..page.cells()?;
            match page.kind {
                // To the left of a key are the rows up to it.
                Kind::TableInterior => {
                    let reaches = |cell: &usize| {
                        let (key, _) = varint(&page.bytes, page.cell(*cell)? + 4)?;
                        Some(number.is_none_or(|number| number <= key))
                    };
                    let next = match cells.find(|cell| reaches(cell) == Some(true)) {
                        Some(cell) => u32_at(&page.bytes, page.cell(cell)?)?,
                        None => page.rightmost()?,
                    };
                    page = self.page(read, next)?;
                }
                Kind::TableLeaf => {
                    let is_it = |cell: &usize| {
                        let (_, at) = varint(&page.bytes, page.cell(*cell)?)?;
                        let (own, _) = varint(&page.bytes, at)?;
                        Some(number.is_none_or(|number| number == own))
                    };
                    let cell = cells.find(|cell| is_it(cell) == Some(true))?;
                    return self.payload(read, &page, page.cell(cell)?);
                }
                _ => return None,
            }
        }
        None
    }

    /// The content of a cell of a table's leaf or an index, whose length stands at `at`.
    fn payload(&self, read: Read<'_>, page: &Page, at: usize) -> Option<Vec<u8>> {
        let (length, mut at) = varint(&page.bytes, at)?;
        let length = usize::try_from(length).ok().filter(|&l| l as u64 <= LONGEST)?;
        let least = (self.usable - 12) * 32 / 255 - 23;
        let most = match page.kind {
            Kind::TableLeaf => {
                at = varint(&page.bytes, at)?.1;
                self.usable - 35
            }
            _ => (self.usable - 12) * 64 / 255 - 23,
        };
        if length <= most {
            return page.bytes.get(at..at.checked_add(length)?).map(<[u8]>::to_vec);
        }
        let fits = least + (length - least) % (self.usable - 4);
        let local = if fits <= most { fits } else { least };
        let mut payload = page.bytes.get(at..at + local)?.to_vec();
        let mut next = u32_at(&page.bytes, at + local)?;
        // Each page more brings something, so this ends.
        while payload.len() < length {
            let start = u64::from(next.checked_sub(1)?) * self.page_size as u64;
            let more = read(start, self.usable)?;
            let take = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(more.get(4..4 + take)?);
            next = u32_at(&more, 0)?;
        }
        Some(payload)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    TableInterior,
    TableLeaf,
    IndexInterior,
    IndexLeaf,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            2 => Some(Self::IndexInterior),
            5 => Some(Self::TableInterior),
            10 => Some(Self::IndexLeaf),
            13 => Some(Self::TableLeaf),
            _ => None,
        }
    }

    const fn is_interior(self) -> bool {
        matches!(self, Self::TableInterior | Self::IndexInterior)
    }
}

/// A page of a tree.
struct Page {
    kind: Kind,
    /// Where its head begins.
    head: usize,
    bytes: Vec<u8>,
}

impl Page {
    fn cells(&self) -> Option<usize> {
        u16_at(&self.bytes, self.head + 3).map(usize::from)
    }

    /// Where a cell begins.
    fn cell(&self, nth: usize) -> Option<usize> {
        let pointers = self.head + if self.kind.is_interior() { 12 } else { 8 };
        u16_at(&self.bytes, pointers + 2 * nth).map(usize::from)
    }

    fn rightmost(&self) -> Option<u32> {
        u32_at(&self.bytes, self.head + 8)
    }
}

/// A table.
struct Table {
    root: u32,
    /// As it was made.
    sql: String,
}

impl Table {
    /// The place of a column in its rows.
    fn column(&self, name: &str) -> Option<usize> {
        let columns = self.sql.split_once('(')?.1.split(',');
        columns.map(str::trim_start).position(|column| {
            column.split_ascii_whitespace().next().is_some_and(|first| first == name)
        })
    }
}

/// What there is.
struct Schema {
    settings: Table,
    table: Table,
    /// The root of the index of that by id.
    index: u32,
}

impl Schema {
    fn read(read: Read<'_>, format: &Format, what: What) -> Option<Self> {
        let (mut settings, mut wanted, mut index) = (None, None, None);
        let (its_table, its_index) = what.names();
        for row in rows(read, format, 1, DEPTH)?.iter().take(SCHEMA_ROWS) {
            // type, name, tbl_name, rootpage, sql
            let root = || u32::try_from(number_of(row, 3)?).ok();
            let table = || {
                let sql = String::from_utf8(bytes_of(row, 4)?.to_vec()).ok()?;
                Some(Table { root: root()?, sql })
            };
            match (bytes_of(row, 0)?, bytes_of(row, 1)?) {
                (b"table", b"DBConfig") => settings = table(),
                (b"table", name) if name == its_table => wanted = table(),
                (b"index", name) if name == its_index => index = root(),
                _ => {}
            }
        }
        Some(Self { settings: settings?, table: wanted?, index: index? })
    }

    fn version(&self, read: Read<'_>, format: &Format) -> Option<i64> {
        let row = format.row(read, self.settings.root, None)?;
        number_of(&row, self.settings.column("SchemaVersion")?)
    }
}

/// All rows of a small table.
fn rows(read: Read<'_>, format: &Format, root: u32, depth: usize) -> Option<Vec<Vec<u8>>> {
    let page = format.page(read, root)?;
    let cells = page.cells()?.min(SCHEMA_ROWS);
    let mut all = Vec::new();
    match page.kind {
        Kind::TableLeaf => {
            for cell in 0..cells {
                all.push(format.payload(read, &page, page.cell(cell)?)?);
            }
        }
        Kind::TableInterior => {
            let depth = depth.checked_sub(1)?;
            for cell in 0..cells {
                let child = u32_at(&page.bytes, page.cell(cell)?)?;
                all.append(&mut rows(read, format, child, depth)?);
                (all.len() <= SCHEMA_ROWS).then_some(())?;
            }
            all.append(&mut rows(read, format, page.rightmost()?, depth)?);
        }
        Kind::IndexInterior | Kind::IndexLeaf => return None,
    }
    Some(all)
}

/// The number of the row that an index has under this text.
fn row_number(read: Read<'_>, format: &Format, root: u32, key: &[u8]) -> Option<i64> {
    let mut number = root;
    for _ in 0..DEPTH {
        let page = format.page(read, number)?;
        let child = match page.kind {
            Kind::IndexInterior => 4,
            Kind::IndexLeaf => 0,
            Kind::TableInterior | Kind::TableLeaf => return None,
        };
        let mut next = page.rightmost().filter(|_| page.kind.is_interior());
        for cell in 0..page.cells()? {
            let at = page.cell(cell)?;
            let entry = format.payload(read, &page, at + child)?;
            let own = bytes_of(&entry, 0)?;
            if own == key {
                return number_of(&entry, 1);
            }
            if own > key {
                next = u32_at(&page.bytes, at).filter(|_| page.kind.is_interior());
                break;
            }
        }
        number = next?;
    }
    None
}

/// Where a value of a row is, and of which type.
fn value_at(row: &[u8], column: usize) -> Option<(i64, &[u8])> {
    let (head, mut at) = varint(row, 0)?;
    let head = usize::try_from(head).ok()?;
    let mut start = head;
    for nth in 0.. {
        if at >= head {
            return None;
        }
        let (kind, next) = varint(row, at)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            12.. => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let end = start.checked_add(length)?;
        if nth == column {
            return Some((kind, row.get(start..end)?));
        }
        (at, start) = (next, end);
    }
    None
}

/// A text, or bytes: podman binds its JSON as the latter.
fn bytes_of(row: &[u8], column: usize) -> Option<&[u8]> {
    value_at(row, column).filter(|(kind, _)| *kind >= 12).map(|(_, bytes)| bytes)
}

fn number_of(row: &[u8], column: usize) -> Option<i64> {
    match value_at(row, column)? {
        (8, _) => Some(0),
        (9, _) => Some(1),
        (1..=6, bytes) => {
            let sign = if bytes.first()? & 0x80 == 0 { 0 } else { -1 };
            Some(bytes.iter().fold(sign, |number, &byte| (number << 8) | i64::from(byte)))
        }
        _ => None,
    }
}

/// One to nine bytes, seven bits of each and eight of the last; what comes behind it.
fn varint(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let mut number: i64 = 0;
    for nth in 0..8 {
        let byte = *bytes.get(at + nth)?;
        number = (number << 7) | i64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((number, at + nth + 1));
        }
    }
    Some(((number << 8) | i64::from(*bytes.get(at + 8)?), at + 9))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that go on in other pages; an index and a table of several levels.
    const OVERFLOW: &[u8] = include_bytes!("../../../fuzz/corpus/podman_sqlite/overflow");
    const LEVELS: &[u8] = include_bytes!("../../../fuzz/corpus/podman_sqlite/levels");

    fn reader(bytes: &[u8]) -> impl FnMut(u64, usize) -> Option<Vec<u8>> {
        move |at, length| {
            let at = usize::try_from(at).ok()?;
            bytes.get(at..at.checked_add(length)?).map(<[u8]>::to_vec)
        }
    }

    fn find_in(bytes: &[u8], id: &str) -> Lookup {
        find(&mut reader(bytes), What::Container, id)
    }

    fn config(name: &str, filling: usize) -> Lookup {
        let y = "y".repeat(filling);
        Lookup::Found(format!(r#"{{"labels":{{"v6pod.name":"{name}"}},"x":"{y}"}}"#).into_bytes())
    }

    #[test]
    fn a_container_is_found_by_its_id_in_whatever_shape_the_trees_are() {
        let [a, b, c] = ["ab", "cd", "ac"].map(|two| two.repeat(32));
        assert_eq!(find_in(OVERFLOW, &a), config("a", 1500));
        assert_eq!(find_in(OVERFLOW, &b), config("b", 1500));
        assert_eq!(find_in(LEVELS, &a), config("a", 40));
        for n in 0..12 {
            let found = find_in(LEVELS, &format!("{:064x}", n * 7919));
            assert_eq!(found, config(&format!("n{}", n + 2), 40));
        }
        assert_eq!(find_in(LEVELS, &c), Lookup::Nothing);
        assert_eq!(find_in(LEVELS, ""), Lookup::Nothing);
    }

    #[test]
    fn another_version_mode_or_encoding_says_nothing() {
        let a = "ab".repeat(32);
        for (at, byte) in [(0, b's'), (16, 3), (18, 2), (19, 2), (20, 255), (21, 63), (59, 2)] {
            let mut bytes = LEVELS.to_vec();
            bytes[at] = byte;
            assert_eq!(find_in(&bytes, &a), Lookup::Nothing, "byte {at}");
        }
        // A later schema: the row is 1, a header of four types, NULL, the constant 1, "linux".
        let row = b"\x04\x00\x09\x17linux";
        let at = LEVELS.windows(row.len()).position(|window| window == row).unwrap();
        let mut bytes = LEVELS.to_vec();
        bytes[at + 2] = 8;
        assert_eq!(find_in(&bytes, &a), Lookup::Nothing);
    }

    #[test]
    fn what_was_written_meanwhile_is_not_taken_for_one_state() {
        let mut later = LEVELS.to_vec();
        later[27] += 1;
        let mut reads = 0;
        let (mut before, mut after) = (reader(LEVELS), reader(&later));
        let mut read = |at, length| {
            reads += 1;
            if reads > 4 { after(at, length) } else { before(at, length) }
        };
        assert_eq!(find(&mut read, What::Container, &"ab".repeat(32)), Lookup::Moved);
    }

    #[test]
    fn a_database_that_ends_anywhere_or_leads_in_circles_says_nothing_else() {
        let a = "ab".repeat(32);
        for end in (0..OVERFLOW.len()).step_by(61) {
            let found = find_in(&OVERFLOW[..end], &a);
            assert!(matches!(found, Lookup::Nothing) || found == config("a", 1500), "{end}");
        }
        // Each page is its own first child and rightmost one, as far as it can be.
        for page in 1..LEVELS.len() / 512 {
            let mut bytes = LEVELS.to_vec();
            let number = u32::try_from(page + 1).unwrap().to_be_bytes();
            bytes[page * 512 + 8..page * 512 + 12].copy_from_slice(&number);
            let found = find_in(&bytes, &a);
            assert!(matches!(found, Lookup::Nothing) || found == config("a", 40), "{page}");
        }
    }

    #[test]
    fn numbers_are_read_with_their_signs() {
        assert_eq!(varint(&[0x7f], 0), Some((127, 1)));
        assert_eq!(varint(&[0x81, 0x00], 0), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9], 0), Some((-1, 9)));
        assert_eq!(varint(&[0xff; 8], 0), None);
        // A row of one number of two bytes.
        assert_eq!(number_of(&[2, 2, 0xff, 0xfe], 0), Some(-2));
        assert_eq!(number_of(&[2, 2, 0x01, 0x00], 0), Some(256));
        assert_eq!(number_of(&[2, 2, 0x01], 0), None);
        assert_eq!(number_of(&[2, 10], 0), None, "reserved");
    }
}
