//! TOML of which only strings under plain keys are wanted.
//!
//! Guarantee: a document that is not TOML is an error; one that is gives each of its top-level keys
//! once, in order. The grammar is [`toml_parser`]'s, on which the `toml` crate stands; tables,
//! numbers, dates and what it takes to convert them are left out, for they are most of its size.

use std::borrow::Cow;

use toml_parser::decoder::ScalarKind;
use toml_parser::parser::{Event, EventKind, parse_document};
use toml_parser::{ParseError, Source};

/// A top-level key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// `None` if the value is no string.
    pub(crate) value: Option<String>,
}

/// Where a document is not TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotToml {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// The top-level keys of a document.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>, NotToml> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut events = Vec::new();
    let mut error = None;
    parse_document(&tokens, &mut events, &mut error);
    let mut walk = Walk { source, entries: Vec::new(), key: None, inside: 0, error };
    // Of what is no document, the events need not make sense.
    if walk.error.is_none() {
        events.iter().for_each(|event| walk.event(event));
    }
    match walk.error {
        Some(error) => Err(NotToml {
            line: line_at(text, error.unexpected().map_or(0, |span| span.start())),
            what: error.description().to_owned(),
        }),
        None => Ok(walk.entries),
    }
}

/// Turns the parser's events into entries.
struct Walk<'a> {
    source: Source<'a>,
    entries: Vec<Entry>,
    /// The first part of the key whose value or end is to come, and whether it is the whole key.
    key: Option<(String, bool)>,
    /// How many tables and arrays are open, the one that a `[header]` opens among them.
    inside: usize,
    error: Option<ParseError>,
}

impl Walk<'_> {
    fn event(&mut self, event: &Event) {
        match event.kind() {
            EventKind::StdTableOpen | EventKind::ArrayTableOpen => self.inside = 0,
            EventKind::SimpleKey if self.inside == 0 => self.key_part(event),
            EventKind::Scalar if self.inside == 0 => self.scalar(event),
            EventKind::StdTableClose
            | EventKind::ArrayTableClose
            | EventKind::InlineTableOpen
            | EventKind::ArrayOpen => {
                if self.inside == 0 {
                    self.entry(None);
                }
                self.inside += 1;
            }
            EventKind::InlineTableClose | EventKind::ArrayClose => {
                self.inside = self.inside.saturating_sub(1);
            }
            _ => {}
        }
    }

    fn key_part(&mut self, event: &Event) {
        if let Some((_, is_whole)) = &mut self.key {
            *is_whole = false;
            return;
        }
        let mut key = Cow::Borrowed("");
        if let Some(raw) = self.source.get(event) {
            raw.decode_key(&mut key, &mut self.error);
        }
        self.key = Some((key.into_owned(), true));
    }

    fn scalar(&mut self, event: &Event) {
        let mut text = Cow::Borrowed("");
        let kind = self.source.get(event).map(|raw| raw.decode_scalar(&mut text, &mut self.error));
        self.entry((kind == Some(ScalarKind::String)).then(|| text.into_owned()));
    }

    fn entry(&mut self, value: Option<String>) {
        if let Some((key, is_whole)) = self.key.take() {
            self.entries.push(Entry { key, value: value.filter(|_| is_whole) });
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, Option<String>)> {
        parse(text).unwrap().into_iter().map(|e| (e.key, e.value)).collect()
    }

    fn string(key: &str, value: &str) -> (String, Option<String>) {
        (key.to_owned(), Some(value.to_owned()))
    }

    fn other(key: &str) -> (String, Option<String>) {
        (key.to_owned(), None)
    }

    #[test]
    fn strings_are_read_in_all_their_forms() {
        let text = "# about a\na = \"1\\u00e9\\t\" # more\n\n'b c'='x\\y'\n\
                    \"d\" = \"\"\"\nlong\"\"\"\ne = ''";
        let read =
            [string("a", "1é\t"), string("b c", "x\\y"), string("d", "long"), string("e", "")];
        assert_eq!(entries(text), read);
        assert_eq!(entries(""), []);
    }

    #[test]
    fn what_is_no_string_is_there_without_a_value() {
        for value in ["1", "true", "1.5", "2024-01-01", "[]", "['x', ['y']]", "{ b = 'x', c = {} }"]
        {
            let text = format!("a = {value}\nz = 'z'");
            assert_eq!(entries(&text), [other("a"), string("z", "z")], "{value}");
        }
        assert_eq!(entries("a.b = 'x'\nz = 'z'"), [other("a"), string("z", "z")]);
    }

    #[test]
    fn what_stands_in_a_table_is_not_at_the_top() {
        let text = "y = 'y'\n[a.b]\nx = 'x'\nl = [1]\nt = { u = 1 }\nz = 'z'\n[[c]]\nx = 'x'";
        assert_eq!(entries(text), [string("y", "y"), other("a"), other("c")]);
    }

    #[test]
    fn what_is_not_toml_is_told_by_its_line() {
        for (text, line) in [
            ("a", 1),
            ("\n\na = ", 3),
            ("a = 'x\nb = 'y'", 1),
            ("a = 'x'\n]", 2),
            ("a = \"\\q\"", 1),
            ("a = x", 1),
            ("a = '\u{1}'", 1),
            ("\na = }", 2),
        ] {
            assert_eq!(parse(text).map_err(|e| e.line), Err(line), "{text:?}");
        }
    }
}
