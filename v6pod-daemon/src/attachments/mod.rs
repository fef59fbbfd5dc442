//! The thin middle.

pub mod records;
