//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for is not there.
    #[error("{0}: no such file; name another with --config, or leave it out for the defaults")]
    Missing(PathBuf),
    /// The file is there and cannot be read.
    #[error("{path}: cannot be read", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file says something that cannot be done.
    #[error("{path}: {mistake}", path = .0.display(), mistake = .1)]
    Wrong(PathBuf, Mistake),
}

/// What is wrong with a configuration's text: the line (the first is 1), the key, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Not TOML.
    #[error("line {line}: {reason}")]
    Syntax {
        /// The line.
        line: usize,
        /// What the parser expected.
        reason: String,
    },
    /// A key that means nothing. Never ignored: a mistyped key would leave its default in force.
    #[error("line {line}: {key} is no key of this file: {reason}")]
    UnknownKey {
        /// The line.
        line: usize,
        /// The key with its tables.
        key: String,
        /// What is known there.
        reason: String,
    },
    /// A value that the key does not take.
    #[error("line {line}: {key}: {reason}")]
    Value {
        /// The line.
        line: usize,
        /// The key with its tables.
        key: String,
        /// What it takes.
        reason: String,
    },
}

impl Mistake {
    /// A value that is wrong for a reason that its type alone does not know.
    pub(super) fn value(text: &str, at: usize, key: &str, reason: &impl fmt::Display) -> Self {
        Self::Value { line: line_of(text, at), key: key.to_owned(), reason: reason.to_string() }
    }

    /// The parser's error with the key it is about.
    pub(super) fn located(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let (line, reason) = (line_of(text, at), error.message().to_owned());
        match DeTable::parse(text) {
            Err(_) => Self::Syntax { line, reason },
            Ok(table) => match key_at(table.get_ref(), at) {
                Some(Place::Key(key)) => Self::UnknownKey { line, key, reason },
                Some(Place::Value(key)) => Self::Value { line, key, reason },
                None => Self::Syntax { line, reason },
            },
        }
    }
}

/// What an offset in the text points at.
enum Place {
    Key(String),
    Value(String),
}

/// The line of an offset, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// The innermost key that the offset lies on, or in the value of. The recursion is as deep as the
/// text, which the parser has bounded.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<Place> {
    table.iter().find_map(|(key, value)| {
        let inner = match value.get_ref() {
            DeValue::Table(table) => key_at(table, at),
            DeValue::Array(array) => array.iter().find_map(|element| match element.get_ref() {
                DeValue::Table(table) => key_at(table, at),
                _ => None,
            }),
            _ => None,
        };
        match inner {
            Some(Place::Key(inner)) => Some(Place::Key(format!("{}.{inner}", key.get_ref()))),
            Some(Place::Value(inner)) => Some(Place::Value(format!("{}.{inner}", key.get_ref()))),
            None if key.span().contains(&at) => Some(Place::Key(key.get_ref().to_string())),
            None if value.span().contains(&at) => Some(Place::Value(key.get_ref().to_string())),
            None => None,
        }
    })
}
